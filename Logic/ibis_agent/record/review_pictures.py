"""Pictures and masks in the review page: PNGs, which browsers decode natively, and run lengths.

Grey pictures become grey PNGs (60 % of the size in RGB). Slices without actions are reduced; if the page would still be
too large, so are those that only have a mask. The record keeps all of them at full size.
"""

from __future__ import annotations

import base64
import binascii
import io
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ibis_agent.mask.masks import MOST_PIXELS

_PNG = b"\x89PNG\r\n\x1a\n"
# Bytes of PNG in one page. Base64 adds a third, and the page stays under 10 MB.
ROOM = 6_500_000
# Reduction factor of the sides of slices without actions, and the shortest side that this leaves.
_QUIET = 4
_SMALLEST = 96
# The shortest side where a run of more than a thousand slices would not fit otherwise.
_LEAST = 48


class Shown(NamedTuple):
    """A picture for the page: base64 of a PNG, and the factor by which its sides were reduced (1: full size)."""

    png: str
    reduced: int


def read_png(text: Any, height: int, width: int) -> np.ndarray:
    """The (H, W) or (H, W, 3) uint8 pixels of a recorded picture. Raises ValueError for anything else."""
    from PIL import Image

    try:
        data = base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise ValueError("the picture is not base64") from error
    if not data.startswith(_PNG) or height * width > MOST_PIXELS:
        raise ValueError("the picture is not a PNG")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # The header contains the size: compare it before decoding.
            if image.size != (width, height):
                raise ValueError("the size of the picture differs from its record")
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("the picture is not a PNG") from error
    return grey_if_it_is(pixels)


def grey_if_it_is(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of an (H, W, 3) picture whose channels are equal; all others as they are."""
    grey = pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0] if grey else pixels


def to_png(pixels: np.ndarray, reduce: int = 1) -> bytes:
    """A PNG of (H, W) or (H, W, 3) uint8 pixels, with its sides divided by `reduce`."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    (image if reduce == 1 else image.reduce(reduce)).save(buffer, "PNG")
    return buffer.getvalue()


def to_base64(pixels: np.ndarray) -> str:
    return base64.b64encode(to_png(pixels)).decode("ascii")


def fitted(
    pictures: Iterable[tuple[int, np.ndarray]],
    worked: Collection[int],
    masked: Collection[int],
    room: int = ROOM,
) -> dict[int, Shown]:
    """The pictures of a run, reduced to fit into a page.

    Args:
        pictures: pairs of slice and pixels.
        worked: slices that were clicked or looked at; masked: slices with a mask. They keep their size if there is
            room. Otherwise the masked ones are reduced, except for some evenly spread ones; then all.
        room: bytes of PNG.
    """
    made: dict[int, tuple[bytes, int]] = {}
    for index, pixels in pictures:
        quiet = index not in worked and index not in masked
        made[index] = _encoded(pixels, _QUIET if quiet else 1)
    for group in (sorted((made.keys() & masked) - set(worked)), sorted(made.keys() & worked)):
        _shrink(made, group, room)
    return {index: Shown(base64.b64encode(png).decode("ascii"), each) for index, (png, each) in made.items()}


def _shrink(made: dict[int, tuple[bytes, int]], group: Sequence[int], room: int) -> None:
    """Reduce the group until everything fits; as many as possible keep their size, evenly spread."""
    whole = {index: made[index] for index in group}

    def spare() -> int:
        return room - sum(len(png) for png, _ in made.values())

    for reduce in (2, 3, 4):
        if not whole or spare() >= 0:
            break
        made |= {index: _encoded(_decoded(png), reduce, _LEAST) for index, (png, _) in whole.items()}
    saved = sum(len(whole[index][0]) - len(made[index][0]) for index in group)
    if saved and spare() > 0:
        back = int(spare() * len(group) / saved)
        for place in np.linspace(0, len(group) - 1, min(back, len(group)), dtype=int):
            made[group[place]] = whole[group[place]]


def runs_of(mask: np.ndarray) -> list[int]:
    """Row-major run lengths, starting with a run of zeros; the last run of zeros is omitted."""
    flat = np.asarray(mask).ravel() != 0
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [0, *edges.tolist(), flat.size]
    runs = [stop - start for start, stop in itertools.pairwise(bounds)]
    if flat[0]:
        runs.insert(0, 0)
    return runs[: len(runs) - len(runs) % 2]


def _encoded(pixels: np.ndarray, reduce: int, smallest: int = _SMALLEST) -> tuple[bytes, int]:
    """The PNG, and the factor by which the sides were reduced: `reduce`, or less for a small picture."""
    reduce = max(1, min(reduce, min(pixels.shape[:2]) // smallest))
    return to_png(pixels, reduce), reduce


def _decoded(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))
