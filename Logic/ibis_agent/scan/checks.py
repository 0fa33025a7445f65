"""Checks used by all scan readers, and their error messages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.geometry import MOST_VOXELS


def suffix_of(path: Path) -> str:
    """The file extension in lower case; `.nii.gz` counts as one."""
    name = path.name.lower()
    return next((each for each in (".nii.gz", ".seg.nrrd") if name.endswith(each)), path.suffix.lower())


_DICOM = {".dcm", ".ima", ".dicom"}
_OTHERS = {
    ".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".png", ".jpg", ".jpeg", ".json",
}  # fmt: skip


def stem(path: Path) -> str:
    """The name without the extension of a scan, a mask or a JSON file; other dots belong to the name: 1.2.840.113."""
    ending = suffix_of(path)
    known = ending in _DICOM | _OTHERS and len(ending) < len(path.name) and not path.is_dir()
    return path.name[: -len(ending)] if known else path.name


def may_be_dicom(path: Path) -> bool:
    """Whether it is a folder, or a file without the extension of another format."""
    return path.is_dir() or suffix_of(path) not in _OTHERS


def three_axes(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """Bring an array with two or more axes to three; further axes must have length one."""
    sides = [int(side) for side in shape]
    if len(sides) < 2 or min(sides) < 1:
        raise InputError("the volume is empty or has too few axes", file=path, value=by(sides))
    if any(side != 1 for side in sides[3:]):
        raise InputError(
            f"the volume has {len(sides)} axes",
            file=path,
            value=by(sides),
            remedy="Save one time point or channel as a separate volume.",
        )
    sides = [*sides, 1][:3]
    return sides[0], sides[1], sides[2]


def check_kind(kind: np.dtype, path: Path) -> None:
    if kind.names is not None:
        raise InputError(
            "the volume is in colour", file=path, remedy="Convert it to one grey value per voxel."
        )
    if kind.kind not in "iufb":
        raise InputError(
            "the voxels are not grey values", file=path, value=kind, remedy="Convert them to integers."
        )


def check_size(shape: Sequence[int], path: Path) -> None:
    """Refuse an implausibly large number of voxels. Raises InputError."""
    if math.prod(shape) > MOST_VOXELS:
        raise InputError(
            "the volume is too large", file=path, value=by(shape), remedy="Crop it to the region of interest."
        )


def check_length(path: Path, least: int, *, packing: int = 1032) -> None:
    """Refuse a file that is shorter than the `least` bytes announced in its header, before allocating memory.

    packing: the largest possible compression factor. Deflate reaches at most 1032.
    """
    held = path.stat().st_size
    if least > held * packing:
        raise InputError(
            "the file is cut off",
            file=path,
            value=f"{held} bytes for {least}",
            remedy="Copy or export it again.",
        )


def native(array: np.ndarray) -> np.ndarray:
    """Integers as they are, in this machine's byte order; booleans as uint8, floats as float32."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    """Integers as they are, in this machine's byte order; floats and booleans in the smallest type that holds
    them. Raises InputError for what is not a whole number.
    """
    if values.dtype.kind in "iub":
        return native(values)
    if not np.isfinite(values).all():
        raise InputError("the mask contains NaN or infinite values", file=path)
    whole = np.rint(values)
    odd = np.abs(whole - values) > 1e-3
    if odd.any():
        value = f"{values[odd].flat[0]:g}"
        raise InputError("the mask's values are not whole numbers", file=path, value=value)
    low, high = whole.min(initial=0), whole.max(initial=0)
    for kind in (np.uint8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return whole.astype(kind)
    raise InputError("the mask's values are too large for labels", file=path, value=f"{high:g}")


def damaged(path: Path, error: Exception) -> InputError:
    """The error for a file that a library could not read; `error` is what the library raised."""
    reason = " ".join(str(error).split()).rsplit("ERROR:", 1)[-1]
    reason = re.sub(r"\w{1,40}\(0x[0-9a-f]{1,16}\):", "", reason).replace(str(path), path.name).strip()
    return InputError(
        "the file cannot be read, it may be cut off or damaged",
        file=path,
        value=reason[:160] or type(error).__name__,
        remedy="Copy or export it again.",
    )


def by(sides: Sequence[int]) -> str:
    """For example "512 × 512 × 40"."""
    return " × ".join(str(side) for side in sides)
