"""Reading NRRD and MetaImage through SimpleITK → a Scan; what DICOM shares with them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import check_length, check_size, damaged, native, stem, suffix_of, three_axes
from ibis_agent.scan.geometry import check_affine
from ibis_agent.scan.scan import Scan


def read_itk(path: Path, series: str | None = None) -> Scan:
    """An NRRD or MetaImage file; ITK's LPS becomes RAS. Raises InputError."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    suffix = suffix_of(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if suffix in (".mha", ".mhd") else "NrrdImageIO")
    _check_data_file(path)
    try:
        reader.ReadImageInformation()
        check_itk_header(reader, path)
        if suffix not in (".mhd", ".nhdr") and not _packs_without_limit(path):
            check_length(path, math.prod(reader.GetSize()))
        image = reader.Execute()
    except RuntimeError as error:
        raise damaged(path, error) from error
    return Scan(*voxels_and_affine(image, path), "volume", path, stem(path))


def _check_data_file(path: Path) -> None:
    """Refuse a header whose voxels lie in a file of their own that is not there."""
    if suffix_of(path) not in (".mhd", ".nhdr"):
        return
    with path.open("rb") as stream:
        head = stream.read(2**16).decode("latin-1")
    found = re.search(
        r"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", head, re.MULTILINE | re.IGNORECASE
    )
    name = found[1] if found else ""
    if not name or name.upper().startswith(("LOCAL", "LIST", "SKIPLIST")) or "%" in name:
        return
    data = path.parent / name.replace("\\", "/")
    if not data.is_file():
        raise InputError(
            "the file that holds its voxels is not there",
            file=path,
            value=name,
            remedy=f"Put {Path(name).name} beside it, or give a file that holds everything (.mha, .nrrd).",
        )


def _packs_without_limit(path: Path) -> bool:
    with path.open("rb") as stream:
        return b"bz" in stream.read(2048)  # bzip2


def check_itk_header(reader: Any, path: Path) -> None:
    """Refuse what a SimpleITK reader's header shows to be no scalar volume. Raises InputError."""
    import SimpleITK as sitk

    if reader.GetNumberOfComponents() > 1:
        raise InputError(
            "the volume is in colour or holds vectors",
            file=path,
            value=f"{reader.GetNumberOfComponents()} values a voxel",
            remedy="Convert it to one grey value a voxel, or save a slice as a PNG.",
        )
    pixel = reader.GetPixelID()
    if pixel == sitk.sitkUnknown or "complex" in sitk.GetPixelIDValueAsString(pixel):
        raise InputError(
            "the voxels are of a kind that is no grey value", file=path, remedy="Convert them to integers."
        )
    check_size(three_axes(reader.GetSize(), path), path)


def voxels_and_affine(image: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The (I, J, K) voxels and the RAS affine of a SimpleITK image of two, three, or four dimensions."""
    import SimpleITK as sitk

    shape = three_axes(image.GetSize(), path)
    array = sitk.GetArrayFromImage(image)
    return native(array.transpose().reshape(shape)), check_affine(affine_of(image), path)


def affine_of(image: Any) -> np.ndarray:
    """The (4, 4) affine to RAS mm of a SimpleITK image, or of a reader that has read a header."""
    dimension = image.GetDimension()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)
    n = min(dimension, 3)
    affine[:n, :n] = direction[:n, :n] * np.array(image.GetSpacing())[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    affine[:2] *= -1
    return affine
