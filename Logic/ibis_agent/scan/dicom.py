"""Reading DICOM: one series of a folder, or one file → a Scan.

ITK's GDCM reader finds, sorts and decodes the slices and applies the rescale slope and intercept; here stands
what it does not say: which series there are, and whether the slices of one make an even stack.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import check_length, damaged
from ibis_agent.scan.itk import check_itk_header, voxels_and_affine
from ibis_agent.scan.scan import Scan

_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_DESCRIPTION, _NUMBER, _MODALITY = "0008|103e", "0020|0011", "0008|0060"
_STORAGE_CLASS, _TRANSFER_SYNTAX = b"\x02\x00\x02\x00", b"\x02\x00\x10\x00"
_UNPACKED = (b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2")
_MOST_FOLDERS = 1000


def read_dicom_folder(path: Path, series: str | None = None) -> Scan:
    """The one series of a folder, or the one whose UID is `series`; subfolders are looked through where the
    folder itself holds none. Raises InputError, which lists the series where there are several.
    """
    found = _find_series(path)
    if not found:
        raise InputError(
            "the folder holds no DICOM images",
            file=path,
            remedy="Give the folder with the slices, or a scan's file.",
        )
    if series is None and len(found) > 1:
        raise InputError(
            f"the folder holds {len(found)} series",
            file=path,
            remedy=f"Choose one of them with --series UID:\n{_listed(found)}",
        )
    if series is not None and series not in found:
        raise InputError(
            "the folder has no such series", file=path, value=series, remedy=f"It holds:\n{_listed(found)}"
        )
    uid = series if series is not None else next(iter(found))
    return _read(path, found[uid])


def read_dicom_file(path: Path, series: str | None = None) -> Scan:
    """One DICOM file as a volume: one slice, or all the frames of an enhanced multi-frame file."""
    return _read(path, [str(path)])


def _find_series(path: Path) -> dict[str, list[str]]:
    """Series UID → its files in order of position, only those that hold images."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    found: dict[str, list[str]] = {}
    for count, (folder, _, _) in enumerate(os.walk(path)):
        if count > _MOST_FOLDERS:
            raise InputError("the folder has too many subfolders to look through", file=path)
        known: set[str] = set()
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder):
            files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, uid))
            known.update(os.path.basename(file) for file in files)
            if files and _header(files[0]) is not None:
                found.setdefault(uid, []).extend(files)
        _check_all_known(Path(folder), known)
        if found and count == 0:
            break
    return found


def _check_all_known(folder: Path, known: set[str]) -> None:
    """Refuse a folder in which a slice cannot be read: GDCM passes over it, and the scan would be short.

    A slice is a DICOM file of the same class as one that GDCM knows; reports and directories are others.
    """
    classes = {_meta(folder / name, _STORAGE_CLASS) for name in known} - {b""}
    for file in sorted(folder.iterdir()):
        if file.name not in known and file.is_file() and _meta(file, _STORAGE_CLASS) in classes:
            raise InputError(
                "a slice of the folder cannot be read, it may be cut off",
                file=file,
                remedy="Copy the folder again, or take the file out of it.",
            )


def _meta(file: Path, tag: bytes) -> bytes:
    """A UID of a DICOM file's meta information, which is always little-endian; empty where there is none."""
    try:
        with file.open("rb") as stream:
            head = stream.read(1024)
    except OSError:
        return b""
    at = head.find(tag + b"UI") if head[128:132] == b"DICM" else -1
    if at < 0:
        return b""
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + length].rstrip(b"\0")


def _read(path: Path, files: list[str]) -> Scan:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    header = _header(files[0])
    if header is None:
        raise InputError(
            "the DICOM file holds no image that can be read", file=files[0], remedy="Export it again."
        )
    check_itk_header(header, path)
    _check_grid(header, files[0])
    unpacked = _meta(Path(files[0]), _TRANSFER_SYNTAX) in _UNPACKED
    check_length(Path(files[0]), math.prod(header.GetSize()) // 8, packing=1 if unpacked else 10_000)
    try:
        if len(files) == 1:
            header.SetFileName(files[0])
            image = header.Execute()
        else:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(files)
            reader.MetaDataDictionaryArrayUpdateOn()
            image = reader.Execute()
            _check_stack(path, files, reader)
    except (RuntimeError, ValueError) as error:  # the latter for a position that is no number
        raise damaged(path, error) from error
    voxels, affine = voxels_and_affine(image, path)
    name = _tag(header, _DESCRIPTION) or (path.name if path.is_dir() else path.stem)
    return Scan(voxels, affine, "volume", path, name, _tag(header, _MODALITY))


def _check_grid(header: Any, file: str) -> None:
    """Refuse pixels without a size and rows that are not square to the columns, which GDCM passes over.

    Where a file says nothing of these, as photographs in DICOM, there is nothing to check.
    """
    remedy = "Its header is damaged: export it again."
    spacing, turn = _numbers(header, _SPACING), _numbers(header, _ORIENTATION)
    if spacing is not None and not (np.isfinite(spacing).all() and spacing.min() > 0):
        raise InputError("a pixel has no size", file=file, value=_tag(header, _SPACING), remedy=remedy)
    if turn is None:
        return
    row, column = turn[:3], turn[3:]
    products = np.array([row @ row, column @ column, row @ column]) if len(turn) == 6 else np.zeros(3)
    if not np.abs(products - (1, 1, 0)).max() < 0.01:
        problem = "its rows and columns do not stand square to each other (Image Orientation)"
        raise InputError(problem, file=file, value=_tag(header, _ORIENTATION), remedy=remedy)


def _numbers(header: Any, key: str) -> np.ndarray | None:
    """The numbers of a tag; NaN where it holds something else, None where it is missing or empty."""
    text = _tag(header, key)
    try:
        return np.array([float(part) for part in text.split("\\")]) if text else None
    except ValueError:
        return np.array([np.nan])


def _check_stack(path: Path, files: list[str], reader: Any) -> None:
    """Refuse a series whose slices do not stand parallel, once each, and evenly behind one another."""
    remedy = "Choose a complete series, or make an even one from it in 3D Slicer (DICOM module)."
    places, turns = [], []
    for n in range(len(files)):
        if not (reader.HasMetaDataKey(n, _POSITION) and reader.HasMetaDataKey(n, _ORIENTATION)):
            raise InputError("a slice does not say where it lies", file=files[n], remedy=remedy)
        places.append([float(part) for part in reader.GetMetaData(n, _POSITION).split("\\")])
        turns.append([float(part) for part in reader.GetMetaData(n, _ORIENTATION).split("\\")])
    if np.abs(np.array(turns) - turns[0]).max() > 1e-3:
        raise InputError("the slices of the series are not parallel", file=path, remedy=remedy)
    row, column = np.array(turns[0][:3]), np.array(turns[0][3:])
    steps = np.diff(np.array(places), axis=0)
    along = steps @ np.cross(row, column)
    step = float(np.median(along))
    if abs(step) < 1e-4 or (np.abs(along) < 1e-4).any():
        raise InputError("several slices of the series lie at the same place", file=path, remedy=remedy)
    uneven = np.abs(along - step) > max(0.05 * abs(step), 0.01)
    if uneven.any():
        n = int(np.argmax(uneven))
        raise InputError(
            "the slices of the series are not evenly spaced, some may be missing",
            file=path,
            value=f"{abs(along[n]):g} mm after slice {n}, {abs(step):g} mm elsewhere",
            remedy=remedy,
        )
    aside = steps - np.outer(along, np.cross(row, column))
    if np.linalg.norm(aside, axis=1).max() > 0.01 * abs(step) + 0.01:
        raise InputError(
            "the slices of the series are shifted sideways (gantry tilt)", file=path, remedy=remedy
        )


def _header(file: str) -> Any:
    """A SimpleITK reader that has read the header of a DICOM image, or None where there is none."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader


def _tag(reader: Any, key: str) -> str:
    text = str(reader.GetMetaData(key)) if reader.HasMetaDataKey(key) else ""
    raw = text.encode("utf-8", "surrogateescape")  # bytes that are not UTF-8 come as lone surrogates
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.strip("\0 ")


def _listed(found: dict[str, list[str]]) -> str:
    lines = []
    for uid, files in found.items():
        header = _header(files[0])
        number, words, modality = (_tag(header, key) for key in (_NUMBER, _DESCRIPTION, _MODALITY))
        words = words or "no description"
        lines.append(f"  {uid}  number {number or '?'}, {modality or '?'}, {len(files)} files, {words}")
    return "\n".join(lines)
