"""A phantom's slice as a picture, and a box around its liver: what the demonstration's segmenter knows."""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Box
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture, apply_window

from training.phantoms.phantom import random_slice


def liver_picture(seed: int = 7) -> tuple[Picture, np.ndarray, Box]:
    """The picture in the window of soft tissue, the liver's (H, W) bool mask, and a box around it."""
    made = random_slice(seed)
    grey = apply_window(made.hu, (-160.0, 240.0))
    liver = made.masks["liver"]
    rows, columns = np.flatnonzero(liver.any(1)), np.flatnonzero(liver.any(0))
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / (
        *liver.shape[::-1],
        *liver.shape[::-1],
    )
    box = Box(*(round(float(edge), 2) for edge in edges))
    picture = Picture(np.repeat(grey[:, :, None], 3, axis=2), PictureGeometry.of_picture(*grey.shape), None)
    return picture, liver, box
