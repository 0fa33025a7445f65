"""Masks as text and as numbers: the published run-length text, overlap measures, areas.

A mask is a `(H, W)` bool array. Files that hold masks in a scan's geometry are in mask_files.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np

from ibis_agent.errors import InputError

MOST_PIXELS = 2**27
_LONGEST_RUN = len(str(MOST_PIXELS))


def encode_rle(mask: np.ndarray) -> str:
    """The published text of a `(H, W)` mask; an empty mask is an empty text.

    Row-major run lengths in decimal, separated by spaces, the first a run of zeros (0 where the mask begins
    with a one); zlib; base64.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size:
        raise InputError("a mask has two dimensions", value=mask.shape, remedy="Pass one (H, W) array.")
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

    Raises InputError for anything that is not such a text for `shape`. Memory stays proportional to the
    length of the text and to H·W, whatever the text would unpack to.
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
            f"the mask's runs add up to another picture than {height} × {width}",
            value=f"{sum(runs)} instead of {pixels} pixels",
            remedy="The mask belongs to another picture, or its text was changed.",
        )
    signs = np.arange(len(runs)) % 2 == 1
    return np.repeat(signs, runs).reshape(height, width)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; 1 where both are empty."""
    a, b = _pair(a, b)
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient (twice the intersection over the sum of the areas); 1 where both are empty."""
    a, b = _pair(a, b)
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / both) if both else 1.0


def precision_recall(mask: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The part of `mask` that is right, and the part of `truth` that was found; 1 where nothing is there."""
    mask, truth = _pair(mask, truth)
    right = np.count_nonzero(mask & truth)
    claimed, wanted = np.count_nonzero(mask), np.count_nonzero(truth)
    return (right / claimed if claimed else 1.0, right / wanted if wanted else 1.0)


def area(mask: np.ndarray) -> int:
    """How many pixels the mask covers."""
    return int(np.count_nonzero(mask))


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a) != 0, np.asarray(b) != 0
    if a.shape != b.shape:
        raise InputError("the masks differ in shape", value=f"{a.shape} and {b.shape}")
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
        raise InputError("the mask's text does not unpack", value=text[:60], remedy=remedy) from error
    if len(runs) > longest:
        raise InputError("the mask's text unpacks to more runs than the picture has pixels", remedy=remedy)
    if not unpacker.eof or unpacker.unused_data:
        raise InputError(
            "the mask's text is incomplete or has something behind it", value=text[:60], remedy=remedy
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
