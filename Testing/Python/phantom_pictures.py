"""A phantom's slice as a picture, and a box around its liver: what the demonstration's segmenter knows."""

from __future__ import annotations

import dataclasses

import numpy as np
from ibis_agent.actions import Box
from ibis_agent.mask.masks import box_around
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture, apply_window

from training.phantoms.phantom import random_slice


def liver_picture(seed: int = 7) -> tuple[Picture, np.ndarray, Box]:
    """The picture in the window of soft tissue, the liver's (H, W) bool mask, and a box around it."""
    made = random_slice(seed)
    grey = apply_window(made.hu, (-160.0, 240.0))
    liver = made.masks["liver"]
    around = box_around(liver)
    assert around is not None
    box = Box(*(round(edge, 2) for edge in dataclasses.astuple(around)))
    picture = Picture(np.repeat(grey[:, :, None], 3, axis=2), PictureGeometry.of_picture(*grey.shape), None)
    return picture, liver, box
