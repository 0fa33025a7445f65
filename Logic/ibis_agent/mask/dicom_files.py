"""Masks as DICOM: a segmentation (SEG, with highdicom) or structure set (RTSTRUCT), which reference the scan's images.

For research: both say so in their descriptions, and neither is marked as approved. They need `ibis-agent[dicom]`.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent import __version__
from ibis_agent.errors import InputError
from ibis_agent.files import atomic_write
from ibis_agent.mask.contours import contours_of
from ibis_agent.mask.dicom_source import INSTALL, MAKER, MAY_BE_EMPTY, MODEL, Frame, frames_of, images_of
from ibis_agent.mask.structures import TISSUE, Code, Structure
from ibis_agent.scan.checks import may_be_dicom
from ibis_agent.scan.picture import FOREST_GREEN

_RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_RESEARCH = "Research use only. Not for patients."


@dataclass(frozen=True, eq=False)
class Segment:
    """One structure: its (I, J, K) mask in the scan's index order, name, 0-255 RGB, and coded structure if known."""

    mask: np.ndarray
    name: str
    colour: Sequence[int] = FOREST_GREEN
    structure: Structure | None = None


def check_dicom(kind: str, scan: Path | None) -> None:
    """Check, before slow work, that a "dicom-seg" or "rtstruct" can be written: the scan is DICOM, and the packages are
    installed. Raises InputError.
    """
    import importlib.util

    needed = "highdicom" if kind == "dicom-seg" else "pydicom"
    if importlib.util.find_spec(needed) is None:
        raise InputError(f"{needed} is not installed", value=f"--mask-format {kind}", remedy=INSTALL)
    if scan is None:
        raise InputError(
            f"{kind} references DICOM images, and no scan is given", remedy="Give the DICOM folder."
        )
    if not may_be_dicom(scan):
        raise InputError(
            f"{kind} references DICOM images, but the scan is not DICOM",
            file=scan,
            remedy="Choose another --mask-format, or give the DICOM folder.",
        )


def write_dicom_seg(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    scan: Path,
    affine: np.ndarray,
    series: str | None = None,
) -> Path:
    """Write a DICOM SEG (binary, one segment per structure) atomically.

    Args:
        scan: the DICOM folder or file.
        affine: (4, 4) voxel → RAS mm of the scan.
        series: which series of the folder, as for `load_scan`.

    Raises InputError if the scan is not DICOM or all masks are empty, and OutputError.
    """
    try:
        import highdicom
        from highdicom.sr.coding import CodedConcept
        from pydicom.uid import ExplicitVRLittleEndian
    except ImportError as error:
        raise InputError("highdicom is not installed", remedy=INSTALL) from error
    frames = _frames(path, segments, scan, affine, series)
    pixels = np.stack([_in_frames(each.mask, frames, affine) for each in segments], axis=-1).astype(np.uint8)

    def concept(code: Code) -> Any:
        return CodedConcept(code.value, code.scheme, code.meaning)

    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_label(each.name),
            segmented_property_category=concept(each.structure.category if each.structure else TISSUE),
            segmented_property_type=concept((each.structure and each.structure.code) or TISSUE),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=MODEL,
                version=__version__,
                family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
            ),
            anatomic_regions=None
            if each.structure is None or each.structure.region is None
            else [concept(each.structure.region)],
            display_color=highdicom.color.CIELabColor.from_rgb(*(int(part) for part in each.colour)),
        )
        for number, each in enumerate(segments, 1)
    ]
    made = highdicom.seg.Segmentation(
        source_images=images_of(frames),
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=900,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MODEL,
        software_versions=__version__,
        device_serial_number="0",
        content_description=_RESEARCH,
        series_description=f"{MAKER} segmentation, research use only",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    with atomic_write(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)
    return Path(path)


def write_rtstruct(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    scan: Path,
    affine: np.ndarray,
    series: str | None = None,
) -> Path:
    """Write an RTSTRUCT of closed contours along the pixel edges, atomically. Arguments as for `write_dicom_seg`."""
    frames = _frames(path, segments, scan, affine, series)
    made = _empty_rtstruct(frames)
    rois: list[Any] = []
    contours: list[Any] = []
    observations: list[Any] = []
    for number, each in enumerate(segments, 1):
        reference = str(made.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID)
        rois.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=reference,
                ROIName=_label(each.name),
                ROIGenerationAlgorithm="SEMIAUTOMATIC",
            )
        )
        drawn = [
            _contour(polygon, frame)
            for frame, plane in zip(frames, _in_frames(each.mask, frames, affine), strict=True)
            for polygon in contours_of(plane)
        ]
        colour = [int(part) for part in each.colour]
        contours.append(_item(ROIDisplayColor=colour, ContourSequence=drawn, ReferencedROINumber=number))
        observations.append(
            _item(
                ObservationNumber=number,
                ReferencedROINumber=number,
                ROIObservationLabel=_label(each.name)[:16],
                RTROIInterpretedType="",
                ROIInterpreter="",
            )
        )
    made.StructureSetROISequence, made.ROIContourSequence = rois, contours
    made.RTROIObservationsSequence = observations
    with atomic_write(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)
    return Path(path)


def _frames(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    scan: Path,
    affine: np.ndarray,
    series: str | None,
) -> list[Frame]:
    if not any(np.any(each.mask) for each in segments):
        remedy = "Nothing was segmented; choose another --mask-format to keep the empty mask."
        raise InputError("an empty mask cannot be written as DICOM", file=path, remedy=remedy)
    return frames_of(scan, affine, segments[0].mask.shape, series)


def _in_frames(mask: np.ndarray, frames: Sequence[Frame], affine: np.ndarray) -> np.ndarray:
    """(frames, rows, columns) bool."""
    return np.stack([np.asarray(mask)[frame.voxels(affine, mask.shape)] != 0 for frame in frames])


def _label(name: str) -> str:
    return " ".join(name.replace("\\", "/").split())[:64] or "Segment"


def _item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    made = Dataset()
    for key, value in values.items():
        setattr(made, key, value)
    return made


def _reference(frame: Frame) -> Any:
    image = frame.dataset
    made = _item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)
    if frame.number is not None:
        made.ReferencedFrameNumber = frame.number
    return made


def _contour(polygon: np.ndarray, frame: Frame) -> Any:
    """polygon: (N, 2) of (column, row), pixel centres at whole numbers."""
    points = np.column_stack([polygon, np.zeros(len(polygon)), np.ones(len(polygon))]) @ frame.to_lps.T
    # A DICOM decimal string has at most 16 characters.
    texts = [f"{value:.4f}" for value in points[:, :3].ravel()]
    return _item(
        ContourImageSequence=[_reference(frame)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(polygon),
        ContourData=texts,
    )


def _empty_rtstruct(frames: Sequence[Frame]) -> Any:
    """The patient, the study and the referenced images, without any structure."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    image, now = frames[0].dataset, datetime.datetime.now()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(_RTSTRUCT_CLASS), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    if "SpecificCharacterSet" in image:
        made.SpecificCharacterSet = image.SpecificCharacterSet
    made.SOPClassUID, made.SOPInstanceUID = UID(_RTSTRUCT_CLASS), meta.MediaStorageSOPInstanceUID
    for key in MAY_BE_EMPTY:
        setattr(made, key, getattr(image, key))
    made.StudyInstanceUID, made.SeriesInstanceUID = image.StudyInstanceUID, generate_uid()
    made.Modality, made.SeriesNumber, made.InstanceNumber = "RTSTRUCT", 901, 1
    made.SeriesDescription = f"{MAKER} structures, research use only"
    made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = MAKER, MODEL, __version__
    made.OperatorsName = ""
    made.StructureSetLabel, made.StructureSetDescription = MAKER, _RESEARCH
    made.StructureSetDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
    made.StructureSetTime = made.InstanceCreationTime = now.strftime("%H%M%S")
    made.ApprovalStatus = "UNAPPROVED"
    made.FrameOfReferenceUID = reference = image.FrameOfReferenceUID
    series = _item(
        SeriesInstanceUID=image.SeriesInstanceUID,
        ContourImageSequence=[_reference(frame) for frame in frames],
    )
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # Detached Study Management, as usual in RTSTRUCTs
        ReferencedSOPInstanceUID=image.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    made.ReferencedFrameOfReferenceSequence = [
        _item(FrameOfReferenceUID=reference, RTReferencedStudySequence=[study])
    ]
    return made
