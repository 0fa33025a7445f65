"""Writing masks with the correct geometry for other programs.

A volume's mask is written on the scan's own grid: the same index order, the same affine; a NIfTI mask of a NIfTI scan
gets its sform, qform, codes and unit. Formats: NIfTI, NRRD, 3D Slicer's segmentation (.seg.nrrd) with name and colour,
PNG for pictures, and DICOM (see dicom_files). Several structures are written as one label file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ibis_agent.errors import InputError, OutputError
from ibis_agent.files import atomic_write
from ibis_agent.mask.structures import Structure
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import FOREST_GREEN

if TYPE_CHECKING:
    from ibis_agent.scan.nifti_place import NiftiPlace
    from ibis_agent.scan.scan import Scan

DICOM_SUFFIXES = {".seg.dcm": "dicom-seg", ".rtstruct.dcm": "rtstruct"}  # see dicom_files
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", *DICOM_SUFFIXES)
PICTURE_SUFFIXES = (".png",)


@dataclass(frozen=True)
class Named:
    """A label: the segment's name, its 0-255 RGB colour, and the coded structure if known."""

    name: str = "Segment"
    colour: Sequence[int] = FOREST_GREEN
    structure: Structure | None = None


def check_mask_path(path: str | os.PathLike[str], kind: str = "volume", scan: Path | None = None) -> str:
    """The suffix of a mask file, after checking that it is possible for this kind of scan ("volume" or "picture").

    scan: its DICOM file or folder, which a DICOM SEG or RTSTRUCT references.
    Raises InputError naming the possible suffixes, and OutputError if a folder has the name.
    """
    name = Path(path).name.lower()
    possible = PICTURE_SUFFIXES if kind == "picture" else VOLUME_SUFFIXES
    for suffix in possible:
        if name.endswith(suffix) and name != suffix:
            if os.path.isdir(path):  # unlike Path.is_dir, it accepts impossible file names
                raise OutputError("is a folder, not a file", file=path, remedy="Choose another file name.")
            if suffix in DICOM_SUFFIXES:
                from ibis_agent.mask.dicom_files import check_dicom

                check_dicom(DICOM_SUFFIXES[suffix], scan)
            return suffix
    if kind != "picture" and name.endswith(PICTURE_SUFFIXES):
        problem = "a PNG cannot store the position of the mask in the scan"
    elif kind == "picture" and name.endswith(VOLUME_SUFFIXES):
        problem = "a picture has no position in space, which this file format needs"
    else:
        problem = "masks cannot be written in this file format"
    raise InputError(problem, file=path, remedy=f"End the name in {' or '.join(possible)}.")


def write_mask(
    path: str | os.PathLike[str],
    mask: np.ndarray,
    source: Scan | PictureGeometry,
    *,
    name: str = "Segment",
    colour: Sequence[int] = FOREST_GREEN,
    structure: Structure | None = None,
    dicom: tuple[Path, str | None] | None = None,
) -> Path:
    """Write a mask atomically, in the format of its suffix. Returns the path.

    Args:
        mask: (I, J, K) in the scan's index order, or (H, W) if `source` is a picture or a PictureGeometry, which
            determines the slice of the mask. Everything except zero is inside.
        source: the scan, or the geometry of a slice of it. With the geometry of a slice, a .png contains the (H, W)
            mask as displayed.
        name, colour: of the segment in a .seg.nrrd; 0-255 RGB.
        structure: adds the coded name to a .seg.nrrd and to DICOM.
        dicom: the scan's DICOM file or folder, and which series of it; for .seg.dcm and .rtstruct.dcm.

    Raises InputError before anything is written, and OutputError if writing fails.
    """
    segment = Named(name, colour, structure)
    return write_labels(path, np.asarray(mask) != 0, source, [segment], dicom=dicom)


def write_labels(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    source: Scan | PictureGeometry,
    segments: Sequence[Named],
    *,
    dicom: tuple[Path, str | None] | None = None,
) -> Path:
    """Write the masks of several structures as one file, like `write_mask` for one. Returns the path.

    labels: 0 outside, and n inside `segments[n - 1]`; at most 255. An empty structure has a segment in a .seg.nrrd, but
    none in DICOM. A .png of several structures is coloured, and its values are the labels.
    """
    alone = len(segments) == 1
    mask = np.asarray(labels, dtype=np.uint8)
    if isinstance(source, PictureGeometry):
        flat, shape, affine = source.plane == "picture", source.shape, source.affine
        picture_shape: tuple[int, ...] = (source.height, source.width)
    else:
        flat, shape, affine = source.kind == "picture", source.voxels.shape, source.affine
        picture_shape = source.voxels.shape[:2] if flat else ()
    as_picture = mask.ndim == 2 and (flat or Path(path).name.lower().endswith(".png"))
    suffix = check_mask_path(path, "picture" if as_picture or flat else "volume", dicom and dicom[0])
    expected = picture_shape if mask.ndim == 2 and picture_shape else tuple(shape)
    if mask.shape != expected or (mask.ndim == 3 and flat):
        raise InputError(
            "the mask and the scan have different shapes", file=path, value=f"{mask.shape} for {expected}"
        )
    if suffix == ".png":
        _write_png(path, mask, None if alone else [each.colour for each in segments])
        return Path(path)
    voxels = mask
    if mask.ndim == 2 and isinstance(source, PictureGeometry):
        voxels = np.zeros(shape, np.uint8)
        source.extract(voxels)[...] = mask
    if suffix in DICOM_SUFFIXES:
        from ibis_agent.mask.dicom_files import Segment, write_dicom_seg, write_rtstruct

        write, (scan, series) = (
            write_dicom_seg if suffix == ".seg.dcm" else write_rtstruct,
            dicom or (Path(), None),
        )
        shown = [(n, each) for n, each in enumerate(segments, 1) if alone or (voxels == n).any()]
        parts = [Segment(voxels == n, each.name, each.colour, each.structure) for n, each in shown]
        return write(path, parts, scan, affine, series)
    if suffix in (".nii", ".nii.gz"):
        _write_nifti(path, voxels, affine, source.place)
    else:
        if source.place is not None and source.place.itk:
            affine = np.reshape(source.place.itk, (4, 4))
        fields = segment_fields(voxels, affine, segments) if suffix == ".seg.nrrd" else {}
        _write_nrrd(path, voxels, affine, fields)
    return Path(path)


def segment_fields(
    voxels: np.ndarray,
    affine: np.ndarray,
    segments: Sequence[Named],
) -> dict[str, str]:
    """The header fields that make an NRRD label map a segmentation, as documented by 3D Slicer.

    See its developer guide (segmentations, "Segmentation labelmap file format") and
    vtkMRMLSegmentationStorageNode.
    """
    last = [side - 1 for side in voxels.shape]
    extent = f"0 {last[0]} 0 {last[1]} 0 {last[2]}"
    # Without the reference geometry, an export from Slicer would be cropped to the segment.
    matrix = "".join(f"{float(value)!r};" for value in np.asarray(affine).ravel())
    reference = f"Reference image geometry|{matrix}{extent.replace(' ', ';')};|Geometry of the scan&"
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": reference,
        # Renamed between Slicer versions; each reads the one it knows.
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for n, each in enumerate(segments):
        terminology = each.structure.terminology() if each.structure else None
        entry = f"TerminologyEntry:{terminology}|" if terminology else ""
        own = {
            "ID": f"Segment_{n + 1}",
            "Name": " ".join(each.name.split()) or "Segment",
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{min(max(float(part), 0), 255) / 255:.6g}" for part in each.colour),
            "ColorAutoGenerated": "0",
            "Extent": extent,
            "LabelValue": str(n + 1),
            "Layer": "0",
            "Tags": f"Segmentation.Status:completed|{entry}",
        }
        fields |= {f"Segment{n}_{key}": value for key, value in own.items()}
    return fields


def _write_png(
    path: str | os.PathLike[str], mask: np.ndarray, colours: Sequence[Sequence[int]] | None
) -> None:
    from PIL import Image

    image = Image.fromarray(mask * 255 if colours is None else mask)
    if colours is not None:
        image.putpalette([0, 0, 0, *(int(part) for colour in colours for part in colour)])
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def _write_nifti(
    path: str | os.PathLike[str], voxels: np.ndarray, affine: np.ndarray, place: NiftiPlace | None
) -> None:
    import nibabel

    if place is not None:  # a mask gets both transforms of its NIfTI scan, whichever a program uses
        second = place.version == 2
        header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header)()
        header.set_data_dtype(np.uint8)
        header.set_data_shape(voxels.shape)
        place.fill(header)
        image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(voxels, None, header)
    else:
        image = nibabel.Nifti1Image(voxels, affine)
        # Both transforms with code 1 (scanner): some programs read only one of them.
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm")
    with atomic_write(path) as temporary:
        nibabel.save(image, temporary)


def _write_nrrd(
    path: str | os.PathLike[str], voxels: np.ndarray, affine: np.ndarray, fields: dict[str, str]
) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose()))
    columns = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(affine)[:3]
    spacing = np.linalg.norm(columns[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(columns[:, 3].tolist())
    for key, value in fields.items():
        image.SetMetaData(key, value)
    with atomic_write(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            reason = str(error).rsplit("ERROR:", 1)[-1].strip()
            raise OutputError(
                "cannot be written",
                file=path,
                value=reason[:160],
                remedy="Check the free disk space, or choose another disk.",
            ) from error
