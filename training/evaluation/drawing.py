"""One answer as inline SVG: picture, mask, outline of the truth, numbered clicks.

Pixels are stretched to the aspect ratio in millimetres if the picture has a spacing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from ibis_agent.scan.picture import Picture
from PIL import Image

_WIDTH = 480.0  # width in SVG units


def drawing(
    picture: Picture, mask: np.ndarray, truth: np.ndarray | None, clicks: Sequence[tuple], label: str
) -> str:
    """An `<svg>` of the (H, W) picture. `label` must be escaped.

    mask, truth: (H, W) bool. clicks: (x, y, positive), or (x0, y0, x1, y1) for a box, 0 to 1.
    """
    height, width = mask.shape
    geometry = picture.geometry
    ratio = (geometry.row_mm or 1.0) / (geometry.col_mm or 1.0)
    across = _WIDTH / width
    down = across * ratio
    size = f'width="{_WIDTH:g}" height="{height * down:.2f}" preserveAspectRatio="none"'
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {height * down:.2f}" role="img" aria-label="{label}">',
        f'<image href="{_data(_picture_png(picture.rgb))}" {size}/>',
    ]
    if mask.any():
        parts.append(f'<image class="mask" href="{_data(_mask_png(mask))}" {size}/>')
    if truth is not None:
        path = "".join(f"M{x} {y}{way}{length}" for x, y, way, length in edges(truth))
        parts.append(f'<path class="truth" transform="scale({across:.4f} {down:.4f})" d="{path}"/>')
    numbers: dict[tuple, list[int]] = {}  # clicks on the same point share a mark
    for number, click in enumerate(clicks, 1):
        numbers.setdefault(tuple(click), []).append(number)
    for (x, y, *rest), those in numbers.items():
        text = ",".join(map(str, those))
        if len(rest) == 2:
            left, top = x * _WIDTH, y * height * down
            parts.append(
                f'<g class="plus"><rect x="{left:.1f}" y="{top:.1f}" width="{(rest[0] - x) * _WIDTH:.1f}" '
                f'height="{(rest[1] - y) * height * down:.1f}"/>'
                f'<text x="{left + 3:.1f}" y="{top - 3:.1f}">{text}</text></g>'
            )
            continue
        positive = rest[0]
        kind, sign = ("plus", "+") if positive else ("minus", "−")
        parts.append(
            f'<g class="{kind}" transform="translate({x * _WIDTH:.1f} {y * height * down:.1f})">'
            f'<circle r="5"/><text x="8" y="5">{text}{sign}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def edges(mask: np.ndarray) -> Iterator[tuple[int, int, str, int]]:
    """The border of an (H, W) bool mask along pixel edges, as straight pieces (x, y, "h" or "v", length)."""
    framed = np.pad(mask.astype(np.int8), 1)
    for way, changes in (
        ("h", framed[1:, 1:-1] != framed[:-1, 1:-1]),
        ("v", framed[1:-1, 1:] != framed[1:-1, :-1]),
    ):
        lines = changes if way == "h" else changes.T
        for n, line in enumerate(lines):
            turns = np.flatnonzero(np.diff(np.concatenate(([0], line.astype(np.int8), [0]))))
            for start, stop in turns.reshape(-1, 2).tolist():
                x, y = (start, n) if way == "h" else (n, start)
                yield x, y, way, stop - start


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
