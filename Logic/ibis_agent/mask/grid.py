"""Labels on the grid of their scan: axes are reordered and flipped, and a part of the grid is placed in the whole.

Nothing is resampled: every voxel of the labels must be one voxel of the scan, or they are refused.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ibis_agent.scan.checks import by

Shape = tuple[int, ...]


class Misplaced(Exception):  # noqa: N818 - converted to a Problem, or to an InputError that names the file
    """The labels do not match their scan: `kind` says whether in "size" or in "place"."""

    def __init__(self, kind: Literal["size", "place"], text: str) -> None:
        self.kind = kind
        super().__init__(text)


def laid_on(
    labels: np.ndarray,
    affine: np.ndarray,
    target: np.ndarray,
    shape: Shape,
    part: bool = False,
    slack: float = 0.5,
) -> np.ndarray:
    """The labels in the scan's index order: (I, J, K) of `shape`; possibly a view.

    Args:
        labels: (I, J, K), on the scan's grid but in any axis order and direction.
        affine: (4, 4) voxel → RAS mm of the labels.
        target: (4, 4) voxel → RAS mm of the scan.
        part: the labels may cover only a part of the grid, or extend beyond it if they are zero there.
        slack: allowed distance in voxels, for rounding in headers.

    Raises Misplaced.
    """
    apart = _apart(target, affine, shape) if labels.shape == shape else np.inf
    if apart <= slack:
        return labels
    turned = _turned(labels, np.linalg.inv(target) @ affine, slack)
    if turned is not None:
        held, start = turned
        if held.shape == shape and start == (0, 0, 0):
            return held
        if part:
            return _put(held, start, shape)
    if labels.shape != shape and not part:
        raise Misplaced("size", size_text(labels.shape, shape))
    apart = min(apart, _apart(target, affine, shape))
    raise Misplaced("place", f"the mask is {apart:.1f} voxels away from the picture")


def size_text(mask: Shape, picture: Shape) -> str:
    return f"the mask has the size {by(mask)}, the picture {by(picture)}"


def _turned(labels: np.ndarray, to_scan: np.ndarray, slack: float) -> tuple[np.ndarray, Shape] | None:
    """(labels with the scan's axes, the scan's voxel of their first one), or None if the grids differ.

    to_scan: (4, 4) voxel of the labels → voxel of the scan.
    """
    turn, shift = np.rint(to_scan[:3, :3]), to_scan[:3, 3]
    if not ((np.abs(turn).sum(0) == 1).all() and (np.abs(turn).sum(1) == 1).all()):
        return None
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in labels.shape])).reshape(3, -1)
    off = (to_scan[:3, :3] - turn) @ corners + (shift - np.rint(shift))[:, None]
    if np.abs(off).max() > slack:
        return None
    axes = [int(np.argmax(np.abs(turn[axis]))) for axis in range(3)]
    backward = [bool(turn[axis, axes[axis]] < 0) for axis in range(3)]
    labels = labels.transpose(axes)[tuple(np.s_[::-1] if each else np.s_[:] for each in backward)]
    first = np.rint(shift).astype(int)
    start = [int(first[axis]) - (labels.shape[axis] - 1 if backward[axis] else 0) for axis in range(3)]
    return labels, (start[0], start[1], start[2])


def _put(labels: np.ndarray, start: Shape, shape: Shape) -> np.ndarray:
    """Place a part of the grid in the whole. Raises Misplaced if labels are outside."""
    out = np.zeros(shape, labels.dtype)
    low = [max(0, first) for first in start]
    high = [min(side, first + own) for side, first, own in zip(shape, start, labels.shape, strict=True)]
    inside = tuple(
        slice(max(0, a - first), max(0, b - first)) for a, b, first in zip(low, high, start, strict=True)
    )
    held = labels[inside]
    if np.count_nonzero(held) != np.count_nonzero(labels):
        raise Misplaced("place", "a part of the mask is outside the picture")
    if held.size:
        out[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = held
    return out


def _apart(a: np.ndarray, b: np.ndarray, shape: Shape) -> float:
    """The largest distance of a volume corner between the two affines, in voxels."""
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape])).reshape(3, -1)
    moved = (a[:3, :3] - b[:3, :3]) @ corners + (a[:3, 3:] - b[:3, 3:])
    return float(np.linalg.norm(moved, axis=0).max() / np.linalg.norm(a[:3, :3], axis=0).min())
