"""Writes small DICOM series for the tests, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def write_slice(
    file: Path,
    pixels: np.ndarray,
    position: Sequence[float] | None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    series: str = "1.2.3.4",
    sop_class: str = CT_IMAGE,
    **tags: Any,
) -> None:
    """One CT slice of raw values (rows, columns), intercept -1024, pixels of 2 mm down and 1 mm right.

    position, orientation: LPS, as DICOM has them; None leaves both out.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(file)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID = sop_class
    slice_.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    slice_.StudyInstanceUID = "1.2.3"
    slice_.SeriesInstanceUID = series
    slice_.Modality = "CT"
    slice_.SeriesNumber = 3
    slice_.SeriesDescription = "Abdomen"
    if position is not None:
        slice_.ImagePositionPatient = [float(part) for part in position]
        slice_.ImageOrientationPatient = [float(part) for part in orientation]
    slice_.PixelSpacing = [2.0, 1.0]
    slice_.Rows, slice_.Columns = pixels.shape
    slice_.SamplesPerPixel = 1
    slice_.PhotometricInterpretation = "MONOCHROME2"
    slice_.BitsAllocated = slice_.BitsStored = 16
    slice_.HighBit = 15
    slice_.PixelRepresentation = 0
    slice_.RescaleSlope = 1
    slice_.RescaleIntercept = -1024
    slice_.PixelData = pixels.astype(np.uint16).tobytes()
    for key, value in tags.items():
        if value is None:
            delattr(slice_, key)
        else:
            setattr(slice_, key, value)
    slice_.save_as(file, enforce_file_format=True)


def write_series(folder: Path, volume: np.ndarray, prefix: str = "a", **tags: Any) -> Path:
    """A series of axial slices 3 mm apart from z = 20; `volume` (slices, rows, columns) of raw values.

    Names and instance numbers go against the order of the slices, so that only positions sort them.
    """
    folder.mkdir(exist_ok=True)
    for n, pixels in enumerate(volume):
        name = folder / f"{prefix}{len(volume) - n:03}.dcm"
        write_slice(name, pixels, (-10, 5, 20 + 3 * n), InstanceNumber=(n * 7) % 5 + 1, **tags)
    return folder


def write_frames(
    file: Path,
    slices: Sequence[tuple[np.ndarray, Sequence[float], Sequence[float], dict[str, Any]]],
    shared: dict[str, Any] | None = None,
) -> None:
    """An enhanced multi-frame CT of (pixels, position, orientation, tags) each, in that order.

    shared: tags of a rescale for all frames; a frame's own RescaleSlope and RescaleIntercept go before them.
    """
    kinds = [int(each[3].get("PixelRepresentation", 0)) for each in slices]
    raw = np.stack([each[0] for each in slices]).astype(np.uint16)
    write_slice(
        file,
        raw[0],
        None,
        sop_class="1.2.840.10008.5.1.4.1.1.2.1",
        PixelSpacing=None,
        RescaleSlope=None,
        RescaleIntercept=None,
        NumberOfFrames=len(slices),
        PixelRepresentation=kinds[0],
        PixelData=raw.tobytes(),
        SharedFunctionalGroupsSequence=[
            _group(
                PixelMeasuresSequence={"PixelSpacing": [2.0, 1.0]},
                **({"PixelValueTransformationSequence": shared} if shared else {}),
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            _group(
                PlanePositionSequence={"ImagePositionPatient": [float(p) for p in place]},
                PlaneOrientationSequence={"ImageOrientationPatient": [float(p) for p in turn]},
                **(
                    {
                        "PixelValueTransformationSequence": {
                            key: tags[key] for key in ("RescaleSlope", "RescaleIntercept")
                        }
                    }
                    if "RescaleSlope" in tags
                    else {}
                ),
            )
            for _, place, turn, tags in slices
        ],
    )


def _group(**sequences: dict[str, Any]) -> Dataset:
    group = Dataset()
    for name, tags in sequences.items():
        item = Dataset()
        for key, value in tags.items():
            setattr(item, key, value)
        setattr(group, name, [item])
    return group
