"""The solids of phantoms, as functions that are negative inside, and the slice they are painted on.

Lengths are in mm; capsule and segment2d are distances in mm, the other functions have no unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

Array = np.ndarray


@dataclass
class PhantomSlice:
    """One axial slice: `hu` (H, W) float32, `masks` name → (H, W) bool.

    Rows run to posterior, columns to the patient's left (radiological) unless `mirrored`. `spacing`: (row, column)
    mm; `z`: mm.
    """

    hu: Array
    masks: dict[str, Array]
    spacing: tuple[float, float]
    z: float
    mirrored: bool = False


@dataclass
class Canvas:
    """The slice being painted: (H, W) canonical coordinates, HU and masks so far."""

    x: Array
    y: Array
    z: Array
    hu: Array
    masks: dict[str, Array] = field(default_factory=dict)

    def paint(self, where: Array, hu: float | Array, name: str | None = None) -> None:
        self.hu = np.where(where, hu, self.hu).astype(np.float32)
        for other in self.masks:
            self.masks[other] &= ~where
        if name is not None:
            self.masks[name] = self.masks[name] | where if name in self.masks else where.copy()


def rotation(angles: Array) -> Array:
    cx, cy, cz = np.cos(angles)
    sx, sy, sz = np.sin(angles)
    return (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )


def field_of(a: Canvas, centre: Array, radii: Array, turn: Array) -> Array:
    """An ellipsoid: the squared normalised radius minus one. turn: (3, 3) rotation."""
    d = (a.x - centre[0], a.y - centre[1], a.z - centre[2])
    total = np.zeros_like(a.x)
    for i in range(3):
        total += ((turn[0, i] * d[0] + turn[1, i] * d[1] + turn[2, i] * d[2]) / radii[i]) ** 2
    return total - 1


def superellipse(x: Array, y: Array, rx: float | Array, ry: float | Array, p: float) -> Array:
    return np.abs(x / rx) ** p + np.abs(y / ry) ** p - 1


def ellipse(x: Array, y: Array, rx: float | Array, ry: float | Array) -> Array:
    return (x / rx) ** 2 + (y / ry) ** 2 - 1


def segment2d(x: Array, y: Array, p: tuple[float, float], q: tuple[float, float]) -> Array:
    """Distance in mm to the segment from p to q."""
    d = np.array(q, float) - p
    t = np.clip(((x - p[0]) * d[0] + (y - p[1]) * d[1]) / (d @ d), 0, 1)
    return np.hypot(x - p[0] - t * d[0], y - p[1] - t * d[1])


def capsule(a: Canvas, p: Array, q: Array, radius: float) -> Array:
    d = q - p
    t = np.clip(((a.x - p[0]) * d[0] + (a.y - p[1]) * d[1] + (a.z - p[2]) * d[2]) / (d @ d), 0, 1)
    distance = np.sqrt(
        (a.x - p[0] - t * d[0]) ** 2 + (a.y - p[1] - t * d[1]) ** 2 + (a.z - p[2] - t * d[2]) ** 2
    )
    return distance - radius


def smooth_min(a: Array, b: Array, k: float) -> Array:
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b * (1 - h) + a * h - k * h * (1 - h)


def smooth(r: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """(side, side) float32 smooth noise of about `cells` waves, with unit standard deviation."""
    coarse = r.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    wide = ndimage.zoom(coarse, (side + 8) / cells, order=3, grid_mode=False)
    return wide[4 : 4 + side, 4 : 4 + side]
