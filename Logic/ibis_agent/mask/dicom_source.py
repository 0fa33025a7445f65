"""The DICOM images that a scan was read from, and where each of them lies in the scan's voxels.

What refers to images (DICOM SEG, RTSTRUCT) names them one by one, and is in their rows and columns. Needs pydicom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError

MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
INSTALL = 'Install what writes it: pip install "ibis-agent[dicom]".'


@dataclass(frozen=True, eq=False)
class Frame:
    """One image, or one frame of a multi-frame image.

    Attributes:
        dataset: its file, without the pixels.
        number: of the frame, from 1; None for an image of one frame.
        to_lps: (4, 4) of (column, row, 0, 1) → LPS mm.
        shape: rows and columns.
    """

    dataset: Any
    number: int | None
    to_lps: np.ndarray
    shape: tuple[int, int]

    def voxels(self, affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxel indices (i, j, k), each (rows, columns), of a scan with this affine (RAS) and shape.

        Raises InputError where the image is not one of the scan's slices.
        """
        to_voxel = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.to_lps
        rows, cols = np.indices(self.shape)
        points = np.stack([cols, rows, np.zeros_like(rows), np.ones_like(rows)], axis=-1).astype(float)
        exact = points @ to_voxel.T
        found = np.rint(exact[..., :3]).astype(int)
        off = np.abs(exact[..., :3] - found).max() > 0.1
        if off or (found < 0).any() or (found >= np.array(shape)).any():
            raise InputError(
                "an image does not lie in the scan's grid", file=getattr(self.dataset, "filename", None)
            )
        return found[..., 0], found[..., 1], found[..., 2]


def frames_of(path: Path, affine: np.ndarray, shape: Sequence[int], series: str | None = None) -> list[Frame]:
    """The images of a scan, in the order of their places.

    Args:
        path: the DICOM folder or file that the scan was read from.
        affine, shape: of the scan.
        series: which series of the folder; None takes the one that lies in the scan's grid.

    Raises InputError where no series is the scan's.
    """
    for uid, datasets in sorted(_series(path).items()):
        if series is not None and uid != series:
            continue
        frames = [frame for dataset in datasets for frame in _frames(dataset)]
        try:
            places = [
                int(np.ravel_multi_index([n[0, 0] for n in frame.voxels(affine, shape)], shape))
                for frame in frames
            ]
        except InputError:
            continue
        if frames and sum(rows * cols for rows, cols in (each.shape for each in frames)) == int(
            np.prod(shape)
        ):
            ordered = [frames[n] for n in np.argsort(places)]
            _complete(ordered)
            return ordered
    raise InputError(
        "no series of DICOM images is the scan's",
        file=path,
        value=series,
        remedy="A DICOM SEG or RTSTRUCT can only be written for a scan that was read from DICOM images.",
    )


def _complete(frames: Sequence[Frame]) -> None:
    """Give headers what DICOM lets be empty and writers ask for all the same. The files stay as they are."""
    from pydicom.uid import generate_uid

    between = np.linalg.norm(frames[1].to_lps[:3, 3] - frames[0].to_lps[:3, 3]) if len(frames) > 1 else 1.0
    for image in (frame.dataset for frame in frames):
        for key in MAY_BE_EMPTY:
            if key not in image:
                setattr(image, key, "")
        if "FrameOfReferenceUID" not in image:
            image.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(image.SeriesInstanceUID)])
        if "NumberOfFrames" not in image and not getattr(image, "SliceThickness", None):
            image.SliceThickness = f"{between:.4f}"


def _series(path: Path) -> dict[str, list[Any]]:
    """Series UID → its images' headers."""
    try:
        import pydicom
    except ImportError as error:
        raise InputError("pydicom is not installed", remedy=INSTALL) from error
    found: dict[str, list[Any]] = {}
    for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError, ValueError):
            continue
        if "Rows" in dataset and "SeriesInstanceUID" in dataset:
            found.setdefault(str(dataset.SeriesInstanceUID), []).append(dataset)
    return found


def _frames(dataset: Any) -> Iterator[Frame]:
    shape = int(dataset.Rows), int(dataset.Columns)
    count = int(getattr(dataset, "NumberOfFrames", 1) or 1)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if count == 1 and "ImagePositionPatient" in dataset:
            yield Frame(dataset, None, _matrix(dataset, dataset, dataset), shape)
        return
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for number, own in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1):

        def group(name: str, own: Any = own) -> Any:
            return (own if name in own else shared)[name][0]

        matrix = _matrix(
            group("PlanePositionSequence"), group("PlaneOrientationSequence"), group("PixelMeasuresSequence")
        )
        yield Frame(dataset, number, matrix, shape)


def _matrix(position: Any, orientation: Any, spacing: Any) -> np.ndarray:
    turn = np.array([float(each) for each in orientation.ImageOrientationPatient])
    row_step, col_step = (float(each) for each in spacing.PixelSpacing)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = turn[:3] * col_step, turn[3:] * row_step
    matrix[:3, 2] = np.cross(turn[:3], turn[3:])
    matrix[:3, 3] = [float(each) for each in position.ImagePositionPatient]
    return matrix
