"""What a scan shows: its modality and, recognised by the bones of an axial CT slice, the head or the legs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ibis_agent.scan.picture import Picture

STEP_MM = 2.5  # the slice is sampled at about this spacing
BODY, BONE = -250.0, 300.0  # HU thresholds
HEAD_CM2 = 420.0  # largest head
SKULL_SHARE = 0.5  # smallest fraction of a head that lies inside the skull
LEG_CM2 = 30.0, 420.0  # smallest and largest leg


@dataclass(frozen=True)
class Subject:
    """What the slices of a run show; "" if unknown.

    Attributes:
        modality: as the scan or a person says it, or that the scan does not look like CT.
        region: see `region_of`.
    """

    modality: str = ""
    region: str = ""


def subject_of(picture: Picture) -> Subject:
    """What a picture shows; unknown for photographs and recorded pictures, which have no grey values."""
    if picture.values is None:
        return Subject()
    if not picture.ct:
        return Subject(picture.modality or "a scan that does not look like CT")
    geometry, region = picture.geometry, ""
    if geometry.plane == "axial":
        region = region_of(picture.values, (geometry.row_mm or 1.0, geometry.col_mm or 1.0))
    return Subject(picture.modality, region)


def region_of(hu: np.ndarray, spacing: tuple[float, float]) -> str:
    """ "head" or "legs"; "" for the trunk and for unclear slices.

    Args:
        hu: (H, W) Hounsfield units of an axial slice.
        spacing: (row, column) mm.

    A head is a region of at most HEAD_CM2 that is mostly enclosed by bone. Legs are two regions of similar size beside
    each other, both with bone inside.
    """
    from scipy import ndimage  # not installed everywhere

    rows, columns = (max(1, round(STEP_MM / mm)) for mm in spacing)
    small = np.nan_to_num(np.asarray(hu[::rows, ::columns], np.float32), nan=-1000.0)
    pixel = rows * spacing[0] * columns * spacing[1] / 100  # cm²
    body = ndimage.binary_fill_holes(ndimage.binary_opening(small > BODY, iterations=2))
    labels, count = ndimage.label(body)
    if not count:
        return ""
    sizes = np.bincount(labels.ravel())[1:] * pixel
    order = np.argsort(sizes)[::-1]
    first = labels == order[0] + 1
    bone = ndimage.binary_closing(small > BONE, iterations=2)
    inside_skull = ndimage.binary_fill_holes(bone & first) & ~(bone & first)
    if sizes[order[0]] <= HEAD_CM2 and inside_skull.sum() * pixel > SKULL_SHARE * sizes[order[0]]:
        return "head"
    if count < 2:
        return ""
    second = labels == order[1] + 1
    alike = sizes[order[1]] > 0.6 * sizes[order[0]]
    sized = LEG_CM2[0] <= sizes[order[1]] and sizes[order[0]] <= LEG_CM2[1]
    across = [np.flatnonzero(each.any(0)) for each in (first, second)]
    apart = min(each[-1] for each in across) <= max(each[0] for each in across)
    boned = all((small[each] > BONE).sum() * pixel > 2 for each in (first, second))
    return "legs" if alike and sized and apart and boned else ""
