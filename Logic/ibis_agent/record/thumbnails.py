"""A small picture of a slice with its masks tinted and outlined, for pages that show many."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from ibis_agent.scan.geometry import PictureGeometry

CYAN = (40, 215, 230)


def thumbnail(
    geometry: PictureGeometry,
    pixels: np.ndarray,
    masks: Sequence[tuple[np.ndarray, Sequence[int]]],
    side: int = 160,
) -> str:
    """Base64 of a PNG of at most `side` pixels, as wide and high as the slice is in mm.

    pixels: (H, W) or (H, W, 3) uint8. masks: pairs of an (H, W) bool mask and its 0-255 RGB.
    """
    from PIL import Image
    from scipy import ndimage

    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    width, height = geometry.width * (geometry.col_mm or 1.0), geometry.height * (geometry.row_mm or 1.0)
    scale = side / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR)).astype(np.float64)
    for whole, colour in masks:
        mask = np.asarray(Image.fromarray(whole.astype(np.uint8) * 255).resize(size)) > 127
        edge = mask & ~ndimage.binary_erosion(mask)
        for where, share in ((mask, 0.35), (edge, 0.6)):
            small[where] = (1 - share) * small[where] + share * np.asarray(colour, np.float64)
    buffer = io.BytesIO()
    Image.fromarray(small.astype(np.uint8)).quantize(128).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
