"""One answer for an inline SVG: picture, mask, outline of the truth, numbered clicks.

Pixels are stretched to the aspect ratio in millimetres if the picture has a spacing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from ibis_agent.actions import Box, Prompt
from ibis_agent.mask.contours import outlines_of
from ibis_agent.scan.picture import Picture
from PIL import Image

_WIDTH = 480.0  # width in SVG units


def drawing(
    picture: Picture, mask: np.ndarray, truth: np.ndarray | None, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """What the page's template draws of an (H, W) picture: sizes and places in the drawing's own units."""
    height, width = mask.shape
    geometry = picture.geometry
    across = _WIDTH / width
    down = across * (geometry.row_mm or 1.0) / (geometry.col_mm or 1.0)
    numbers: dict[Prompt, list[int]] = {}  # clicks on the same point share a mark
    for number, prompt in enumerate(prompts, 1):
        numbers.setdefault(prompt, []).append(number)
    marks = []
    for prompt, those in numbers.items():
        x0, y0 = (prompt.x0, prompt.y0) if isinstance(prompt, Box) else (prompt.x, prompt.y)  # type: ignore[attr-defined]
        size = None
        if isinstance(prompt, Box):
            size = (prompt.x1 - x0) * _WIDTH, (prompt.y1 - y0) * height * down
        mark = {"x": x0 * _WIDTH, "y": y0 * height * down, "size": size, "positive": prompt.positive}
        marks.append({**mark, "numbers": ",".join(map(str, those))})
    outlines = [] if truth is None else outlines_of(truth)
    path = "".join(f"M{' '.join(f'{n:g}' for n in each.ravel())}Z" for each in outlines)
    return {
        "width": _WIDTH,
        "height": height * down,
        "picture": _data(_picture_png(picture.rgb)),
        "mask": _data(_mask_png(mask)) if mask.any() else None,
        "truth": path,
        "scale": f"{across:.4f} {down:.4f}",
        "marks": marks,
    }


def _picture_png(rgb: np.ndarray) -> bytes:
    grey = (rgb[:, :, :1] == rgb).all()
    return _png(Image.fromarray(np.ascontiguousarray(rgb[:, :, 0]) if grey else rgb))


def _mask_png(mask: np.ndarray) -> bytes:
    """A PNG with two colours, the first transparent; the opacity of the other is set in page.css."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 40, 215, 230])
    return _png(image, transparency=0)


def _png(image: Image.Image, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, **options)
    return stream.getvalue()


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
