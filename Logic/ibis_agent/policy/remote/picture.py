"""A picture as it is sent: scaled here, so that the server need not, and written as a PNG in a data address.

Scaled as Qwen's image processors do it (sides in whole cells, the shape kept, bicubic), within the card's range of
pixels: a policy that learnt on small pictures clicks beside the mark on large ones.
"""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

from ibis_agent.errors import InputError
from ibis_agent.policy.card import ModelCard

LEAST, MOST = 56 * 56, 512 * 512
"""The range where the card has none: what the published system was trained on at most."""


def sent_size(height: int, width: int, card: ModelCard) -> tuple[int, int]:
    """(height, width) in which a picture is sent. Raises InputError for one that is too thin."""
    if max(height, width) > 200 * min(height, width):
        raise InputError(
            "the picture is too thin for the policy",
            value=f"{width} × {height} pixels",
            remedy="Choose another plane or a larger region.",
        )
    cell = card.cell
    least, most = card.min_pixels or LEAST, card.max_pixels or max(MOST, card.min_pixels or 0)
    rows, columns = (max(cell, round(side / cell) * cell) for side in (height, width))
    if rows * columns > most:
        factor = math.sqrt(height * width / most)
        rows, columns = (max(cell, math.floor(side / factor / cell) * cell) for side in (height, width))
    elif rows * columns < least:
        factor = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * factor / cell) * cell for side in (height, width))
    return rows, columns


def data_address(rgb: np.ndarray, card: ModelCard) -> str:
    """An (H, W, 3) uint8 picture as `data:image/png;base64,…`, scaled."""
    height, width = rgb.shape[:2]
    rows, columns = sent_size(height, width, card)
    image = Image.fromarray(rgb)
    if (rows, columns) != (height, width):
        image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
