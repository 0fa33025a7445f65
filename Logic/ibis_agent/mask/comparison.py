"""The agreement of two masks of one scan: Dice, IoU, surface distances, and the difference of their volumes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.mask.masks import dice, iou


@dataclass(frozen=True)
class Comparison:
    """Two masks, A and B.

    Attributes:
        dice, iou: 0 to 1; 1 if both are empty.
        hd95: 95th percentile of the distances from one surface to the other, the larger of both directions.
        mean_distance: average symmetric surface distance: the mean over the voxels of both surfaces.
        size_a, size_b: in `size_unit`.
        size_unit: "mL" for a volume, "mm²" for one slice, "px" if the pixel size is unknown.
        unit: of the distances: "mm", or "px". Distances are None if a mask is empty.
    """

    dice: float
    iou: float
    hd95: float | None
    mean_distance: float | None
    size_a: float
    size_b: float
    size_unit: str
    unit: str

    @property
    def difference(self) -> float:
        """Size of B minus size of A."""
        return self.size_b - self.size_a

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {**asdict(self), "difference": self.difference}
        return {key: round(each, 6) if isinstance(each, float) else each for key, each in values.items()}

    def lines(self) -> list[tuple[str, str]]:
        """For display, as (name, value with unit)."""

        def distance(value: float | None) -> str:
            return "one mask is empty" if value is None else f"{value:.2f} {self.unit}"

        share = f" ({100 * self.difference / self.size_a:+.1f} % of A)" if self.size_a else ""
        return [
            ("Dice", f"{self.dice:.4f}"),
            ("IoU", f"{self.iou:.4f}"),
            ("HD95", distance(self.hd95)),
            ("Mean surface distance", distance(self.mean_distance)),
            ("Size of A", f"{self.size_a:.2f} {self.size_unit}"),
            ("Size of B", f"{self.size_b:.2f} {self.size_unit}"),
            ("B minus A", f"{self.difference:+.2f} {self.size_unit}{share}"),
        ]


def compare(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...] | None = None) -> Comparison:
    """Compare two masks of the same shape, (H, W) or (I, J, K). Everything except zero is inside.

    spacing: mm along each axis; None if unknown. Raises InputError if the shapes differ.
    """
    a, b = np.asarray(a) != 0, np.asarray(b) != 0
    if a.shape != b.shape:
        raise InputError(
            "the masks have different shapes",
            value=f"{a.shape} and {b.shape}",
            remedy="Both must be on the grid of the same scan.",
        )
    steps = (1.0,) * a.ndim if spacing is None else spacing
    each = float(np.prod(steps)) / (1000 if a.ndim == 3 and spacing is not None else 1)
    size_unit = "px" if spacing is None else "mL" if a.ndim == 3 else "mm²"
    hd95, mean = _distances(a, b, steps)
    sizes = np.count_nonzero(a) * each, np.count_nonzero(b) * each
    return Comparison(dice(a, b), iou(a, b), hd95, mean, *sizes, size_unit, "px" if spacing is None else "mm")


def _distances(a: np.ndarray, b: np.ndarray, steps: tuple[float, ...]) -> tuple[float | None, float | None]:
    from scipy import ndimage

    if not a.any() or not b.any():
        return None, None
    # Only the bounding box of both is needed, with a margin of one voxel for the erosion.
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    a, b = np.pad(a[box], 1), np.pad(b[box], 1)
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~surface, sampling=steps) for surface in surfaces)
    from_a, from_b = to_b[surfaces[0]], to_a[surfaces[1]]
    hd95 = max(float(np.percentile(each, 95)) for each in (from_a, from_b))
    return hd95, float(np.concatenate([from_a, from_b]).mean())
