"""Masks as text and numbers: the published run-length text, overlap measures, areas.

A mask is a `(H, W)` bool array. Mask files in a scan's geometry are written in files.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np

from ibis_agent.actions import Box
from ibis_agent.errors import InputError

MOST_PIXELS = 2**27
_LONGEST_RUN = len(str(MOST_PIXELS))


def encode_rle(mask: np.ndarray) -> str:
    """The published text of a `(H, W)` mask; empty for an empty mask.

    Row-major run lengths in decimal, separated by spaces, starting with a run of zeros (0 if the mask begins
    with a one); zlib; base64.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size:
        raise InputError("a mask must have two dimensions", value=mask.shape, remedy="Pass one (H, W) array.")
    flat = mask.ravel() != 0
    if not flat.any():
        return ""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    if flat[0]:
        runs.insert(0, 0)
    return base64.b64encode(zlib.compress(" ".join(map(str, runs)).encode("ascii"))).decode("ascii")


def decode_rle(text: str, shape: tuple[int, int]) -> np.ndarray:
    """The `(H, W)` bool mask of a published run-length text.

    Raises InputError if it is not a valid text for `shape`. Memory stays proportional to the length of the text and
    to H·W, whatever the text would decompress to.
    """
    height, width = (int(side) for side in shape)
    pixels = height * width
    if height < 1 or width < 1 or pixels > MOST_PIXELS:
        raise InputError("a mask of that size cannot be read", value=f"{height} × {width}")
    if not text.strip():
        return np.zeros((height, width), dtype=bool)
    runs = _runs(_unpack(text, pixels))
    if sum(runs) != pixels:
        raise InputError(
            f"the mask's runs do not add up to a picture of {height} × {width}",
            value=f"{sum(runs)} instead of {pixels} pixels",
            remedy="The mask belongs to another picture, or its text was changed.",
        )
    signs = np.arange(len(runs)) % 2 == 1
    return np.repeat(signs, runs).reshape(height, width)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks of the same shape; 1 if both are empty."""
    a, b = _pair(a, b)
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient (twice the intersection over the sum of the areas); 1 if both are empty."""
    a, b = _pair(a, b)
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / both) if both else 1.0


def area(mask: np.ndarray) -> int:
    """The number of pixels of the mask."""
    return int(np.count_nonzero(mask))


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a) != 0, np.asarray(b) != 0
    if a.shape != b.shape:
        raise InputError("the masks have different shapes", value=f"{a.shape} and {b.shape}")
    return a, b


def _unpack(text: str, pixels: int) -> bytes:
    remedy = "The mask's text was changed or cut off."
    try:
        packed = base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise InputError("the mask's text is not base64", value=text[:60], remedy=remedy) from error
    # A run of n pixels takes at most 2n characters with its space, and the first may be "0 ".
    longest = 2 * pixels + 2
    unpacker = zlib.decompressobj()
    try:
        runs = unpacker.decompress(packed, longest + 1)
    except zlib.error as error:
        raise InputError("the mask's text cannot be decompressed", value=text[:60], remedy=remedy) from error
    if len(runs) > longest:
        raise InputError(
            "the mask's text decompresses to more runs than the picture has pixels", remedy=remedy
        )
    if not unpacker.eof or unpacker.unused_data:
        raise InputError(
            "the mask's text is incomplete or followed by other data", value=text[:60], remedy=remedy
        )
    return runs


def _runs(text: bytes) -> list[int]:
    words = text.split(b" ")
    if text.strip(b"0123456789 ") or not all(word.isdigit() and len(word) <= _LONGEST_RUN for word in words):
        raise InputError(
            "the mask's runs are not whole numbers separated by spaces",
            value=text[:60],
            remedy="The mask's text was changed or comes from another program.",
        )
    return [int(word) for word in words]


def box_around(mask: np.ndarray) -> Box | None:
    """The box of an (H, W) mask, its outermost pixels inside; None for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    height, width = mask.shape
    return Box(columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
