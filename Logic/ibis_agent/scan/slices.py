"""The slices of a run: their range, orientation and window; each is cut when it is needed.

Slices are identified by their voxel index along the axis perpendicular to them. All slices of a
stack have one window, so that grey values are comparable from slice to slice. No models here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.body_region import Subject, subject_of
from ibis_agent.scan.frame import MOST_SLICES, Frame, Kind, find_frame
from ibis_agent.scan.geometry import Orientation, PictureGeometry
from ibis_agent.scan.picture import Picture, apply_window, check_window, cut, percentile_window
from ibis_agent.scan.scan import Scan

_SAMPLED = 16


class Slices(Protocol):
    """The slices of a run: a Stack, or a recorded run's pictures."""

    @property
    def first(self) -> int:
        """The first slice of the range."""
        ...

    @property
    def last(self) -> int:
        """The last slice of the range, inclusive."""
        ...

    def __len__(self) -> int:
        """The number of slices along the whole axis."""
        ...

    @property
    def frame(self) -> Frame | None:
        """What the models see of every slice; None for all of it."""
        ...

    @property
    def subject(self) -> Subject:
        """What they show."""
        ...

    def picture(self, index: int) -> Picture: ...

    def geometry(self, index: int) -> PictureGeometry: ...

    def inside(self, index: int) -> np.ndarray | None:
        """(H, W) bool: where a mask is allowed; None for everywhere."""
        ...


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of a scan in one plane, created with `stack_of`.

    Attributes:
        window: (minimum, maximum) shown as black and white, in all slices.
        first, last: the range, inclusive.
        roi: ((3,), (3,)) first and last voxel of a box that masks must stay in, or None.
        frame: what the models see of every slice; None for all of it.
        known: what they show, according to a record; None determines it from the middle slice.
    """

    scan: Scan
    plane: str
    orientation: Orientation
    window: tuple[float, float]
    first: int
    last: int
    roi: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    frame: Frame | None = None
    known: Subject | None = None

    @functools.cached_property
    def subject(self) -> Subject:
        return self.known or subject_of(self.picture((self.first + self.last) // 2))

    def __len__(self) -> int:
        return int(self.scan.voxels.shape[self.geometry(self.first).axis])

    def geometry(self, index: int) -> PictureGeometry:
        return self.scan.geometry(self.plane, index, self.orientation)

    def picture(self, index: int) -> Picture:
        return cut(self.scan, self.plane, index, self.window, self.orientation, frame=self.frame or "slice")

    def inside(self, index: int) -> np.ndarray | None:
        if self.roi is None:
            return None
        geometry = self.geometry(index)
        low, high = self.roi
        if not low[geometry.axis] <= index <= high[geometry.axis]:
            return np.zeros((geometry.height, geometry.width), dtype=bool)
        rows, cols = (
            np.arange(geometry.shape[axis])[:: -1 if flip else 1]
            for axis, flip in (
                (geometry.row_axis, geometry.flip_rows),
                (geometry.col_axis, geometry.flip_cols),
            )
        )
        within_rows = (rows >= low[geometry.row_axis]) & (rows <= high[geometry.row_axis])
        within_cols = (cols >= low[geometry.col_axis]) & (cols <= high[geometry.col_axis])
        return within_rows[:, None] & within_cols[None]


def stack_of(
    scan: Scan,
    plane: str = "axial",
    window: Sequence[float] | None = None,
    orientation: Orientation | str = Orientation.RADIOLOGICAL,
    slices: tuple[int, int] | None = None,
    roi: Sequence[int] | None = None,
    frame: Kind | Frame = "slice",
) -> Stack:
    """The slices of a volume for a run.

    Args:
        plane: as in picture.cut.
        window: None uses the file's own (`scan.window`), or the 1st and 99th percentile of slices spread over the
            stack.
        slices: first and last slice, inclusive; None means all.
        roi: six voxel indices, first and last of each axis of the file: i0 i1 j0 j1 k0 k1, inclusive.
        frame: the part that the models see: whole slices, the "body" with one frame for the whole range, or a known
            frame.

    Raises InputError naming the scan's file.
    """
    if scan.kind == "picture":
        remedy = "Ask about it as a single slice, or give a volume."
        raise InputError("a picture has only one slice", file=scan.path, remedy=remedy)
    turned = Orientation(orientation)
    geometry = scan.geometry(plane, None, turned)
    count = geometry.shape[geometry.axis]
    first, last = (0, count - 1) if slices is None else (int(slices[0]), int(slices[1]))
    if not 0 <= first <= last < count:
        remedy = f"Give the first and the last slice, from 0 to {count - 1}."
        raise InputError(
            "the range of slices is invalid", file=scan.path, value=f"{first} {last}", remedy=remedy
        )
    box = None if roi is None else _checked_roi(roi, geometry, scan)
    if box is not None:
        first, last = max(first, box[0][geometry.axis]), min(last, box[1][geometry.axis])
        if first > last:
            remedy = "Choose a range that overlaps the region of interest."
            raise InputError(
                "the region of interest contains none of the slices", file=scan.path, remedy=remedy
            )
    chosen = scan.window if window is None else check_window(window)
    lowest, highest = _range_of_values(scan, geometry.axis, first, last)
    if chosen is None:
        chosen = _common_window(scan, geometry.axis, first, last)
    black, white = apply_window(np.array([lowest, highest]), chosen)
    if black == white:
        raise InputError(
            f"the volume has a single grey value in the window {chosen[0]:g} to {chosen[1]:g}: there is nothing to see",
            file=scan.path,
            value=f"values from {lowest:g} to {highest:g}",
            remedy="Give a window that fits its values, or choose another range of slices.",
        )
    stack = Stack(scan, plane, turned, chosen, first, last, box, _body(scan, geometry, first, last, frame))
    stack.picture(first)  # refuse slices that are too thin for a picture now, not during the run
    return stack


def _body(scan: Scan, geometry: PictureGeometry, first: int, last: int, frame: Kind | Frame) -> Frame | None:
    """One frame for the slices from `first` to `last`; None for whole slices."""
    if frame == "slice":
        return None
    if isinstance(frame, Frame):
        return frame
    every = np.unique(np.linspace(first, last, min(last - first + 1, MOST_SLICES)).round().astype(int))
    values = np.stack([replace(geometry, index=int(n)).extract(scan.voxels) for n in every])
    found = find_frame(values, (geometry.row_mm or 1.0, geometry.col_mm or 1.0))
    return None if found.is_whole else found


@dataclass(frozen=True, eq=False)
class RecordedSlices:
    """The pictures of a recorded run; slices that the run never visited are missing.

    Attributes:
        pictures: by slice.
        count: number of slices along the whole axis.
        first, last: the range, inclusive.
        clips: (H, W) bool by slice, where masks are allowed; empty for everywhere.
        known: what they show, according to a record; None determines it from the first picture.
    """

    pictures: Mapping[int, Picture]
    count: int
    first: int
    last: int
    clips: Mapping[int, np.ndarray]
    known: Subject | None = None

    @functools.cached_property
    def subject(self) -> Subject:
        return self.known or subject_of(next(iter(self.pictures.values())))

    def __len__(self) -> int:
        return self.count

    @property
    def frame(self) -> Frame | None:
        return next(iter(self.pictures.values())).frame

    def picture(self, index: int) -> Picture:
        if index not in self.pictures:
            raise InputError("the record does not contain this slice", value=index)
        return self.pictures[index]

    def geometry(self, index: int) -> PictureGeometry:
        known = next(iter(self.pictures.values())).geometry
        return replace(self.pictures[index].geometry if index in self.pictures else known, index=index)

    def inside(self, index: int) -> np.ndarray | None:
        return self.clips.get(index)


def one_slice(picture: Picture, known: Subject | None = None) -> RecordedSlices:
    """A range of one: a single picture."""
    geometry = picture.geometry
    index = geometry.index
    return RecordedSlices({index: picture}, geometry.shape[geometry.axis], index, index, {}, known)


def _checked_roi(
    roi: Sequence[int], geometry: PictureGeometry, scan: Scan
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    remedy = "Give the first and the last voxel of each axis: i0 i1 j0 j1 k0 k1."
    if len(roi) != 6 or any(int(each) != each for each in roi):
        raise InputError(
            "a region of interest needs six whole numbers", file=scan.path, value=roi, remedy=remedy
        )
    low, high = tuple(int(n) for n in roi[::2]), tuple(int(n) for n in roi[1::2])
    for a, b, side in zip(low, high, geometry.shape, strict=True):
        if not 0 <= a <= b < side:
            raise InputError(
                "the region of interest is not inside the scan",
                file=scan.path,
                value=" ".join(str(n) for n in roi),
                remedy=remedy,
            )
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _range_of_values(scan: Scan, axis: int, first: int, last: int) -> tuple[float, float]:
    """The lowest and the highest grey value of the slices. Raises InputError for NaN and infinite values.

    Checked at the beginning, because they would abort a run later.
    """
    lowest, highest = np.inf, -np.inf
    for index in range(first, last + 1):
        values = scan.voxels[(slice(None),) * axis + (index,)]
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(high - low):
            raise InputError(
                f"slice {index} contains voxels that are not numbers (NaN or infinite)",
                file=scan.path,
                remedy="Replace them (by the value of air, for example), or choose slices without them.",
            )
        lowest, highest = min(lowest, low), max(highest, high)
    return lowest, highest


def _common_window(scan: Scan, axis: int, first: int, last: int) -> tuple[float, float]:
    """The published percentiles, of slices spread from `first` to `last`."""
    chosen = np.unique(np.linspace(first, last, _SAMPLED).round().astype(int))
    values = np.take(scan.voxels, chosen, axis=axis)
    window = percentile_window(values)
    if window is None:
        raise InputError(
            "the volume is constant: there is nothing to see",
            file=scan.path,
            remedy="Choose another range of slices, or give a window if this is intended.",
        )
    return window
