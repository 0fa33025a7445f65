"""The positions of a picture's pixels in the scan and in the patient.

Only this module deals with planes, flips and handedness; pixel values are handled in picture. Conventions: voxel
indices (i, j, k) in the order of the file, voxel centres at whole numbers; patient coordinates in RAS mm; pictures
(row, column) with row 0 at the top; clicks (x, y) normalised, x to the right, y down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.nifti_place import NiftiPlace

# Screen right, screen up and the normal of each plane in RAS, as 3D Slicer shows them (patient right on the
# left).
_SCREEN = {
    "axial": ((-1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "sagittal": ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    "coronal": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
}
_RAW_AXES = {"x": 0, "y": 1, "z": 2}
PLANES = (*_SCREEN, *_RAW_AXES)
MOST_VOXELS = 2**32
# Cosine between two axes above which a volume counts as sheared: half a degree, much more than rounding in
# headers.
_SHEAR = 0.01


class Orientation(str, Enum):
    """The orientation of a slice's picture.

    RADIOLOGICAL: as 3D Slicer and radiologists show it, whatever the order of the file.
    UPSTREAM: as the published code does it, `np.rot90` of the slice of the raw array.
    """

    RADIOLOGICAL = "radiological"
    UPSTREAM = "upstream"


@dataclass(frozen=True, eq=False)
class PictureGeometry:
    """The position of one slice's picture in its scan.

    Attributes:
        shape: voxels of the scan along (i, j, k).
        affine: (4, 4) voxel index → RAS in mm.
        axis, index: the axis perpendicular to the slice, and the slice's index on it.
        row_axis, col_axis: the voxel axes that run along the picture's rows (down) and columns (right).
        flip_rows, flip_cols: whether the index decreases from top to bottom, from left to right.
        plane: "axial", "sagittal", "coronal", or "picture" for a photograph, which has no millimetres.
        sized: whether the voxel size is known.
        place: the position fields of the scan's NIfTI header, for writing masks; None for other files.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    axis: int
    index: int
    row_axis: int
    col_axis: int
    flip_rows: bool
    flip_cols: bool
    plane: str
    sized: bool = True
    place: NiftiPlace | None = None

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @classmethod
    def of_picture(cls, height: int, width: int) -> PictureGeometry:
        """The trivial geometry of a photograph or screenshot: columns along i, rows along j, one slice."""
        return cls(
            shape=(width, height, 1),
            affine=picture_affine(),
            axis=2,
            index=0,
            row_axis=1,
            col_axis=0,
            flip_rows=False,
            flip_cols=False,
            plane="picture",
        )

    def slab(self) -> PictureGeometry:
        """The slice as a volume one voxel thick, at the same position in the patient."""
        i, j, k = (1 if axis == self.axis else count for axis, count in enumerate(self.shape))
        affine = np.array(self.affine)
        affine[:3, 3] += affine[:3, self.axis] * self.index
        return replace(self, shape=(i, j, k), affine=affine, index=0)

    @property
    def height(self) -> int:
        return self.shape[self.row_axis]

    @property
    def width(self) -> int:
        return self.shape[self.col_axis]

    @property
    def row_mm(self) -> float | None:
        """Distance between neighbouring rows in mm; None for a photograph, or if unknown."""
        return self._spacing(self.row_axis)

    @property
    def col_mm(self) -> float | None:
        """Distance between neighbouring columns in mm; None if `row_mm` is."""
        return self._spacing(self.col_axis)

    @property
    def pixel_area_mm2(self) -> float | None:
        """Area of a pixel in mm²; None if `row_mm` is."""
        if self.row_mm is None or self.col_mm is None:
            return None
        return self.row_mm * self.col_mm

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        """The (row, column) of a normalised click: the published int() rule, clamped."""
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError("a click needs two finite numbers", value=(x, y))
        row, col = int(y * self.height), int(x * self.width)
        return min(max(row, 0), self.height - 1), min(max(col, 0), self.width - 1)

    def to_voxel(self, x: float, y: float) -> tuple[int, int, int]:
        """The voxel (i, j, k) under a normalised click."""
        row, col = self.pixel(x, y)
        voxel = [0, 0, 0]
        voxel[self.axis] = self.index
        voxel[self.row_axis] = self.height - 1 - row if self.flip_rows else row
        voxel[self.col_axis] = self.width - 1 - col if self.flip_cols else col
        return voxel[0], voxel[1], voxel[2]

    def to_patient(self, x: float, y: float) -> tuple[float, float, float]:
        """RAS mm of the centre of the voxel under a normalised click."""
        r, a, s = self.affine[:3, :3] @ self.to_voxel(x, y) + self.affine[:3, 3]
        return float(r), float(a), float(s)

    def from_patient(self, r: float, a: float, s: float) -> tuple[float, float]:
        """Normalised centre of the pixel that contains the point at RAS mm.

        Raises InputError for a point outside this slice or outside the picture.
        """
        point = np.array([r, a, s], dtype=np.float64)
        if not np.isfinite(point).all():
            raise InputError("a point needs three finite coordinates", value=(r, a, s))
        exact = np.linalg.solve(self.affine[:3, :3], point - self.affine[:3, 3])
        voxel = [int(v) for v in np.floor(exact + 0.5)]
        # Allow slightly more than half a voxel, so that rounding does not reject a click on the border.
        if abs(exact[self.axis] - self.index) > 0.5 + 1e-3:
            raise InputError(
                "the point is not in this slice",
                value=f"slice {exact[self.axis]:.1f} instead of {self.index}",
                remedy="Place the point in the slice that the agent works on.",
            )
        row, col = voxel[self.row_axis], voxel[self.col_axis]
        if not (0 <= row < self.height and 0 <= col < self.width):
            raise InputError(
                "the point is outside the scan", value=tuple(voxel), remedy="Place it inside the picture."
            )
        if self.flip_rows:
            row = self.height - 1 - row
        if self.flip_cols:
            col = self.width - 1 - col
        return (col + 0.5) / self.width, (row + 0.5) / self.height

    def extract(self, volume: np.ndarray) -> np.ndarray:
        """The (H, W) picture of this slice of a volume (I, J, K); a view, not a copy."""
        if volume.shape != self.shape:
            raise InputError(
                "the volume has a different shape", value=f"{volume.shape} instead of {self.shape}"
            )
        where: list[slice | int] = [slice(None)] * 3
        where[self.axis] = self.index
        plane: np.ndarray = volume[tuple(where)]
        if self.row_axis > self.col_axis:
            plane = np.swapaxes(plane, 0, 1)
        return plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_cols else 1]

    def embed_mask(self, mask: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Write an (H, W) mask into its slice of `out` or of a new (I, J, K) uint8 volume, which is returned."""
        if mask.shape != (self.height, self.width):
            raise InputError(
                "the mask and the picture have different sizes",
                value=f"{mask.shape} instead of {(self.height, self.width)}",
            )
        if out is None:
            out = np.zeros(self.shape, dtype=np.uint8)
        self.extract(out)[...] = np.asarray(mask) != 0
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        record: dict[str, Any] = {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "axis": self.axis,
            "index": self.index,
            "row_axis": self.row_axis,
            "col_axis": self.col_axis,
            "flip_rows": self.flip_rows,
            "flip_cols": self.flip_cols,
            "plane": self.plane,
        }
        if not self.sized:
            record["sized"] = False
        if self.place is not None:
            record["nifti"] = self.place.to_json()
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> PictureGeometry:
        """The reverse of `to_json`. Raises InputError if it is not a valid geometry."""
        try:
            shape = tuple(int(n) for n in record["shape"])
            axes = tuple(int(record[key]) for key in ("axis", "row_axis", "col_axis"))
            index = int(record["index"])
            affine = check_affine(np.array(record["affine"], dtype=np.float64))
            flips = bool(record["flip_rows"]), bool(record["flip_cols"])
            plane = record["plane"]
            sized = bool(record.get("sized", True))
            place = None if record.get("nifti") is None else NiftiPlace.from_json(record["nifti"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError("this is not a picture geometry", value=str(error)) from error
        if plane not in (*_SCREEN, "picture"):
            raise InputError("this picture geometry has no known plane", value=plane)
        if (
            len(shape) != 3
            or min(shape) < 1
            or math.prod(shape) > MOST_VOXELS
            or sorted(axes) != [0, 1, 2]
            or not 0 <= index < shape[axes[0]]
        ):
            raise InputError("this picture geometry is inconsistent", value=record)
        sides = (shape[0], shape[1], shape[2])
        return cls(sides, affine, axes[0], index, axes[1], axes[2], *flips, plane, sized, place)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PictureGeometry) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.shape, self.axis, self.index, self.row_axis, self.col_axis, self.plane))

    def _spacing(self, axis: int) -> float | None:
        unknown = self.plane == "picture" or not self.sized
        return None if unknown else float(np.linalg.norm(self.affine[:3, axis]))


def slice_geometry(
    shape: Sequence[int],
    affine: np.ndarray,
    plane: str = "axial",
    index: int | None = None,
    orientation: Orientation = Orientation.RADIOLOGICAL,
    file: str | os.PathLike[str] | None = None,
) -> PictureGeometry:
    """The geometry of one slice of a scalar volume.

    Args:
        shape: (I, J, K) voxels.
        affine: (4, 4) voxel index → RAS mm; may be oblique (the nearest axes are used), but not sheared or
            singular.
        plane: "axial", "sagittal", "coronal", or the raw axis "x", "y", "z" of the file.
        index: index along the axis perpendicular to the slice; None means the middle.
        file: for error messages.

    Raises InputError.

    The rule: with the unit columns D of the affine, the slice is perpendicular to the axis s with the largest
    |D·normal|; the columns of the picture run along the axis u of the rest with the largest |D·right|, the rows along
    the third; both are flipped if they point against screen right and screen down. A raw axis takes the plane
    whose normal it is nearest to.
    """
    affine = check_affine(affine, file)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    name = str(plane).lower()
    if name in _RAW_AXES:
        axis = _RAW_AXES[name]
        name = max(_SCREEN, key=lambda each: abs(directions[:, axis] @ _SCREEN[each][2]))
    elif name in _SCREEN:
        axis = int(np.argmax(np.abs(directions.T @ _SCREEN[name][2])))
    else:
        raise InputError(
            "there is no such plane", file=file, value=plane, remedy=f"Use one of {', '.join(PLANES)}."
        )
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    index = _checked_index(index, size[axis], name, file)
    right, up, _ = (np.array(each, dtype=np.float64) for each in _SCREEN[name])
    rest = [each for each in range(3) if each != axis]
    if Orientation(orientation) is Orientation.UPSTREAM:
        # rot90(m)[r, c] = m[c, last - r]: the later axis runs up the picture, the earlier one to the right.
        return PictureGeometry(size, affine, axis, index, rest[1], rest[0], True, False, name)
    col_axis = max(rest, key=lambda each: abs(directions[:, each] @ right))
    row_axis = next(each for each in rest if each != col_axis)
    flip_rows = bool(directions[:, row_axis] @ -up < 0)
    flip_cols = bool(directions[:, col_axis] @ right < 0)
    return PictureGeometry(size, affine, axis, index, row_axis, col_axis, flip_rows, flip_cols, name)


def check_affine(affine: np.ndarray, file: str | os.PathLike[str] | None = None) -> np.ndarray:
    """The affine as (4, 4) float64, if it describes a rectangular grid. Raises InputError otherwise."""
    affine = np.asarray(affine, dtype=np.float64)
    remedy = "Resample the scan to an ordinary grid first (in 3D Slicer: Resample Scalar Volume)."
    if affine.shape != (4, 4):
        raise InputError("the affine is not a 4 × 4 matrix", file=file, value=affine.shape)
    if not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1)):
        raise InputError(
            "the affine contains invalid numbers", file=file, value=affine.tolist(), remedy=remedy
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < 1e-9 or not np.isfinite(lengths).all():
        raise InputError(
            "the affine is singular: a voxel size is zero", file=file, value=_mm(lengths), remedy=remedy
        )
    directions = affine[:3, :3] / lengths
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if abs(np.linalg.det(directions)) < 1e-3:
        raise InputError(
            "the affine is singular: two axes are parallel", file=file, value=_mm(lengths), remedy=remedy
        )
    if cosines.max() > _SHEAR:
        angle = 90 - math.degrees(math.acos(min(1.0, float(cosines.max()))))
        raise InputError(
            "the volume is sheared (gantry tilt?)",
            file=file,
            value=f"{angle:.1f}° from perpendicular",
            remedy=remedy,
        )
    return affine


def picture_affine() -> np.ndarray:
    """The affine used for a photograph: x to patient left, y to posterior, one unit per pixel."""
    return np.diag([-1.0, -1.0, 1.0, 1.0])


def _checked_index(index: int | None, count: int, plane: str, file: str | os.PathLike[str] | None) -> int:
    if index is None:
        return count // 2
    if isinstance(index, bool) or int(index) != index or not 0 <= index < count:
        raise InputError(
            f"the {plane} slice is outside the scan",
            file=file,
            value=index,
            remedy=f"Choose a slice from 0 to {count - 1}.",
        )
    return int(index)


def _mm(lengths: np.ndarray) -> str:
    return " × ".join(f"{length:g}" for length in lengths) + " mm"
