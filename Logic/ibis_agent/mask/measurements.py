"""Measurements of a mask: volume, area, diameters, components, and the grey values inside, with their units.

Diameters are measured between voxel centres, like SimpleITK's and 3D Slicer's Feret diameter, and within one connected
component. In the plane they follow RECIST 1.1 (Eisenhauer et al. 2009): the longest in any slice, and the longest
perpendicular to it in the same slice. If the pixel size is unknown, everything is in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ibis_agent.errors import InputError

_ASKED = re.compile(
    r"\bhow (?:large|big|long|wide|thick|small|much)\b|\bwhat size\b|\b(?:size|volume|area|diameters?|"
    r"measure(?:ments?|d)?|dimensions?|extent)\b",
    re.IGNORECASE,
)
_FEW_POINTS = 400


@dataclass(frozen=True)
class Measurements:
    """The measurements; None if unknown.

    Attributes:
        voxels: inside the mask.
        parts: connected components; voxels that touch at a corner are connected.
        volume_ml: of a mask over several slices with a known voxel size.
        area, area_slice: of the slice with the largest area, in mm² (pixels if the size is unknown), and its index.
        longest, perpendicular, diameter_slice: in the plane, in mm (pixels), and their slice.
        longest_3d: in mm; None for one slice.
        mean, deviation: of the grey values inside; sample standard deviation.
        unit: "mm", or "px" if the pixel size is unknown.
        value_unit: "HU" for a CT, otherwise empty.
    """

    voxels: int
    parts: int
    volume_ml: float | None
    area: float
    area_slice: int | None
    longest: float
    perpendicular: float
    diameter_slice: int | None
    longest_3d: float | None
    mean: float | None
    deviation: float | None
    unit: str
    value_unit: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to four decimals."""
        values = asdict(self)
        return {key: round(each, 4) if isinstance(each, float) else each for key, each in values.items()}

    def lines(self) -> list[tuple[str, str]]:
        """For display, as (name, value with unit); unknown ones are omitted."""
        if not self.voxels:
            return [("Size", "the mask is empty")]
        return [(name, text) for name, text in self._all() if text]

    def sentence(self) -> str:
        """One sentence: "It measures 23.1 mL, 41 × 32 mm in slice 57." """
        if not self.voxels:
            return "There is no mask to measure."
        amount = f"{self.volume_ml:.1f} mL" if self.volume_ml is not None else self._area()
        return f"It measures {amount}, {self._diameters()}."

    def _all(self) -> Iterator[tuple[str, str]]:
        yield "Volume", "" if self.volume_ml is None else f"{self.volume_ml:.2f} mL"
        yield (
            "Largest area" if self.volume_ml is not None else "Area",
            self._area() + self._where(self.area_slice),
        )
        yield "In the plane", self._diameters()
        yield "Longest in 3D", "" if self.longest_3d is None else f"{self.longest_3d:.1f} mm"
        if self.mean is not None:
            spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
            yield "Mean inside", f"{self.mean:.1f}{spread} {self.value_unit}".strip()
        yield "Parts", str(self.parts)

    def _area(self) -> str:
        return f"{self.area:.0f} {'px' if self.unit == 'px' else 'mm²'}"

    def _diameters(self) -> str:
        digits = ".1f" if self.longest < 100 else ".0f"
        both = f"{self.longest:{digits}} × {self.perpendicular:{digits}} {self.unit}"
        return both + self._where(self.diameter_slice)

    def _where(self, index: int | None) -> str:
        return "" if index is None or self.volume_ml is None else f" in slice {index}"


def measure(
    mask: np.ndarray,
    spacing: Sequence[float] | None = None,
    axis: int = 0,
    values: np.ndarray | None = None,
    ct: bool = False,
    first: int = 0,
) -> Measurements:
    """Measure a mask.

    Args:
        mask: (H, W) of one slice, or (I, J, K) of a volume; everything except zero is inside.
        spacing: mm between neighbours along each axis of the mask; None if unknown.
        axis: for a volume, the axis perpendicular to the slices.
        values: grey values, of the shape of the mask.
        ct: whether they are Hounsfield units.
        first: the index of the mask's first slice, if it is cut out of a volume.

    Raises InputError if the shapes do not match.
    """
    inside = np.asarray(mask) != 0
    if values is not None and values.shape != inside.shape:
        raise InputError(
            "the grey values and the mask have different shapes", value=f"{values.shape} for {inside.shape}"
        )
    if inside.ndim not in (2, 3) or (spacing is not None and len(spacing) != inside.ndim):
        raise InputError(
            "a mask must have two or three dimensions, and a spacing for each", value=inside.shape
        )
    flat = inside.ndim == 2
    steps = np.ones(inside.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    within = np.zeros(0) if values is None else np.asarray(values)[inside]
    box, offset = _cropped(inside)
    if not box.size:
        nothing = None if flat or spacing is None else 0.0
        unit = "px" if spacing is None else "mm"
        return Measurements(0, 0, nothing, 0.0, None, 0.0, 0.0, None, nothing, None, None, unit)
    stack = box[None] if flat else np.moveaxis(box, axis, 0)
    in_plane = steps if flat else np.delete(steps, axis)
    labels, parts = _parts(box)
    areas = stack.sum(axis=(1, 2)) * float(np.prod(in_plane))
    longest, perpendicular, place = _in_plane(stack, in_plane)
    begin = 0 if flat else first + offset[axis]
    return Measurements(
        voxels=int(box.sum()),
        parts=parts,
        volume_ml=None if flat or spacing is None else float(box.sum() * np.prod(steps) / 1000),
        area=float(areas.max()),
        area_slice=None if flat else begin + int(areas.argmax()),
        longest=longest,
        perpendicular=perpendicular,
        diameter_slice=None if flat else begin + place,
        longest_3d=None if flat or spacing is None else _longest_3d(labels, parts, steps),
        mean=float(np.mean(within, dtype=np.float64)) if len(within) else None,
        deviation=float(np.std(within, ddof=1, dtype=np.float64)) if len(within) > 1 else None,
        unit="px" if spacing is None else "mm",
        value_unit="HU" if ct else "",
    )


def asks_for_size(question: str) -> bool:
    """Whether a question asks for a size: "How large is the lesion?", "What is the volume of the liver?" """
    return bool(_ASKED.search(question))


def answer_with_size(question: str, answer: str, measured: Measurements) -> str:
    """The answer, followed by the measurements if the question asks for them."""
    if not asks_for_size(question):
        return answer
    return f"{answer.rstrip()} {measured.sentence()}".strip()


def _cropped(mask: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Crop a mask to its bounding box; also returns the start. This makes measuring in a scan of 10⁸ voxels fast."""
    corners = []
    for each in range(mask.ndim):
        others = tuple(n for n in range(mask.ndim) if n != each)
        places = np.flatnonzero(mask.any(axis=others))
        if not len(places):
            return mask[(slice(0, 0),) * mask.ndim], [0] * mask.ndim
        corners.append((int(places[0]), int(places[-1]) + 1))
    return mask[tuple(slice(*each) for each in corners)], [each[0] for each in corners]


def _parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return labels, int(count)


def _in_plane(stack: np.ndarray, steps: np.ndarray) -> tuple[float, float, int]:
    """Longest diameter, the longest perpendicular to it, and the slice's index in (n, H, W)."""
    best, where, points = -1.0, 0, np.zeros((0, 2))
    for place, plane in enumerate(stack):
        # No component is longer than the diagonal of its bounding box.
        rows, cols = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
        if (
            not len(rows)
            or np.hypot((rows[-1] - rows[0]) * steps[0], (cols[-1] - cols[0]) * steps[1]) <= best
        ):
            continue
        labels, count = _parts(plane)
        for part in range(1, count + 1):
            part_points = np.argwhere(labels == part) * steps
            length, _ = _farthest(part_points)
            if length > best:
                best, where, points = length, place, part_points
    if best < 0:
        return 0.0, 0.0, 0
    return best, _perpendicular(points, float(steps.max())), where


def _perpendicular(points: np.ndarray, pixel: float) -> float:
    """The longest chord perpendicular to the longest diameter; its ends are within half a pixel of one line."""
    length, (a, b) = _farthest(points)
    if not length:
        return 0.0
    along = (points - a) @ (b - a) / length
    across = (points - a) @ np.array([-(b - a)[1], (b - a)[0]]) / length
    order = np.argsort(along)
    along, across = along[order], across[order]
    begins = np.searchsorted(along, along - pixel / 2)
    ends = np.searchsorted(along, along + pixel / 2, side="right")
    return float(max(np.ptp(across[low:high]) for low, high in zip(begins, ends, strict=True)))


def _longest_3d(labels: np.ndarray, parts: int, steps: np.ndarray) -> float:
    from scipy import ndimage

    best = 0.0
    for part, box in enumerate(ndimage.find_objects(labels, parts), 1):
        sides = [(each.stop - each.start - 1) * step for each, step in zip(box, steps, strict=True)]
        if np.linalg.norm(sides) > best:
            best = max(best, _farthest(_ends(labels[box] == part) * steps)[0])
    return best


def _ends(mask: np.ndarray) -> np.ndarray:
    """(N, 3) first and last voxels of every line along the last axis, which include the two farthest voxels."""
    lines = mask.any(axis=-1)
    first = mask.argmax(axis=-1)[lines]
    last = mask.shape[-1] - 1 - mask[..., ::-1].argmax(axis=-1)[lines]
    at = np.argwhere(lines)
    return np.concatenate([np.column_stack([at, first]), np.column_stack([at, last])])


def _farthest(points: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """The largest distance between (N, D) points, and these two points."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import cdist

    if len(points) > _FEW_POINTS:
        try:
            points = points[ConvexHull(points).vertices]
        except QhullError:  # all on one line or in one plane
            points = points[ConvexHull(points, qhull_options="QJ").vertices]
    distances = cdist(points, points)
    a, b = np.unravel_index(int(distances.argmax()), distances.shape)
    return float(distances[a, b]), (points[a], points[b])
