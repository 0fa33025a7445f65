"""Reading NIfTI → a Scan, in its own index order; or a label map, as whole numbers.

The header is read unchanged; the position of the voxels is in nifti_place. Voxels are converted in parts, so that a
label map stored as floats needs only the memory of its integer labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import (
    check_kind,
    check_length,
    check_size,
    damaged,
    native,
    stem,
    suffix_of,
    three_axes,
    whole_numbers,
)
from ibis_agent.scan.geometry import check_affine
from ibis_agent.scan.nifti_place import NiftiPlace
from ibis_agent.scan.scan import Scan

_PART = 2**22  # voxels
_QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")


def read_nifti(path: Path, series: str | None = None) -> Scan:
    """A NIfTI file in its own index order, with its own affine to RAS mm (sform before qform, like nibabel). Raises
    InputError.
    """
    return _read(path, labels=False)


def read_nifti_labels(path: Path) -> Scan:
    """The same, with voxels as whole numbers in the smallest sufficient type.

    Raises InputError, also for values that are not whole numbers.
    """
    return _read(path, labels=True)


def _read(path: Path, labels: bool) -> Scan:
    packed = suffix_of(path) == ".nii.gz"
    opened: Any = gzip.open if packed else open
    try:
        with opened(path, "rb") as stream:
            header = _header(stream)
            kind = header.get_data_dtype()
            shape = three_axes(_sides(header), path)
            check_kind(kind, path)
            check_size(shape, path)
            check_length(path, math.prod(shape) * kind.itemsize, packing=1032 if packed else 1)
            place = NiftiPlace.of(header)
            _check_numbers(header, place, path)
            affine, sized, notes = place.affine(shape)
            affine = check_affine(affine, path)
            start = max(int(header["vox_offset"]), int(header["sizeof_hdr"]) + 4)
            _pass_over(stream, start - int(header["sizeof_hdr"]))
            parts = _parts(stream, math.prod(shape), kind, *_scaling(header, notes))
            voxels = _put_together(parts, math.prod(shape), labels, path).reshape(shape, order="F")
            notes += _to_the_end(stream)
    except InputError as error:
        raise InputError(
            error.problem, file=error.file or path, value=error.value, remedy=error.remedy
        ) from error
    except Exception as error:  # nibabel and gzip raise a dozen unrelated kinds on damaged files
        raise damaged(path, error) from error
    if notes or place.units not in (0, 2) or place.sform is None:
        place = _as_itk_has_it(path, place, affine)
    return Scan(voxels, affine, "volume", path, stem(path), sized=sized, notes=tuple(notes), place=place)


def _header(stream: Any) -> Any:
    """The unchanged header of the file; by default, nibabel corrects some fields."""
    import nibabel

    length = stream.read(4)
    second = 540 in (int.from_bytes(length, order) for order in ("little", "big"))
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    block = length + stream.read((540 if second else 348) - 4)
    header = kind(block, check=False)
    if int(header["sizeof_hdr"]) not in (348, 540):
        raise ValueError(f"the header's length is {int(header['sizeof_hdr'])}")
    return header


def _sides(header: Any) -> tuple[int, ...]:
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise ValueError(f"the header gives {count} axes")
    return tuple(int(side) for side in header["dim"][1 : count + 1])


def _check_numbers(header: Any, place: NiftiPlace, path: Path) -> None:
    """Refuse a header whose only transform contains invalid numbers."""
    if place.sform is not None or place.qform_code > 0:
        return
    sform = [float(each) for axis in "xyz" for each in header[f"srow_{axis}"]]
    qform = [float(header[name]) for name in _QFORM]
    for code, numbers in (("sform_code", sform), ("qform_code", qform)):
        if int(header[code]) > 0 and not np.isfinite(numbers).all():
            remedy = "Give the scan a valid sform or qform, or export it again."
            raise InputError("the affine contains invalid numbers", file=path, value=numbers, remedy=remedy)


def _scaling(header: Any, notes: list[str]) -> tuple[float, float]:
    """(slope, intercept), (1, 0) if the header specifies no scaling: a slope of 0 or NaN."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:  # means "no scaling" in the standard
        if np.isfinite(intercept) and intercept != 0:
            notes.append(
                f"its slope is {slope:g}: values were not scaled, and its intercept {intercept:g} was not added"
            )
        return 1.0, 0.0
    if not np.isfinite(intercept):
        notes.append("its intercept (scl_inter) is not a number: 0 was used")
        return slope, 0.0
    return slope, intercept


def _pass_over(stream: Any, count: int) -> None:
    while count > 0:
        held = len(stream.read(min(count, 2**20)))
        if not held:
            raise EOFError("the file ends before its voxels")
        count -= held


def _parts(stream: Any, count: int, kind: np.dtype, slope: float, intercept: float) -> Iterator[np.ndarray]:
    for begin in range(0, count, _PART):
        size = min(_PART, count - begin) * kind.itemsize
        data = stream.read(size)
        if len(data) < size:
            raise EOFError("the file ends within its voxels")
        part = np.frombuffer(data, kind)
        if (slope, intercept) != (1, 0):
            with np.errstate(over="ignore", invalid="ignore"):
                part = part.astype(np.float64) * slope + intercept
        yield part


def _put_together(parts: Iterator[np.ndarray], count: int, labels: bool, path: Path) -> np.ndarray:
    out, begin = np.empty(0, np.uint8), 0
    for part in parts:
        part = whole_numbers(part, path) if labels else native(part)
        if begin == 0:
            out = np.empty(count, part.dtype)
        elif np.promote_types(out.dtype, part.dtype) != out.dtype:
            out = out.astype(np.promote_types(out.dtype, part.dtype))
        out[begin : begin + len(part)] = part
        begin += len(part)
    return out


def _to_the_end(stream: Any) -> list[str]:
    """Read to the end, where gzip verifies its checksum. Returns a note if bytes follow the archive."""
    try:
        while stream.read(2**20):
            pass
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):
            raise
        return ["extra bytes after the end of the compressed data were ignored"]
    return []


def _as_itk_has_it(path: Path, place: NiftiPlace, affine: np.ndarray) -> NiftiPlace:
    """The place with ITK's affine added if it differs: for masks in ITK's file formats."""
    import SimpleITK as sitk

    from ibis_agent.scan.itk import affine_of

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    with contextlib.suppress(RuntimeError, InputError):  # ITK cannot read it
        reader.ReadImageInformation()
        theirs = check_affine(affine_of(reader), path)
        if np.abs(theirs - affine).max() > 1e-3 * np.abs(affine[:3, :3]).max():
            return dataclasses.replace(place, itk=tuple(float(each) for each in theirs.ravel()))
    return place
