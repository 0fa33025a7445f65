"""Volumes of bright things, and an exact network that follows them: what is tested is the run, not a network.

`SEGMENTER` stands where a real one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Turn
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import stack_of
from ibis_agent.segmenter.contract import Abilities, Following, Found, PictureOf, Prediction, Way
from scipy import ndimage
from scripted_policy import ScriptedPolicy

torch = pytest.importorskip("torch")

from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.segmenter.sam2.propagation import Propagation

SIDE = 32
MIDDLE = Click(0.5, 0.5)
END = format_reply(Reply("It fits.", Terminate("There it is.")))
NOWHERE = format_reply(Reply("Nothing.", Terminate("It is not there.")))


class Bright(Propagation):
    """Finds the bright things that touch what was found in the slice before, but in the slices it is blind to."""

    visits: list[int]
    blind: frozenset[int] = frozenset()

    def __init__(
        self, picture_of: PictureOf, count: int, size: tuple[int, int], way: Way, following: Following
    ) -> None:
        super().__init__(SEGMENTER, picture_of, count, size, "memory" if way == "auto" else way, following)

    def _clicked(self, index: int, clicks: Sequence[Click], previous_logits: Any) -> dict[str, Any]:
        parts, mask = self._parts(index), np.zeros(self.size, bool)
        for click in clicks:
            ((column, row, _),) = self.marks([click])
            one = parts == parts[row, column] if parts[row, column] else np.zeros(self.size, bool)
            mask = mask | one if click.positive else mask & ~one
        return self._out(mask)

    def _settle(self, index: int, out: dict[str, Any], mask: np.ndarray | None = None) -> Found:
        self._anchors[index] = out
        self._tracked.pop(index, None)
        return self._keep(index, out, anchor=True)

    def anchor_mask(self, index: int, mask: np.ndarray) -> Found:
        return self._settle(index, self._out(mask))

    def _track(self, index: int, reverse: bool) -> Found:
        self.__dict__.setdefault("visits", []).append(index)
        step = 1 if reverse else -1
        beside = index + step
        while not self.found[beside].mask.any() and beside + step in self.found:
            beside += step
        parts = self._parts(index)
        touched = np.unique(parts[ndimage.binary_dilation(self.found[beside].mask, iterations=2)])
        seen = np.isin(parts, touched[touched > 0]) & (index not in self.blind)
        self._tracked[index] = out = self._out(seen)
        return self._keep(index, out, anchor=False)

    def _parts(self, index: int) -> np.ndarray:
        return ndimage.label(self._picture_of(index)[..., 0] > 128)[0]

    def _out(self, mask: np.ndarray) -> dict[str, Any]:
        logits = torch.from_numpy(np.where(mask, 8.0, -8.0).astype(np.float32))[None, None]
        presence = torch.full((1, 1), 6.0 if mask.any() else -6.0)
        scores = np.array([0.9 if mask.any() else 0.0])
        return {"pred_masks": logits, "object_score_logits": presence, "scores": scores}


class BrightSegmenter:
    """What a run over a volume needs of one."""

    identity = {"name": "bright", "sha256": "b"}  # noqa: RUF012
    can, device, model = Abilities(starting_mask=True), "cpu", None

    def started(self, mask: np.ndarray) -> Prediction:
        logits = np.where(mask, 8.0, -8.0).astype(np.float32)
        return Prediction(np.array(mask, bool), logits, 1.0, np.ones(1, np.float32))

    def follower(self, *of: Any) -> Bright:
        return Bright(*of)


SEGMENTER: Any = BrightSegmenter()


class Clicker(ScriptedPolicy):
    """Clicks the middle of whatever is bright and not yet marked in a picture."""

    def __init__(self) -> None:
        card = ModelCard(name="clicker", orientation=Orientation.RADIOLOGICAL, overlay_alpha=0.9)
        super().__init__([], card)

    def reply(self, turn: Turn, on_text: Any = None, cancelled: Any = None) -> str:
        self.turns.append(turn)
        if on_text is not None:
            on_text("<think>Let me see")
        bright = (turn.picture > 128).all(axis=2)
        if not bright.any():
            return END if turn.has_mask else NOWHERE
        depth = ndimage.distance_transform_edt(bright)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        click = Click((column + 0.5) / SIDE, (row + 0.5) / SIDE)
        return format_reply(Reply(f"Something bright at {row}.", click))


def run_over(
    slices: Sequence[np.ndarray],
    gap_mm: float = 3.0,
    *,
    policy: Any = None,
    limits: Any = None,
    **options: Any,
) -> Run:
    """A run over (SIDE, SIDE) bool slices, as bright as their True is."""
    voxels = np.stack([np.where(each, 200, 10) for each in slices]).astype(np.int16).transpose()
    affine = np.diag([-1.0, -1.0, gap_mm, 1.0])
    scan = Scan(voxels, affine, "volume", Path("made.nii.gz"), "made", "CT")
    stack = stack_of(scan, window=(0, 255))
    limits = limits or Settings(follow="memory", patience_mm=12.0)
    return Run(stack, "Segment it", policy, SEGMENTER, limits, **options)


def disc(radius: float = 6, row: float = 16, column: float = 16) -> np.ndarray:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2)


NOTHING = np.zeros((SIDE, SIDE), bool)


def grown(slices: Sequence[np.ndarray], key: int, gap_mm: float = 3.0) -> Run:
    run = run_over(slices, gap_mm)
    rows, columns = np.nonzero(slices[key])
    run.click(key, Click((columns[0] + 0.5) / SIDE, (rows[0] + 0.5) / SIDE))
    run.grow()
    return run


def shown(run: Run) -> list[int]:
    return [index for index, area in run.areas_mm2().items() if area]


def two_things() -> list[np.ndarray]:
    return [disc(5) | disc(3, 5, 5) if 4 <= n <= 15 else NOTHING for n in range(24)]


def begun(policy: Any) -> Run:
    """A run over `two_things` up to the policy's first click."""
    run = run_over(two_things(), policy=policy)
    while run.key is None:
        run.step()
    return run
