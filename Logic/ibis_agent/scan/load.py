"""Choosing the reader of a scan: from the type of the path, its extension, and its first bytes.

Each reader (dicom, itk, nifti, npz, photograph) first checks the header, then decodes the voxels once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import suffix_of
from ibis_agent.scan.scan import Scan

_KINDS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".seg.nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".npz": ".npz",
    ".dcm": "DICOM",
    ".ima": "DICOM",
}
_WRAPPED = {".nii.gz": "gzip", ".npz": "zip"}
_READABLE = (
    "Supported are PNG, JPEG, NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha, .mhd), .npz, and DICOM folders."
)
Reader = Callable[[Path, str | None], Scan]


def load_scan(
    path: str | os.PathLike[str], *, series: str | None = None, modality: str | None = None
) -> Scan:
    """Read a PNG or JPEG, NIfTI, NRRD, MetaImage, MedSAM2-style .npz, or a DICOM folder.

    Args:
        series: which series of a DICOM folder, by its UID, and which of several images at each position, such as
            "EchoTime=4.6"; needed only if there are several (see dicom_choice).
        modality: modality of the scan, such as "CT" or "MR", overriding the file.

    Raises InputError naming the file, what is wrong with it, and the remedy. Problems in the header are
    reported before the voxels are read.
    """
    path = Path(path)
    try:
        there = path.exists()
    except (OSError, ValueError):  # the name is too long, or contains a zero byte
        there = False
    if not there:
        raise InputError("there is no such file", file=path, remedy="Check the path.")
    path = _beside_directory(path)
    named, reader = None if modality is None else check_modality(modality), reader_for(path)
    if series is not None and not reader.__module__.endswith(".dicom"):
        raise InputError("a series can be chosen only for DICOM images", file=path, value=series)
    scan = reader(path, series)
    return scan if named is None else scan.taken_as(named)


def check_modality(modality: str) -> str:
    """A modality in capitals, as DICOM writes them. Raises InputError."""
    if not re.fullmatch(r"[A-Za-z]{2,16}", modality.strip()):
        remedy = "Use a DICOM modality: CT, MR, PT, US, CR, DX, NM."
        raise InputError("this is not a modality", value=modality, remedy=remedy)
    return modality.strip().upper()


def load_labels(path: str | os.PathLike[str]) -> Scan:
    """Read a volume's label map; the voxels of a NIfTI file become whole numbers. Raises InputError."""
    path = Path(path)
    if path.is_file() and suffix_of(path) in (".nii", ".nii.gz"):
        reader_for(path)
        from ibis_agent.scan.nifti import read_nifti_labels

        return read_nifti_labels(path)
    return load_scan(path)


def _beside_directory(path: Path) -> Path:
    """The folder of a DICOMDIR, which lists the scans beside it; any other path unchanged."""
    if path.name.upper() == "DICOMDIR" and path.is_file():
        from ibis_agent.scan.dicom_header import is_directory

        if is_directory(path):
            return path.parent
    return path


def reader_for(path: Path) -> Reader:
    """The reader for `path`. Raises InputError for an unknown or wrong extension."""
    if path.is_dir():
        from ibis_agent.scan.dicom import read_dicom_folder

        return read_dicom_folder
    if not path.is_file():
        raise InputError("is neither a file nor a folder", file=path, remedy=_READABLE)
    suffix = suffix_of(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            "cannot be read", file=path, value=reason, remedy="Check its permissions."
        ) from error
    if not head:
        raise InputError("the file is empty", file=path, remedy="Export or copy it again.")
    contents = _contents(head)
    if not contents and suffix in (".dcm", ".ima") and head[:2] in (b"\x08\0", b"\x02\0"):
        contents = "DICOM"  # without its preamble, as written by older programs
    # DICOM file names often end in a number, which is not an extension.
    kind = _KINDS.get(suffix, "DICOM" if contents == "DICOM" else None)
    if kind is None:
        raise InputError(
            "this file format is not supported", file=path, value=suffix or "no extension", remedy=_READABLE
        )
    if contents != (_WRAPPED.get(suffix, kind)):
        what = f"it contains {contents} data" if contents else "its contents have another format"
        raise InputError(
            f"is not a {kind} file: {what}",
            file=path,
            remedy="Correct the file extension, or export the scan again.",
        )
    return _reader(kind)


def _reader(kind: str) -> Reader:
    # Imported when needed: nibabel and SimpleITK are slow to import, and a picture needs neither.
    if kind in ("PNG", "JPEG"):
        from ibis_agent.scan.photograph import read_photograph

        return read_photograph
    if kind == "NIfTI":
        from ibis_agent.scan.nifti import read_nifti

        return read_nifti
    if kind in ("NRRD", "MetaImage"):
        from ibis_agent.scan.itk import read_itk

        return read_itk
    if kind == ".npz":
        from ibis_agent.scan.npz import read_npz

        return read_npz
    from ibis_agent.scan.dicom import read_dicom_file

    return read_dicom_file


def _contents(head: bytes) -> str:
    """The file format recognised from the first 512 bytes; empty if unknown."""
    for magic, kind in (
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x1f\x8b", "gzip"),
        (b"NRRD000", "NRRD"),
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"%PDF", "PDF"),
        (b"\x89HDF", "HDF5"),
        (b"\x93NUMPY", "npy"),
    ):
        if head.startswith(magic):
            return kind
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0":
        return "NIfTI"
    start = head.lstrip()[:60].lower()
    if start.startswith((b"objecttype", b"ndims", b"comment")) and b"=" in start:
        return "MetaImage"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "web page"
    return ""
