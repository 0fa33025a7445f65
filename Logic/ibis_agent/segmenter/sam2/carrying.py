"""Carrying a mask to the next slice: where to click there, and which parts of the new mask to keep."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ibis_agent.actions import Click

_GAP = 2  # low-resolution pixels that an organ may move between slices


def linked(low: Tensor, beside: Tensor, nothing: float) -> Tensor:
    """A slice's (1, 1, h, w) logits without the components that do not touch the neighbouring slice's mask.

    Such a component is another structure and would be carried further. beside: the neighbouring slice's logits, of the
    same shape. nothing: the logit for removed pixels.
    """
    shown = (low[0, 0] > 0).cpu().numpy()
    labels, count = ndimage.label(shown, np.ones((3, 3)))
    if count < 2:
        return low
    near = ndimage.binary_dilation((beside[0, 0] > 0).cpu().numpy(), iterations=_GAP)
    islands = shown & ~np.isin(labels, np.unique(labels[near]))
    return torch.where(torch.from_numpy(islands).to(low.device), nothing, low)


def deepest(mask: np.ndarray) -> Click:
    """A click on the pixel of an (H, W) mask that is farthest from its edge and from the picture's edge."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Click((column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0])
