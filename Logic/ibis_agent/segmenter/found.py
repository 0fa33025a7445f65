"""What is known of one slice of a volume run; nothing else, so that it can be had without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Found:
    """One slice.

    Attributes:
        index: the slice.
        mask: (H, W) bool, read-only.
        score: the network's estimate of the mask's IoU, 0 to 1.
        presence: probability that the object is in the slice, from the object score.
        anchor: it was clicked or given, not found from memory.
    """

    index: int
    mask: np.ndarray
    score: float
    presence: float
    anchor: bool = False
