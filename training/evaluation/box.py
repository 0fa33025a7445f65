"""The segmenter prompted with the structure's bounding box, as a baseline."""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Box
from ibis_agent.errors import InputError
from ibis_agent.segmenter.contract import Embedding, Segmenter


def box_of(truth: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): the outermost pixels of an (H, W) mask, as in the training of sam2.

    Raises InputError for an empty mask.
    """
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    if not rows.size:
        raise InputError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def predict_box(
    segmenter: Segmenter, embedding: Embedding, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The (H, W) bool mask for a box in the picture's pixels, and its (S/4, S/4) float32 logits.

    Raises ModelError if the network fails.
    """
    width, height = embedding.width, embedding.height
    left, top = box[:2]
    # A box of one column or row must not be empty.
    right, bottom = max(box[2], left + 0.5), max(box[3], top + 0.5)
    prompt = Box(left / width, top / height, min(1.0, right / width), min(1.0, bottom / height))
    found = segmenter.predict(embedding, [prompt])
    return found.mask, found.logits
