"""A mask carried to the next slice: where it is clicked there, and what of the new mask belongs to it."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ibis_agent.actions import Click

_GAP = 2  # low-resolution pixels: an organ moves by so much from slice to slice


def linked(low: Tensor, beside: Tensor, nothing: float) -> Tensor:
    """A slice's (1, 1, h, w) logits without the islands that touch nothing of the slice beside it.

    Such an island is another structure, and would be carried on. beside: that slice's logits, of the same shape.
    nothing: the logit of what is left out.
    """
    shown = (low[0, 0] > 0).cpu().numpy()
    labels, count = ndimage.label(shown, np.ones((3, 3)))
    if count < 2:
        return low
    near = ndimage.binary_dilation((beside[0, 0] > 0).cpu().numpy(), iterations=_GAP)
    islands = shown & ~np.isin(labels, np.unique(labels[near]))
    return torch.where(torch.from_numpy(islands).to(low.device), nothing, low)


def deepest(mask: np.ndarray) -> Click:
    """A click on the pixel of an (H, W) mask that is farthest from its outside; beyond the picture is outside."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return Click((column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0])
