"""What making a record's masks again gave, and where it differs from what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ibis_agent.mask.masks import iou
from ibis_agent.run.episode import Step


@dataclass(frozen=True)
class Difference:
    """A step or a slice whose mask came out differently: how many pixels, and the IoU of the two masks."""

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
    """What a replay gave.

    Attributes:
        steps: the recorded ones; of a slice alone with masks, logits and scores made anew.
        volume: (I, J, K) uint8, the mask at the end.
        differences: the steps of a slice alone, or the slices, where a mask is not the recorded one, bit for bit.
        warnings: reasons to expect differences, for people.
    """

    steps: tuple[Step, ...]
    volume: np.ndarray
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def masks(self) -> list[np.ndarray]:
        """(H, W) bool each, in the order of the steps."""
        return [step.mask for step in self.steps]


def other_weights(role: str, recorded: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """What people should know where the identity recorded for a "policy" or "segmenter" is not the present one."""
    if recorded.get("sha256") == present.get("sha256"):
        return []
    was, now = (
        f"{each.get('name') or 'unknown'} ({(each.get('sha256') or 'unknown')[:12]})"
        for each in (recorded, present)
    )
    return [f"another {role} than the recorded one: {now} instead of {was}"]
