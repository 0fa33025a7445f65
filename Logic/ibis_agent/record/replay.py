"""The result of a replay, and where it differs from the record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ibis_agent.mask.masks import iou
from ibis_agent.run.action import RunAction
from ibis_agent.run.episode import Step
from ibis_agent.run.given import Given
from ibis_agent.run.single_slice import SingleSlice


@dataclass(frozen=True)
class Difference:
    """A step or a slice with a different mask: the number of pixels, and the IoU of the two masks."""

    number: int
    pixels: int
    iou: float

    @classmethod
    def between(cls, number: int, old: np.ndarray, new: np.ndarray) -> Difference:
        return cls(number, int(np.count_nonzero(old != new)), iou(old, new))

    def __str__(self) -> str:
        return f"the mask differs from the recorded one in {self.pixels} pixels (IoU {self.iou:.4f})"


@dataclass(frozen=True, eq=False)
class Replay:
    """The result of a replay.

    Attributes:
        steps: the recorded ones; for a single slice, with reproduced masks, logits and scores.
        volume: (I, J, K) uint8, the final mask.
        differences: the steps of a single slice, or the slices of a volume, whose mask is not identical to the record.
        warnings: reasons to expect differences, for display.
    """

    steps: tuple[Step, ...]
    volume: np.ndarray
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def masks(self) -> list[np.ndarray]:
        """The (H, W) bool masks, in the order of the steps."""
        return [step.mask for step in self.steps]


def steps_again(memory: SingleSlice, actions: Iterable[RunAction], given: Given) -> list[Step]:
    """Repeat the actions on a single slice: its steps with reproduced masks, logits and scores."""
    memory.begin(given.start)
    redone: list[Step] = []
    for action in actions:
        before = redone[-1] if redone else memory.standing(action.index)
        changes: dict[str, Any] = {"mask": before.mask, "logits": before.logits} if before else {}
        if action.kind == "click":
            made = memory.predict(action.index, action.clicks, before.logits if before else None)
            mask = given.without_excluded(action.index, made.mask)
            changes = {"mask": mask, "logits": made.logits, "score": made.score}
        elif before is None:
            changes = {"mask": np.zeros(memory.size, dtype=bool)}
        redone.append(replace(action.steps[-1], **changes))
    return redone


def other_weights(role: str, recorded: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """Warnings if the model is not the recorded one: the weights or, if these are the same, the settings that differ.

    role: "policy" or "segmenter", for the text.
    """
    if recorded.get("sha256") != present.get("sha256"):
        was, now = (
            f"{each.get('name') or 'unknown'} ({(each.get('sha256') or 'unknown')[:12]})"
            for each in (recorded, present)
        )
        return [f"not the recorded {role}: {now} instead of {was}"]
    differ = []
    for key in dict.fromkeys((*recorded, *present)):
        was, now = recorded.get(key) or "not set", present.get(key) or "not set"
        if was != now and key not in ("name", "sha256", *_SETTINGS):
            differ.append(f"{key.replace('_', ' ')} {now} instead of {was}")
    whole, files = ({each.get(key) for each in (recorded, present)} for key in _SETTINGS)
    if None not in files and len(files) > 1:
        differ += _other_files(recorded["settings_files"], present["settings_files"])
    elif None not in whole and len(whole) > 1:
        differ.append("its configuration, tokenizer, image processing or generation")
    return [f"the {role} has the recorded weights but other settings: {'; '.join(differ)}"] if differ else []


_SETTINGS = ("settings", "settings_files")


def _other_files(recorded: str, present: str) -> list[str]:
    """The names of settings files that differ, from lists of names and hashes."""
    was, now = (
        dict(part.rsplit(" ", 1) for part in each.split(", ") if " " in part) for each in (recorded, present)
    )
    told = []
    for name in dict.fromkeys((*was, *now)):
        if name not in now or name not in was:
            told.append(f"{name} is {'missing' if name in was else 'new'}")
        elif was[name] != now[name]:
            told.append(f"another {name}")
    return told
