"""Deliberately wrong clicks, to teach a policy to recover from them.

Each kind is one that policies make: beside the structure, on a neighbour, with the wrong sign, or the same click
again. The recovery is in clicks; imperfect masks are in mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ibis_agent.actions import Click, Prompt
from scipy import ndimage

from training.trajectories.clicks import deepest, next_click

KINDS = ("beside", "neighbour", "sign", "repeat")
_NEAR = 0.6  # distance of "beside" from the structure, in radii of a circle of its area
_SMALLEST = 12  # pixels of a neighbour, at least


def wrong_click(
    kind: str,
    mask: np.ndarray | None,
    truth: np.ndarray,
    others: Mapping[str, np.ndarray],
    past: Sequence[Prompt],
    rng: np.random.Generator,
) -> Prompt | None:
    """A click of the given kind, at the centre of a pixel; None if that kind is not possible here.

    Args:
        kind: one of KINDS.
        mask, truth: (H, W) bool; mask None before the first click.
        others: the other structures of the picture, (H, W) bool each.
        past: the clicks and boxes so far.

    Raises ValueError for an unknown kind.
    """
    if kind == "repeat":
        return past[-1] if past else None
    if kind == "sign":
        right = next_click(mask, truth)
        return None if right is None else Click(right.x, right.y, not right.positive)
    if kind == "beside":
        return _beside(truth, others, rng)
    if kind == "neighbour":
        return _neighbour(mask, truth, others, rng)
    raise ValueError(kind)


def _beside(truth: np.ndarray, others: Mapping[str, np.ndarray], rng: np.random.Generator) -> Click | None:
    """A positive click just outside the structure, if possible not on another one."""
    radius = float(np.sqrt(truth.sum() / np.pi))
    away = ndimage.distance_transform_edt(~truth)
    ring = (away >= max(2.0, 0.1 * radius)) & (away <= max(4.0, _NEAR * radius))
    free = ring & ~_union(others, truth.shape)
    rows, columns = np.nonzero(free if free.any() else ring)
    if not rows.size:
        return None
    n = int(rng.integers(rows.size))
    return _at(int(rows[n]), int(columns[n]), truth.shape)


def _neighbour(
    mask: np.ndarray | None, truth: np.ndarray, others: Mapping[str, np.ndarray], rng: np.random.Generator
) -> Click | None:
    """A positive click in the middle of another structure; near ones are more likely."""
    covered = np.zeros_like(truth) if mask is None else mask
    away = ndimage.distance_transform_edt(~truth)
    parts = [part for other in others.values() if (part := other & ~truth & ~covered).sum() >= _SMALLEST]
    if not parts:
        return None
    odds = np.array([1 / (5 + float(away[part].min())) for part in parts])
    part = parts[int(rng.choice(len(parts), p=odds / odds.sum()))]
    _, row, column = deepest(part)
    return _at(row, column, truth.shape)


def _union(masks: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    union = np.zeros(shape, bool)
    for mask in masks.values():
        union |= mask
    return union


def _at(row: int, column: int, shape: tuple[int, ...]) -> Click:
    return Click((column + 0.5) / shape[1], (row + 0.5) / shape[0])
