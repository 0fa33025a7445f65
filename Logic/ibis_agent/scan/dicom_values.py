"""Checked values of a DICOM file's elements: finite numbers, and texts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError

REMEDY = "Its header is damaged. Export it again."


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress pydicom's warnings about values that violate the standard but can be read."""
    import pydicom

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def dataset(file: Path, pixels: bool = False) -> Any:
    """Read the file with pydicom. Raises InputError."""
    import pydicom

    try:
        with quietly():
            return pydicom.dcmread(file, stop_before_pixels=not pixels, force=True)
    except Exception as error:  # pydicom raises a dozen unrelated kinds on damaged files
        raise InputError(
            "the DICOM file cannot be read; it may be cut off or damaged",
            file=file,
            value=" ".join(str(error).split())[:160] or type(error).__name__,
            remedy="Copy or export it again.",
        ) from error


def first_item(whole: Any, sequence: str) -> Any:
    held = whole.get(sequence)
    return held[0] if held else {}


def numbers(file: Path, held: Any, keyword: str, count: int) -> np.ndarray | None:
    """(count,) finite numbers of an element; None if it is missing or empty. Raises InputError."""
    try:
        value = held.get(keyword)
        if value is None or value == "" or (not np.isscalar(value) and len(value) == 0):
            return None
        found = np.array([float(part) for part in np.atleast_1d(value)])
    except (TypeError, ValueError, OverflowError):
        found = np.array([np.nan])
    if len(found) != count or not np.isfinite(found).all():
        remedy = REMEDY
        raise InputError(
            f"{keyword} is not {count} number{'s' * (count > 1)}", file=file, value=value, remedy=remedy
        )
    return found


_DEFAULTS = {"NumberOfFrames": 1, "SamplesPerPixel": 1, "PixelRepresentation": 0}


def whole_number(file: Path, whole: Any, keyword: str, default: int | None = None) -> int:
    value, default = whole.get(keyword), _DEFAULTS.get(keyword, default)
    if value in (None, "") and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{keyword} is not a number", file=file, value=value, remedy=REMEDY) from error


def text(held: Any, keyword: str) -> str:
    value = held.get(keyword) if held else None
    if value is None:
        return ""
    words = (
        str(value) if isinstance(value, str) or np.isscalar(value) else "\\".join(str(each) for each in value)
    )
    return words.strip("\0 ")
