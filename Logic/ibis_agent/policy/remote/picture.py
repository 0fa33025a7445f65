"""A picture as it is sent to a server: scaled, so that the server does not scale it, and as a PNG data URL.

Scaled as by Qwen's image processors (sides in whole cells, aspect ratio kept, bicubic) to the card's range of pixels:
a policy trained on small pictures clicks inaccurately on large ones.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.qwen25.pictures import PictureProcessor

LEAST, MOST = 56 * 56, 512 * 512
"""The range in pixels if the card has none: the largest that the published system was trained on."""


def sent_size(height: int, width: int, card: ModelCard) -> tuple[int, int]:
    """The (height, width) in pixels in which a picture is sent. Raises InputError for a very thin one."""
    least, most = card.min_pixels or LEAST, card.max_pixels or max(MOST, card.min_pixels or 0)
    return PictureProcessor(patch_size=card.cell, merge_size=1, least=least, most=most).size_of(height, width)


def data_address(rgb: np.ndarray, card: ModelCard) -> str:
    """An (H, W, 3) uint8 picture, scaled, as `data:image/png;base64,…`."""
    height, width = rgb.shape[:2]
    rows, columns = sent_size(height, width, card)
    image = Image.fromarray(rgb)
    if (rows, columns) != (height, width):
        image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
