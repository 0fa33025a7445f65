"""Whether a click or box is on the structure; used by rewards, rollouts and evaluation."""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.mask.masks import box_around

SHARED = 0.5  # a box with at least this IoU with the structure's bounding box is on it


def points_at(prompt: Prompt, truth: np.ndarray) -> bool:
    """Whether a click of either sign is on the (H, W) bool structure, or a box fits it (SHARED)."""
    if isinstance(prompt, Box):
        return box_iou(prompt, truth) >= SHARED
    assert isinstance(prompt, Click)
    return bool(truth[prompt.pixel(truth.shape)])


def box_iou(box: Box, truth: np.ndarray) -> float:
    """IoU of a box and the bounding box of the (H, W) bool structure; 0 if that is empty."""
    own = box_around(truth)
    if own is None:
        return 0.0
    across = min(box.x1, own.x1) - max(box.x0, own.x0)
    down = min(box.y1, own.y1) - max(box.y0, own.y0)
    shared = max(0.0, across) * max(0.0, down)
    areas = (box.x1 - box.x0) * (box.y1 - box.y0) + (own.x1 - own.x0) * (own.y1 - own.y0)
    return float(shared / (areas - shared))
