"""The picture that the policy and the segmenter see: a slice, oriented and windowed, with a mask overlay.

The positions of its pixels are in geometry; reading files is in load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.frame import Frame, Kind, find_frame
from ibis_agent.scan.geometry import PLANES, Orientation, PictureGeometry

if TYPE_CHECKING:
    from ibis_agent.scan.scan import Scan

__all__ = [
    "PLANES",
    "Orientation",
    "Picture",
    "PictureGeometry",
    "apply_window",
    "check_window",
    "cut",
    "overlay",
]

FOREST_GREEN = (34, 139, 34)
# The policies' image processors refuse pictures with a larger aspect ratio.
LONGEST_RATIO = 200


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture and its origin.

    Attributes:
        rgb: (H, W, 3) uint8.
        geometry: the positions of its pixels.
        window: the grey values shown as black and as white; None for a photograph.
        notes: for the person, about how the scan was read.
        frame: the part that the models see; None for all of it. Clicks and masks refer to the whole picture.
        values: (H, W) grey values of the scan, if available.
        ct: whether they are Hounsfield units.
        modality: from the file or chosen by the person, such as "MR"; "" if unknown.
    """

    rgb: np.ndarray
    geometry: PictureGeometry
    window: tuple[float, float] | None
    notes: tuple[str, ...] = ()
    frame: Frame | None = None
    values: np.ndarray | None = None
    ct: bool = False
    modality: str = ""


def cut(
    scan: Scan,
    plane: str = "axial",
    index: int | None = None,
    window: Sequence[float] | None = None,
    orientation: Orientation | str = Orientation.RADIOLOGICAL,
    preferred: Sequence[float] | None = None,
    frame: Kind | Frame = "slice",
) -> Picture:
    """Cut one slice from a scan and convert it to a picture.

    Args:
        plane: "axial", "sagittal", "coronal", or the raw axis "x", "y", "z" of the file.
        index: voxel index along the axis perpendicular to the slice; None means the middle.
        window: (minimum, maximum) in the scan's grey values. None uses the window in the file if it has
            one (`scan.window`), then `preferred`, then the slice's 1st and 99th percentile.
        orientation: orientation of the picture.
        preferred: a default window, such as a policy's; unlike `window`, it is not used for a slice in which it shows
            nothing.
        frame: the part that the models see: the whole "slice", the patient's "body" in it, or a known frame.

    A photograph is returned whole; only index 0 and the plane "axial" or "picture" are allowed, and it has no window.

    Raises InputError naming the scan's file.
    """
    if scan.kind == "picture":
        return _cut_photograph(scan, plane, index, window)
    geometry = scan.geometry(plane, index, orientation)
    short, long = sorted((geometry.height, geometry.width))
    if short < 2 or long > LONGEST_RATIO * short:
        raise InputError(
            f"the {geometry.plane} slice is too thin for a picture",
            file=scan.path,
            value=f"{geometry.width} × {geometry.height} pixels",
            remedy=f"Choose another plane, perpendicular to the axis {'xyz'[int(np.argmin(scan.voxels.shape))]}.",
        )
    values = geometry.extract(scan.voxels)
    _check_finite(values, scan, geometry)
    if window is not None:
        chosen = check_window(window)
        grey = apply_window(values, chosen)
    else:
        chosen = _window_of(values, scan, geometry, preferred)
        grey = apply_window(values, chosen)
        if (grey == grey[0, 0]).all():
            raise InputError(
                f"slice {geometry.index} ({geometry.plane}) has a single grey value in the window {chosen[0]:g} to "
                f"{chosen[1]:g}: there is nothing to see",
                file=scan.path,
                value=f"values from {values.min():g} to {values.max():g}",
                remedy="Give a window that fits its values, or choose another slice.",
            )
    if scan.inverted:
        grey = 255 - grey
    if frame == "body":
        frame = find_frame(values, (geometry.row_mm or 1.0, geometry.col_mm or 1.0))
    inside = frame if isinstance(frame, Frame) and not frame.is_whole else None
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    # A copy: a view would keep the whole scan in memory.
    return Picture(rgb, geometry, chosen, scan.told, inside, np.array(values), scan.may_be_ct, scan.modality)


def check_window(window: Sequence[float]) -> tuple[float, float]:
    """(minimum, maximum) as floats. Raises InputError for anything but two finite, increasing numbers."""
    remedy = "Give two numbers, the smaller first, such as -160 240 for soft tissue in CT."
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError) as error:
        raise InputError("a window is two numbers", value=window, remedy=remedy) from error
    if not np.isfinite(high - low):
        raise InputError("a window needs finite numbers", value=f"{low:g} {high:g}", remedy=remedy)
    if low >= high:
        problem = "the window has no width" if low == high else "the window is reversed"
        raise InputError(problem, value=f"{low:g} {high:g}", remedy=remedy)
    return low, high


def percentile_window(values: np.ndarray) -> tuple[float, float] | None:
    """(minimum, maximum): the 1st and 99th percentile, as in the published code; None for constant values.

    If these two are equal, nearly all values are the same, and the whole range is used to show the others.
    """
    values = values.astype(np.float64)
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    if low == high:
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else None


def apply_window(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Grey values → uint8: from the window's minimum (0) to its maximum (255), truncated as in the published
    code."""
    low, high = window
    scaled = np.clip(values.astype(np.float64), low, high)
    return np.asarray((scaled - low) / (high - low) * 255).astype(np.uint8)


def overlay(
    rgb: np.ndarray,
    mask: np.ndarray,
    colour: Sequence[int] = FOREST_GREEN,
    alpha: float = 0.4,
) -> np.ndarray:
    """A copy of the (H, W, 3) uint8 picture with the (H, W) mask painted over it, as in the published code.

    colour: 0-255 RGB. Raises InputError.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or mask.shape != rgb.shape[:2]:
        raise InputError(
            "the mask and the picture have different sizes", value=f"{mask.shape} on {rgb.shape}"
        )
    if not 0 <= alpha <= 1 or len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
        raise InputError("the overlay needs three colour values from 0 to 255 and an alpha from 0 to 1")
    inside = np.asarray(mask) != 0
    painted = np.array(rgb, dtype=np.uint8)
    blended = painted[inside] * (1 - alpha) + np.asarray(colour, dtype=np.float64) * alpha
    painted[inside] = blended.astype(np.uint8)
    return painted


def _cut_photograph(scan: Scan, plane: str, index: int | None, window: Sequence[float] | None) -> Picture:
    if str(plane).lower() not in ("axial", "picture"):
        raise InputError(
            "a picture has no planes", file=scan.path, value=plane, remedy="Leave the plane out."
        )
    if index not in (None, 0):
        raise InputError(
            "a picture has only one slice", file=scan.path, value=index, remedy="Leave the slice out."
        )
    if window is not None:
        raise InputError(
            "a picture has no window: its grey values are already final",
            file=scan.path,
            value=window,
            remedy="Leave the window out.",
        )
    height, width = scan.voxels.shape[:2]
    return Picture(np.ascontiguousarray(scan.voxels), PictureGeometry.of_picture(height, width), None)


def _window_of(
    values: np.ndarray, scan: Scan, geometry: PictureGeometry, preferred: Sequence[float] | None
) -> tuple[float, float]:
    """The default window of a slice. Raises InputError for a constant slice."""
    found = percentile_window(values)
    if found is None:
        raise InputError(
            f"slice {geometry.index} ({geometry.plane}) is constant: there is nothing to see",
            file=scan.path,
            value=f"{values.flat[0]:g} everywhere",
            remedy="Choose another slice, or give a window if this is intended.",
        )
    if scan.window is not None:
        return scan.window
    return found if preferred is None else check_window(preferred)


def _check_finite(values: np.ndarray, scan: Scan, geometry: PictureGeometry) -> None:
    if not np.issubdtype(values.dtype, np.inexact):
        return
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise InputError(
            f"slice {geometry.index} ({geometry.plane}) contains voxels that are not numbers (NaN or infinite)",
            file=scan.path,
            value=f"{bad} of {values.size}",
            remedy="Replace them (by the value of air, for example), or choose another slice.",
        )
