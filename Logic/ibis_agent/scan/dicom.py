"""Reading DICOM: one series of a folder, or one file → a Scan.

This module finds the series and their files; reading a header is in dicom_header, building a stack from frames in
dicom_stack, and reading voxels in dicom_pixels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import check_size, stem
from ibis_agent.scan.dicom_choice import Choice
from ibis_agent.scan.dicom_header import Frame, Header, NotAnImage, looks_like_dicom, read_header
from ibis_agent.scan.dicom_pixels import check_lengths, colours_of, same_values, voxels_of
from ibis_agent.scan.dicom_stack import square, stacked
from ibis_agent.scan.dicom_values import quietly
from ibis_agent.scan.geometry import check_affine
from ibis_agent.scan.photograph import colour_picture
from ibis_agent.scan.scan import Scan

_MOST_FOLDERS = 1000


def read_dicom_folder(path: Path, series: str | None = None) -> Scan:
    """The one series of a folder, or the one that `series` names (see dicom_choice).

    A series may be distributed over subfolders, and links are followed. If the folder itself contains images, only
    their series are considered. Raises InputError, which lists the series if there are several.
    """
    choice = Choice.read(series, path)
    return _read(path, _headers_of(path, choice), choice)


def read_dicom_file(path: Path, series: str | None = None) -> Scan:
    """One DICOM file as a volume: one slice, or all the frames of a multi-frame file. Raises InputError."""
    choice = Choice.read(series, path)
    return _read(path, _headers_of(path, choice), choice)


def frames_of_scan(path: Path, series: str | None = None) -> list[Frame]:
    """The frames that a scan was read from, in the order of its slices. Arguments as for `load_scan`. Raises
    InputError."""
    choice = Choice.read(series, path)
    return _placed(path, _headers_of(path, choice), choice)[0]


def _headers_of(path: Path, choice: Choice) -> list[Header]:
    """The headers of the chosen series of a folder, or of a file. Raises InputError."""
    if not path.is_dir():
        try:
            header = read_header(path)
        except NotAnImage as kind:
            remedy = "Give the scan that it belongs to; masks are read as NIfTI, NRRD or .seg.nrrd."
            problem = "the DICOM file contains no readable image"
            raise InputError(problem, file=path, value=_kind(kind.sop_class), remedy=remedy) from kind
        if choice.uid not in (None, header.series):
            problem, remedy = "the file belongs to another series", f"It belongs to {header.series}."
            raise InputError(problem, file=path, value=choice.uid, remedy=remedy)
        return [header]
    found = _find_series(path)
    if not found:
        raise InputError(
            "the folder contains no DICOM images",
            file=path,
            remedy="Give the folder with the slices, or a scan file.",
        )
    if choice.uid is None and len(found) > 1:
        raise InputError(
            f"the folder contains {len(found)} series",
            file=path,
            remedy=f"Choose one of them with --series UID:\n{_listed(found)}",
        )
    if choice.uid is not None and choice.uid not in found:
        raise InputError(
            "the folder has no such series",
            file=path,
            value=choice.uid,
            remedy=f"It contains:\n{_listed(found)}",
        )
    return found[choice.uid if choice.uid is not None else next(iter(found))]


def _find_series(path: Path) -> dict[str, list[Header]]:
    """Series UID → the headers of its files."""
    found: dict[str, list[Header]] = {}
    own: set[str] = set()  # the series directly in the folder
    others: list[tuple[Path, str]] = []
    refused: list[InputError] = []
    for file in _files(path):
        head = _head(file)
        if not looks_like_dicom(head):
            if len(head) < 132 and file.suffix.lower() in (".dcm", ".ima"):
                refused.append(_unreadable(file))
            continue
        try:
            header = read_header(file)
        except NotAnImage as kind:
            others.append((file, kind.sop_class))
            continue
        except InputError as error:
            refused.append(error)
            continue
        found.setdefault(header.series, []).append(header)
        if file.parent == path:
            own.add(header.series)
    if own:
        found = {uid: headers for uid, headers in found.items() if uid in own}
    if not found:
        if refused:
            raise refused[0]
        return found
    _check_all_known(path, found, others, refused, bool(own))
    return found


def _check_all_known(
    path: Path,
    found: dict[str, list[Header]],
    others: list[tuple[Path, str]],
    refused: list[InputError],
    only_own: bool,
) -> None:
    """Refuse a folder with an unreadable slice: without it, the scan would be incomplete.

    A file without an image but with the same SOP class as the slices is a truncated slice; reports and directories have
    other classes.
    """
    folders = {header.file.parent for headers in found.values() for header in headers}
    classes = {header.sop_class for headers in found.values() for header in headers} - {""}
    for file, sop_class in others:
        if file.parent in folders and (sop_class in classes or not sop_class):
            raise _unreadable(file)
    for error in refused:
        if error.file is not None and (Path(error.file).parent in folders or not only_own):
            raise error


def _unreadable(file: Path) -> InputError:
    return InputError(
        "a slice in the folder cannot be read; it may be cut off",
        file=file,
        remedy="Copy the folder again, or remove the file from it.",
    )


def _files(path: Path) -> Iterator[Path]:
    """All possible image files in a folder and its subfolders, following links, sorted by name.

    Each file is listed only once, even if several links lead to it.
    """
    seen: set[str] = set()
    files: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if len(seen) > _MOST_FOLDERS:
            raise InputError(
                "the folder has too many subfolders to look through",
                file=path,
                remedy="Give the folder of the series.",
            )
        folders.sort()
        for name in sorted(names):
            if name.startswith(".") or name == "DICOMDIR":
                continue
            file = Path(folder) / name
            there = os.path.realpath(file)
            if there not in files and os.path.isfile(there):
                files.add(there)
                yield file


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(256)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Check its permissions."
        raise InputError("cannot be read", file=file, value=reason, remedy=remedy) from error


def _read(path: Path, headers: Sequence[Header], choice: Choice) -> Scan:
    first = headers[0]
    notes = [*dict.fromkeys(note for header in headers for note in header.notes)]
    if first.colour and len(headers) == 1:
        return _colours(path, first)
    frames, affine, told = _placed(path, headers, choice)
    voxels = voxels_of(frames, {header.file: header for header in headers})
    return Scan(
        voxels.transpose(1, 0, 2),
        check_affine(affine, path),
        "volume",
        path,
        first.description or stem(path),
        first.modality,
        sized=frames[0].spacing is not None,
        inverted=first.inverted,
        notes=(*notes, *filter(None, [choice.note(frames[0])]), *told),
    )


def _placed(
    path: Path, headers: Sequence[Header], choice: Choice
) -> tuple[list[Frame], np.ndarray, list[str]]:
    """(the chosen frames in order, voxel → RAS mm, notes). Raises InputError."""
    by_file = {header.file: header for header in headers}
    frames = choice.among(path, [frame for header in headers for frame in header.frames])
    headers = [by_file[file] for file in dict.fromkeys(frame.file for frame in frames)]
    first = headers[0]
    for header in headers:
        if header.colour:
            raise InputError(
                "the series contains colour images" + ("" if first.colour else " besides grey ones"),
                file=path,
                value=f"{len(headers)} images, such as {header.file.name}",
                remedy="Give the file of a single image.",
            )
        if header.shape != first.shape:
            raise InputError(
                "the images of the series have different sizes",
                file=path,
                value=" and ".join(f"{h.file.name} {h.shape[1]} × {h.shape[0]}" for h in (first, header)),
                remedy="Remove localizers and other images, or choose a complete series.",
            )
        if header.modality != first.modality:
            names = f"{first.file.name} {first.modality}, {header.file.name} {header.modality}"
            raise InputError(
                "the images of the series have several modalities", file=path, value=names,
                remedy="Remove the others, or choose a complete series.",
            )  # fmt: skip
        if header.inverted != first.inverted:
            names = f"{first.file.name} and {header.file.name}"
            raise InputError(
                "some images show low values bright, others dark", file=path, value=names,
                remedy="Choose a series with only one kind.",
            )  # fmt: skip
    check_size((first.shape[1], first.shape[0], len(frames)), path)
    check_lengths(headers)
    notes = []
    if frames[0].spacing is None:
        notes.append("the file contains no pixel size: measurements are in pixels")
    if len(frames) == 1:
        if frames[0].position is None or frames[0].orientation is None:
            notes.append("the file contains no position: placed at the origin")
        return frames, _alone(first, frames[0]), notes
    references = {header.reference for header in headers if header.reference}
    if len(references) > 1:
        notes.append(f"the slices have {len(references)} frames of reference: treated as one")
    kept, affine, told = stacked(path, frames, lambda a, b: same_values(a, b, by_file))
    return kept, affine, [*told, *notes]


def _colours(path: Path, header: Header) -> Scan:
    check_lengths([header])
    picture = colour_picture(colours_of(header), header.file)
    return dataclasses.replace(
        picture,
        path=path,
        name=header.description or stem(header.file),
        modality=header.modality,
        notes=("a colour image: measurements are in pixels",),
    )


def _alone(header: Header, frame: Frame) -> np.ndarray:
    """The affine of one slice; missing values default to 1 mm, axis-aligned, at the origin."""
    turn = np.array([1.0, 0, 0, 0, 1, 0]) if frame.orientation is None else frame.orientation
    rows, columns = (1.0, 1.0) if frame.spacing is None else frame.spacing
    affine = np.eye(4)
    affine[:3, :3] = square(turn).T * (columns, rows, abs(header.gap or 1.0))
    affine[:3, 3] = 0 if frame.position is None else frame.position
    affine[:2] *= -1
    return affine


def _kind(sop_class: str) -> str | None:
    from pydicom.uid import UID

    with quietly():
        return UID(sop_class[:64]).name or None


def _listed(found: dict[str, list[Header]]) -> str:
    lines = []
    for uid, headers in found.items():
        one = headers[0]
        words, count = one.description or "no description", f"{len(headers)} files"
        count += ", in colour" if one.colour else ""
        lines.append(f"  {uid}  number {one.number or '?'}, {one.modality or '?'}, {count}, {words}")
    return "\n".join(lines)
