"""A DICOM measurement report (SR following template TID 1500, with highdicom) about the segments of a DICOM SEG.

For research: marked as neither complete nor verified. Lengths and areas in mm, volumes in mL, grey values in HU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent import __version__
from ibis_agent.files import atomic_write
from ibis_agent.mask.dicom_source import MAKER, MODEL, frames_of, images_of
from ibis_agent.mask.measurements import Measurements
from ibis_agent.mask.structures import TISSUE, Structure


def write_report(
    path: str | os.PathLike[str],
    seg: Path,
    found: Sequence[tuple[Measurements, Structure | None]],
    scan: Path,
    affine: np.ndarray,
    shape: Sequence[int],
    series: str | None = None,
) -> Path:
    """Write the report atomically: a group of measurements for each segment.

    Args:
        seg: the DICOM SEG.
        found: the measurements and the structure of each of its segments, in their order.
        scan, affine, series: as in `write_dicom_seg`.
        shape: (I, J, K) voxels of the scan.

    Raises InputError if the scan is not DICOM, and OutputError.
    """
    import highdicom
    from highdicom import sr
    from pydicom.sr.codedict import codes

    segmentation = highdicom.seg.segread(seg)
    images = images_of(frames_of(scan, affine, shape, series))
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=highdicom.UID(), name=MODEL, manufacturer_name=MAKER, model_name=MODEL
    )
    context = sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )
    groups = [
        _group(segmentation, number, measured, structure, images[0].SeriesInstanceUID)
        for number, (measured, structure) in enumerate(found, 1)
    ]
    ct = any(measured.value_unit == "HU" for measured, _ in found)
    content = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion if ct else codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = sr.Comprehensive3DSR(
        evidence=[segmentation, *images],
        content=content,
        series_instance_uid=highdicom.UID(),
        series_number=902,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MAKER,
        series_description=f"{MAKER} measurements, research use only",
    )
    with atomic_write(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)
    return Path(path)


def _group(
    segmentation: Any, number: int, measured: Measurements, structure: Structure | None, series: str
) -> Any:
    """The group of one segment, numbered from 1. series: the UID of the images."""
    import highdicom
    from highdicom import sr

    code = (structure and structure.code) or TISSUE
    label = str(segmentation.SegmentSequence[number - 1].SegmentLabel)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier=label),
        referenced_segment=sr.ReferencedSegment(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(series),
        ),
        finding_type=sr.CodedConcept(code.value, code.scheme, code.meaning),
        algorithm_id=sr.AlgorithmIdentification(name=MODEL, version=__version__),
        measurements=list(_measurements(measured)),
    )


def _measurements(measured: Measurements) -> Iterator[Any]:
    from highdicom.sr import CodedConcept, Measurement
    from pydicom.sr.codedict import codes

    def one(name: Any, value: float | None, unit: Any, derivation: Any = None) -> Iterator[Any]:
        if value is not None:
            yield Measurement(name=name, value=round(float(value), 4), unit=unit, derivation=derivation)

    mm = codes.UCUM.Millimeter
    yield from one(codes.SCT.Volume, measured.volume_ml, CodedConcept("mL", "UCUM", "milliliter"))
    if measured.unit == "mm":
        yield from one(codes.SCT.Area, measured.area, codes.UCUM.SquareMillimeter)
        yield from one(codes.SCT.LongAxis, measured.longest, mm)
        yield from one(codes.SCT.ShortAxis, measured.perpendicular, mm)
        yield from one(CodedConcept("L0JK", "IBSI", "Maximum 3D Diameter"), measured.longest_3d, mm)
    if measured.value_unit == "HU":
        attenuation, unit = codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit
        yield from one(attenuation, measured.mean, unit, codes.SCT.Mean)
        yield from one(attenuation, measured.deviation, unit, codes.SCT.StandardDeviation)
