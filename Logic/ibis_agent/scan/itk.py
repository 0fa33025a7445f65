"""Reading NRRD and MetaImage with SimpleITK → a Scan; helpers shared with DICOM."""

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
    header = _header(path)
    _check_data_file(path, header)
    try:
        reader.ReadImageInformation()
        check_itk_header(reader, path)
        if suffix not in (".mhd", ".nhdr") and not _packs_without_limit(path):
            check_length(path, math.prod(reader.GetSize()))
        image = reader.Execute()
    except RuntimeError as error:
        raise damaged(path, error) from error
    notes = _unsized(header)
    voxels, affine = voxels_and_affine(image, path)
    return Scan(voxels, affine, "volume", path, stem(path), sized=not notes, notes=tuple(notes))


def _header(path: Path) -> str:
    """The text at the beginning of an NRRD or MetaImage file."""
    with path.open("rb") as stream:
        head = stream.read(2**16)
    return re.split(rb"\n\r?\n|(?<=LOCAL)\s", head, maxsplit=1)[0].decode("latin-1")


def _check_data_file(path: Path, header: str) -> None:
    """Refuse a header whose voxels are in a separate file that is missing."""
    if suffix_of(path) not in (".mhd", ".nhdr"):
        return
    name = _field(header, "ElementDataFile|data ?file")
    if not name or name.upper().startswith(("LOCAL", "LIST", "SKIPLIST")) or "%" in name:
        return
    data = path.parent / name.replace("\\", "/")
    if not data.is_file():
        raise InputError(
            "the file with its voxels is missing",
            file=path,
            value=name,
            remedy=f"Put {Path(name).name} beside it, or give a single file with everything (.mha, .nrrd).",
        )


def _unsized(header: str) -> list[str]:
    """A note if the voxel size in mm is unknown; otherwise empty."""
    size = _field(header, "space directions|spacings|ElementSpacing|ElementSize")
    if not size or "nan" in size.lower():
        return ["the file contains no voxel size: measurements are in pixels"]
    units = set(re.findall(r'"([^"]*)"', _field(header, "space units"))) - {"mm", "millimeter", "", "???"}
    if units:
        return [f"its lengths are in {min(units)}, not in mm: measurements are in pixels"]
    return []


def _field(header: str, names: str) -> str:
    found = re.search(rf"^\s*(?:{names})\s*[:=](?!=)\s*(.+?)\s*$", header, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


def _packs_without_limit(path: Path) -> bool:
    with path.open("rb") as stream:
        return b"bz" in stream.read(2048)  # bzip2


def check_itk_header(reader: Any, path: Path) -> None:
    """Refuse a file that is not a scalar volume, from the header. Raises InputError."""
    import SimpleITK as sitk

    if reader.GetNumberOfComponents() > 1:
        raise InputError(
            "the volume is in colour or contains vectors",
            file=path,
            value=f"{reader.GetNumberOfComponents()} values per voxel",
            remedy="Convert it to one grey value per voxel, or save a slice as a PNG.",
        )
    pixel = reader.GetPixelID()
    if pixel == sitk.sitkUnknown or "complex" in sitk.GetPixelIDValueAsString(pixel):
        raise InputError("the voxel type is not a grey value", file=path, remedy="Convert them to integers.")
    check_size(three_axes(reader.GetSize(), path), path)


def voxels_and_affine(image: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The (I, J, K) voxels and the RAS affine of a SimpleITK image with two to four dimensions."""
    import SimpleITK as sitk

    shape = three_axes(image.GetSize(), path)
    array = sitk.GetArrayFromImage(image)
    return native(array.transpose().reshape(shape)), check_affine(affine_of(image), path)


def affine_of(image: Any) -> np.ndarray:
    """The (4, 4) affine to RAS mm of a SimpleITK image, or of a reader after reading a header."""
    dimension = image.GetDimension()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)
    n = min(dimension, 3)
    affine[:n, :n] = direction[:n, :n] * np.array(image.GetSpacing())[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    affine[:2] *= -1
    return affine
