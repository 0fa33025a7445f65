"""Where a click or a box lies with respect to the truth: for rewards, rollouts and evaluation alike."""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.mask.masks import box_around

SHARED = 0.5  # IoU with the structure's own box from which a box counts as around it


def points_at(prompt: Prompt, truth: np.ndarray) -> bool:
    """Whether a click, of either sign, lies on the (H, W) bool structure, or a box covers it well (SHARED)."""
    if isinstance(prompt, Box):
        return box_iou(prompt, truth) >= SHARED
    assert isinstance(prompt, Click)
    return bool(truth[pixel_of(prompt, truth.shape)])


def pixel_of(click: Click, shape: tuple[int, ...]) -> tuple[int, int]:
    """(row, column) of the pixel that is clicked in a picture of (H, W): int(y·H), int(x·W), clamped."""
    height, width = shape
    return min(int(click.y * height), height - 1), min(int(click.x * width), width - 1)


def box_iou(box: Box, truth: np.ndarray) -> float:
    """Of the areas of a box and of the one around the structure; 0 where there is none."""
    own = box_around(truth)
    if own is None:
        return 0.0
    across = min(box.x1, own.x1) - max(box.x0, own.x0)
    down = min(box.y1, own.y1) - max(box.y0, own.y0)
    shared = max(0.0, across) * max(0.0, down)
    areas = (box.x1 - box.x0) * (box.y1 - box.y0) + (own.x1 - own.x0) * (own.y1 - own.y0)
    return float(shared / (areas - shared))
