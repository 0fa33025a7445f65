"""Simulated clicks: the next click of an expert who knows the ground truth.

The published rule: click the deepest point of the largest error, positive where the mask misses the structure,
negative where it covers something else. Used to make trajectories and to evaluate segmenters ("oracle clicks").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ibis_agent.actions import Click, Prompt
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import iou

# The published simulation measures depth with OpenCV's 5×5 chamfer distance. These are the lengths of a step to a
# neighbour, to a diagonal neighbour, and of a knight's move, in 1/10000 of a pixel. OpenCV rounds them in one of two
# ways, depending on its build and the picture's size, which only matters for points of equal depth. These lengths
# reproduce all 80 recorded clicks; the exact Euclidean distance moves 6 of them by a pixel or two.
_SIDE, _DIAGONAL, _KNIGHT = 10000, 14000, 21969
_FAR = 2**40
_REACH = 2


@dataclass(frozen=True)
class ClickStep:
    """One simulated click or box and its result.

    Attributes:
        click: at the centre of the clicked pixel.
        mask: (H, W) bool, after it.
        logits: (S/4, S/4) float32 low-resolution logits for the next prediction (S: the segmenter's input size).
        score: the segmenter's own estimate of the IoU.
        iou: of the mask with the truth.
    """

    click: Prompt
    mask: np.ndarray
    logits: np.ndarray
    score: float
    iou: float


def next_click(mask: np.ndarray | None, truth: np.ndarray) -> Click | None:
    """The next click for the (H, W) `mask` (None: empty), or None if it equals the truth.

    The deepest point of the false-negative or of the false-positive pixels, whichever is deeper. A tie between the
    two goes to the false negatives (a positive click), a tie between points to the first in reading order.
    Raises InputError if the masks are not (H, W) of the same size.
    """
    truth = np.asarray(truth) != 0
    mask = np.zeros_like(truth) if mask is None else np.asarray(mask) != 0
    if truth.ndim != 2 or mask.shape != truth.shape:
        raise InputError(
            "mask and truth must be (H, W) of the same size", value=f"{mask.shape} and {truth.shape}"
        )
    missed, row, column = deepest(truth & ~mask)
    wrong, other_row, other_column = deepest(mask & ~truth)
    if missed <= 0 and wrong <= 0:
        return None
    positive = missed >= wrong
    if not positive:
        row, column = other_row, other_column
    height, width = truth.shape
    return Click((column + 0.5) / width, (row + 0.5) / height, positive)


def simulate(
    segmenter: Any,
    rgb: np.ndarray,
    truth: np.ndarray,
    iou_threshold: float = 0.8,
    max_steps: int = 20,
    *,
    embedding: Any = None,
    choose: Callable[[np.ndarray | None, np.ndarray], Prompt | None] = next_click,
) -> list[ClickStep]:
    """Click until the IoU reaches the threshold, `choose` returns None, or `max_steps` are made.

    Args:
        segmenter: an ibis_agent.segmenter.contract.Segmenter.
        rgb: (H, W, 3) uint8.
        truth: (H, W), nonzero inside.
        embedding: of `rgb` if already computed, for several structures of one picture.
        choose: the rule for the next click, given the mask so far (None at first) and the truth.

    With the default rule, an empty truth gives no steps.
    """
    if embedding is None and np.any(truth):
        embedding = segmenter.embed(rgb)
    truth = np.asarray(truth) != 0
    steps: list[ClickStep] = []
    while len(steps) < max_steps:
        before = steps[-1] if steps else None
        click = choose(before.mask if before else None, truth)
        if click is None:
            break
        clicks = [*(step.click for step in steps), click]
        found = segmenter.predict(embedding, clicks, before.logits if before else None)
        steps.append(ClickStep(click, found.mask, found.logits, found.score, iou(found.mask, truth)))
        if steps[-1].iou >= iou_threshold:
            break
    return steps


def deepest(region: np.ndarray) -> tuple[float, int, int]:
    """(depth in pixels, row, column) of the deepest point of an (H, W) bool region; depth 0 for an empty one.

    For a region that fills the whole picture the depth is infinite, and the point is its middle.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return 0.0, 0, 0
    # With a margin of two pixels, the reach of a chamfer step, distances inside are the same as in the whole picture.
    top, left = max(int(rows[0]) - _REACH, 0), max(int(columns[0]) - _REACH, 0)
    part = region[top : rows[-1] + _REACH + 1, left : columns[-1] + _REACH + 1]
    if part.all():
        return float("inf"), top + part.shape[0] // 2, left + part.shape[1] // 2
    depth = chamfer_distance(part)
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(depth[row, column]), top + int(row), left + int(column)


def chamfer_distance(region: np.ndarray) -> np.ndarray:
    """(H, W) float32: distance in pixels of each pixel of an (H, W) bool region to the nearest one outside.

    Borgefors' 5×5 chamfer distance, as OpenCV's `distanceTransform(…, DIST_L2, 5)`; the picture's edge does not
    count as outside. Two passes over the rows; within a row the step to the side is a running minimum, exact because
    the lengths are integers. Infinite if the region fills the picture.
    """
    height, width = region.shape
    # A margin of two, so that every neighbour can be read.
    field = np.full((height + 2 * _REACH, width + 2 * _REACH), _FAR, dtype=np.int64)
    inside = field[_REACH:-_REACH, _REACH:-_REACH]
    inside[~region] = 0
    slope = np.arange(width, dtype=np.int64) * _SIDE
    for passing in (field, field[::-1, ::-1]):
        for n in range(_REACH, height + _REACH):
            row = passing[n, _REACH:-_REACH]
            near, far = passing[n - 1], passing[n - 2]
            np.minimum(row, near[2:-2] + _SIDE, out=row)
            np.minimum(row, np.minimum(near[1:-3], near[3:-1]) + _DIAGONAL, out=row)
            knights = np.minimum(np.minimum(near[:-4], near[4:]), np.minimum(far[1:-3], far[3:-1]))
            np.minimum(row, knights + _KNIGHT, out=row)
            row[:] = np.minimum.accumulate(row - slope) + slope
    distance = (inside / np.float64(_SIDE)).astype(np.float32)
    distance[inside >= _FAR] = np.inf
    return distance
