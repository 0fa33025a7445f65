"""The header of one DICOM file: its frames, each with position, orientation and its own rescale values.

A single slice is a file of one frame; in an enhanced multi-frame file, the groups of each frame are read, then the
shared ones. No voxels are read here, and nothing is guessed: missing values are None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import check_size
from ibis_agent.scan.dicom_values import REMEDY, dataset, first_item, numbers, quietly, text, whole_number

_SEGMENTATION, _DIRECTORY = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.1.3.10"
# Values that may distinguish frames at the same position: keyword → the functional group that contains it.
_APART = {
    "EchoTime": "",
    "EffectiveEchoTime": "MREchoSequence",
    "TemporalPositionIdentifier": "",
    "TemporalPositionIndex": "FrameContentSequence",
    "AcquisitionNumber": "",
    "DiffusionBValue": "MRDiffusionSequence",
    "TriggerTime": "",
    "NominalPercentageOfCardiacPhase": "",
    "StackID": "FrameContentSequence",
    "InversionTime": "",
    "FlipAngle": "",
    "EchoNumbers": "",
    "KVP": "",
    "ConvolutionKernel": "",
    "ImageType": "",
    "AcquisitionTime": "",
    "ContentTime": "",
}


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice of a file.

    Attributes:
        file, index: the location of its pixels.
        position: (3,) LPS mm of the centre of its first pixel, or None.
        orientation: (6,) directions of its rows and columns in LPS, or None.
        spacing: (2,) mm between rows and between columns, or None.
        slope, intercept: stored value → value.
        marks: values that may distinguish it from others at the same position, such as its echo time.
    """

    file: Path
    index: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: np.ndarray | None
    slope: float
    intercept: float
    marks: dict[str, str]


@dataclass(frozen=True, eq=False)
class Header:
    """One DICOM file with an image.

    Attributes:
        series, sop_class: UIDs.
        description, number, modality: as in the file, "" if missing.
        reference: UID of the coordinate system of its positions, or "".
        shape: (rows, columns).
        stored: (bits allocated, bits stored, high bit, whether signed).
        encoded: whether the pixels are compressed or otherwise encoded.
        inverted: low values are displayed bright (MONOCHROME1).
        colour: how its colours are stored, such as "RGB"; "" for grey values.
        gap: mm from slice to slice in the header, or None; negative if against the normal.
        frames: in the order of the file.
        notes: for the person, about how it was read.
    """

    file: Path
    series: str
    sop_class: str
    description: str
    number: str
    modality: str
    reference: str
    shape: tuple[int, int]
    stored: tuple[int, int, int, bool]
    encoded: bool
    inverted: bool
    colour: str
    gap: float | None
    frames: tuple[Frame, ...] = field(default=())
    notes: tuple[str, ...] = ()


class NotAnImage(Exception):  # noqa: N818 - such a file is valid
    """A DICOM file of another kind, such as a report; `sop_class` is its UID, "" if missing."""

    def __init__(self, sop_class: str) -> None:
        self.sop_class = sop_class
        super().__init__(sop_class)


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins like this may be DICOM, with or without its preamble."""
    bare = head[:2] in (b"\x08\0", b"\x02\0") and head[2:4] < b"\x20\0" and len(head) >= 8 and head[3] == 0
    return head[128:132] == b"DICM" or bare


def is_directory(file: Path) -> bool:
    """Whether a file is a DICOMDIR, which only lists the files around it."""
    try:
        with quietly():
            return text(dataset(file).file_meta, "MediaStorageSOPClassUID") == _DIRECTORY
    except (InputError, AttributeError):
        return False


def read_header(file: Path) -> Header:
    """The header of a DICOM image. Raises NotAnImage for another kind of DICOM file, InputError for an unusable one."""
    whole = dataset(file)
    try:
        with quietly():
            return _header(file, whole)
    except (InputError, NotAnImage):
        raise
    except Exception as error:
        raise InputError(
            "the DICOM header cannot be read; it may be damaged",
            file=file,
            value=" ".join(str(error).split())[:160] or type(error).__name__,
            remedy="Copy or export it again.",
        ) from error


def _header(file: Path, whole: Any) -> Header:
    meta: Any = getattr(whole, "file_meta", {})
    sop_class = text(meta, "MediaStorageSOPClassUID") or text(whole, "SOPClassUID")
    if "Rows" not in whole or "Columns" not in whole or sop_class in (_SEGMENTATION, _DIRECTORY):
        raise NotAnImage(sop_class)
    rows, columns, count = (whole_number(file, whole, each) for each in ("Rows", "Columns", "NumberOfFrames"))
    colour = _colour(file, whole, count)
    if min(rows, columns, count) < 1:
        raise InputError(
            "the image is empty", file=file, value=f"{columns} × {rows} × {count}", remedy=REMEDY
        )
    check_size((columns, rows, count), file)
    notes: list[str] = []
    spacing = _flat_spacing(file, whole, notes)
    per_frame, shared = _groups(file, whole, count)
    places, gap = _places(file, whole, count)
    frames = []
    for n in range(count):
        look = _Look(file, whole, per_frame[n] if per_frame else None, shared)
        slope, intercept = look.rescale()
        own = look.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
        frames.append(
            Frame(
                file,
                n,
                places[n] if places else look.numbers("PlanePositionSequence", _PLACE, 3),
                look.orientation(),
                spacing if own is None else _checked_spacing(file, own),
                slope,
                intercept,
                look.marks(),
            )
        )
    allocated = whole_number(file, whole, "BitsAllocated")
    stored = whole_number(file, whole, "BitsStored", allocated)
    high = whole_number(file, whole, "HighBit", stored - 1)
    signed = whole_number(file, whole, "PixelRepresentation") == 1
    if allocated not in (8, 16, 32, 64) or not 0 < stored <= allocated or not stored - 1 <= high < allocated:
        raise InputError(
            "the pixel format is not supported",
            file=file,
            value=f"{stored} bits up to bit {high} of {allocated}",
            remedy="Export it again with 8, 16 or 32 bits.",
        )
    return Header(
        file,
        text(whole, "SeriesInstanceUID"),
        sop_class,
        text(whole, "SeriesDescription"),
        text(whole, "SeriesNumber"),
        text(whole, "Modality"),
        text(whole, "FrameOfReferenceUID"),
        (rows, columns),
        (allocated, stored, high, signed),
        bool(meta and meta.get("TransferSyntaxUID") and meta.TransferSyntaxUID.is_compressed)
        and not str(meta.TransferSyntaxUID).startswith("1.2.840.10008.1.2.1.99"),  # decompressed on reading
        text(whole, "PhotometricInterpretation") == "MONOCHROME1",
        colour,
        gap,
        tuple(frames),
        tuple(notes),
    )


_COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def _colour(file: Path, whole: Any, frames: int) -> str:
    """How the colours of an image are stored, "" for grey values. Raises InputError for unsupported formats."""
    photometric = text(whole, "PhotometricInterpretation")
    samples = whole_number(file, whole, "SamplesPerPixel")
    grey = samples == 1 and photometric in ("MONOCHROME1", "MONOCHROME2", "")
    told = f"{samples} values per pixel, {photometric or 'colour type unknown'}"
    if not grey and (photometric not in _COLOURS or samples != (1 if photometric == "PALETTE COLOR" else 3)):
        remedy = "Convert it to one grey value per pixel, or save it as a PNG."
        raise InputError(
            "the colour format of the image is not supported", file=file, value=told, remedy=remedy
        )
    if not grey and frames > 1:
        remedy = "Save the frame as a PNG."
        raise InputError(
            "the file contains several colour frames",
            file=file,
            value=f"{frames} frames, {told}",
            remedy=remedy,
        )
    if "MOSAIC" in text(whole, "ImageType"):
        raise InputError(
            "the file contains many slices side by side in one image (mosaic)",
            file=file,
            remedy="Convert the series to NIfTI with dcm2niix, or export it from the scanner without mosaics.",
        )
    return "" if grey else photometric


class _Look:
    """Where a frame's values are stored: in its own group, in the shared group, or in the file itself."""

    def __init__(self, file: Path, whole: Any, own: Any, shared: Any) -> None:
        self.file, self.whole, self.groups = file, whole, [each for each in (own, shared) if each is not None]

    def item(self, sequence: str) -> Any:
        for group in self.groups:
            held = group.get(sequence)
            if held:
                return held[0]
        return self.whole

    def numbers(self, sequence: str, keyword: str, count: int) -> np.ndarray | None:
        return numbers(self.file, self.item(sequence), keyword, count)

    def orientation(self) -> np.ndarray | None:
        turn = self.numbers("PlaneOrientationSequence", _TURN, 6)
        if turn is None:
            turn = _of_detector(self.file, self.whole, _TURN, 6)
        if turn is None:
            return None
        row, column = turn[:3], turn[3:]
        products = np.array([row @ row, column @ column, row @ column])
        if not np.abs(products - (1, 1, 0)).max() < 0.01:
            problem = "its rows and columns are not perpendicular (Image Orientation)"
            value = "\\".join(f"{each:g}" for each in turn)
            raise InputError(problem, file=self.file, value=value, remedy=REMEDY)
        return turn

    def rescale(self) -> tuple[float, float]:
        """(slope, intercept) of the values. Raises InputError for a slope that makes all values equal."""
        held = self.item("PixelValueTransformationSequence")
        if held is self.whole and "DoseGridScaling" in self.whole:
            slope, intercept = numbers(self.file, self.whole, "DoseGridScaling", 1), None
        else:
            slope, intercept = (
                numbers(self.file, held, key, 1) for key in ("RescaleSlope", "RescaleIntercept")
            )
        factor = 1.0 if slope is None else float(slope[0])
        if factor == 0:
            raise InputError("the rescale slope is 0", file=self.file, value="0", remedy=REMEDY)
        return factor, 0.0 if intercept is None else float(intercept[0])

    def marks(self) -> dict[str, str]:
        found = {}
        for keyword, sequence in _APART.items():
            words = text(self.item(sequence) if sequence else self.whole, keyword)
            if words:
                found[keyword] = words
        return found


_PLACE, _TURN = "ImagePositionPatient", "ImageOrientationPatient"


def _groups(file: Path, whole: Any, count: int) -> tuple[Any, Any]:
    """The functional groups of each frame, and the shared one; None if missing."""
    per_frame = whole.get("PerFrameFunctionalGroupsSequence") or None
    shared = whole.get("SharedFunctionalGroupsSequence") or None
    if per_frame is not None and len(per_frame) != count:
        raise InputError(
            "the header does not describe every frame",
            file=file,
            value=f"{len(per_frame)} groups for {count} frames",
            remedy=REMEDY,
        )
    return per_frame, shared[0] if shared else None


def _places(file: Path, whole: Any, count: int) -> tuple[list[np.ndarray] | None, float | None]:
    """The positions of frames that are given by a step (nuclear medicine, dose), and mm from slice to slice.

    Raises InputError for frames that are time points or views instead of slices.
    """
    step = numbers(file, whole, "SpacingBetweenSlices", 1)
    thick = numbers(file, whole, "SliceThickness", 1)
    gap = next((float(each[0]) for each in (step, thick) if each is not None and each[0] != 0), None)
    if count == 1 and "PerFrameFunctionalGroupsSequence" not in whole:
        detector = _of_detector(file, whole, _PLACE, 3)
        return (None if detector is None or _PLACE in whole else [detector]), gap
    if "PerFrameFunctionalGroupsSequence" in whole:
        return None, gap
    offsets = numbers(file, whole, "GridFrameOffsetVector", count) if "DoseGridScaling" in whole else None
    origin = numbers(file, whole, _PLACE, 3)
    if origin is None:
        origin = _of_detector(file, whole, _PLACE, 3)
    turn = numbers(file, whole, _TURN, 6)
    if turn is None:
        turn = _of_detector(file, whole, _TURN, 6)
    tomographic = "RECON TOMO" in text(whole, "ImageType") and _one_of_each(whole, count)
    if offsets is None and tomographic and gap is not None:
        offsets = np.arange(count) * gap
    if offsets is None or origin is None or turn is None:
        raise InputError(
            "the frames of the file are not slices of a volume, or have no positions",
            file=file,
            value=f"{count} frames, {text(whole, 'ImageType') or 'no image type'}",
            remedy="Save the frame as a PNG, or export the reconstructed slices.",
        )
    # The older form has positions instead of distances from the first frame.
    if offsets[0] != 0 and abs(offsets[0] - origin[2]) < 1e-3:
        offsets = offsets - offsets[0]
    normal = np.cross(turn[:3], turn[3:])
    return [origin + offset * normal for offset in offsets], gap


def _of_detector(file: Path, whole: Any, keyword: str, count: int) -> np.ndarray | None:
    """Numbers of a nuclear medicine image, which are stored with its first detector."""
    return numbers(file, first_item(whole, "DetectorInformationSequence"), keyword, count)


def _one_of_each(whole: Any, count: int) -> bool:
    """Whether a nuclear medicine file has one frame per slice, without further energies, phases or times."""
    slices = whole.get("SliceVector")
    if slices is not None:
        numbers = [int(each) for each in np.atleast_1d(slices)]
        return numbers == list(range(1, count + 1))
    return int(whole.get("NumberOfSlices") or count) == count


def _flat_spacing(file: Path, whole: Any, notes: list[str]) -> np.ndarray | None:
    """(2,) mm between rows and columns given by the file itself, or None."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = numbers(file, whole, keyword, 2)
        if spacing is not None:
            if keyword != "PixelSpacing":
                what = "the detector" if keyword == "ImagerPixelSpacing" else "the scanned film"
                notes.append(f"millimetres are measured at {what}, not in the patient ({keyword})")
            return _checked_spacing(file, spacing)
    return None


def _checked_spacing(file: Path, spacing: np.ndarray) -> np.ndarray:
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        value = "\\".join(f"{each:g}" for each in spacing)
        raise InputError("the pixel size is not positive", file=file, value=value, remedy=REMEDY)
    return spacing
