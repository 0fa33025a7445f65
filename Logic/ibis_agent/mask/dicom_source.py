"""The DICOM images that a scan was read from, and their positions in the scan's voxels.

DICOM SEG and RTSTRUCT reference each image individually, and use its rows and columns. Needs pydicom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.dicom import frames_of_scan
from ibis_agent.scan.dicom_header import Frame as ScanFrame
from ibis_agent.scan.dicom_values import quietly

MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
MAKER, MODEL = "IBISSlicer", "ibis-agent"
INSTALL = 'Install the packages for it: pip install "ibis-agent[dicom]".'


@dataclass(frozen=True, eq=False)
class Frame:
    """One image, or one frame of a multi-frame image.

    Attributes:
        dataset: the pydicom dataset of its file, without the pixels.
        number: of the frame, from 1; None for a single-frame image.
        to_lps: (4, 4) matrix from (column, row, 0, 1) to LPS mm.
        shape: (rows, columns).
    """

    dataset: Any
    number: int | None
    to_lps: np.ndarray
    shape: tuple[int, int]

    def voxels(self, affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxel indices (i, j, k), each (rows, columns), in a scan with this affine (RAS) and shape.

        Raises InputError if the image is not one of the scan's slices.
        """
        to_voxel = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.to_lps
        rows, cols = np.indices(self.shape)
        points = np.stack([cols, rows, np.zeros_like(rows), np.ones_like(rows)], axis=-1).astype(float)
        exact = points @ to_voxel.T
        found = np.rint(exact[..., :3]).astype(int)
        off = np.abs(exact[..., :3] - found).max() > 0.1
        if off or (found < 0).any() or (found >= np.array(shape)).any():
            raise InputError(
                "an image does not match the scan's grid", file=getattr(self.dataset, "filename", None)
            )
        return found[..., 0], found[..., 1], found[..., 2]


def frames_of(path: Path, affine: np.ndarray, shape: Sequence[int], series: str | None = None) -> list[Frame]:
    """The images of a scan that its reader used, in the order of the slices.

    Args:
        path: the DICOM folder or file that the scan was read from.
        affine, shape: of the scan.
        series: as for `load_scan`.

    Raises InputError if they do not match the scan's grid.
    """
    import pydicom

    datasets: dict[Path, Any] = {}
    frames = []
    for each in frames_of_scan(path, series):
        if each.file not in datasets:
            with quietly():
                datasets[each.file] = pydicom.dcmread(each.file, stop_before_pixels=True, force=True)
        dataset = datasets[each.file]
        number = each.index + 1 if int(getattr(dataset, "NumberOfFrames", 1) or 1) > 1 else None
        frames.append(Frame(dataset, number, _matrix(each), (int(dataset.Rows), int(dataset.Columns))))
    try:
        inside = sum(frame.voxels(affine, shape)[0].size for frame in frames)
    except InputError:
        inside = 0
    if inside != int(np.prod(shape)):
        raise InputError(
            "no DICOM series matches the scan",
            file=path,
            value=series,
            remedy="A DICOM SEG or RTSTRUCT can be written only for a scan that was read from DICOM images.",
        )
    _complete(frames)
    return frames


def images_of(frames: Sequence[Frame]) -> list[Any]:
    """The datasets without duplicates: the frames of a multi-frame image share one."""
    return list({id(frame.dataset): frame.dataset for frame in frames}.values())


def _complete(frames: Sequence[Frame]) -> None:
    """Add elements that DICOM allows to be missing but the writers require. The files are not changed."""
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


def _matrix(frame: ScanFrame) -> np.ndarray:
    if frame.orientation is None or frame.position is None or frame.spacing is None:
        remedy = "Choose another --mask-format."
        raise InputError("an image has no position", file=frame.file, remedy=remedy)
    row_step, col_step = frame.spacing
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = frame.orientation[:3] * col_step, frame.orientation[3:] * row_step
    matrix[:3, 2] = np.cross(frame.orientation[:3], frame.orientation[3:])
    matrix[:3, 3] = frame.position
    return matrix
