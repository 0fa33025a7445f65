"""The slices of a run's record with their final masks, for both kinds of runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibis_agent.mask.masks import decode_rle
from ibis_agent.mask.packed import packed
from ibis_agent.scan.geometry import PictureGeometry

Json = Mapping[str, Any]


@packed
@dataclass(frozen=True, eq=False)
class RecordedSlice:
    """One slice: its geometry, its (H, W) bool mask, its recorded picture and its other recorded data."""

    geometry: PictureGeometry
    mask: np.ndarray
    picture: Json
    row: Json


def recorded_slices(record: Json) -> list[RecordedSlice]:
    """The slices in order of index: one for a run on a slice, the visited ones for a volume.

    Raises ValueError, KeyError, TypeError and similar errors if it is not a record.
    """
    rows: list[Json] = list(record["slices"]) if "slices" in record else [_of_slice_run(record)]
    found = []
    for row in rows:
        geometry = _geometry(row["picture"])
        mask = decode_rle(row["mask_rle"], (geometry.height, geometry.width))
        found.append(RecordedSlice(geometry, mask, row["picture"], row))
    one = found[0].geometry
    if any((each.geometry.axis, each.geometry.shape) != (one.axis, one.shape) for each in found):
        raise ValueError("the slices do not belong to the same volume")
    found.sort(key=lambda each: each.geometry.index)
    if len({each.geometry.index for each in found}) < len(found):
        raise ValueError("a slice occurs twice")
    return found


def _of_slice_run(record: Json) -> Json:
    begun = ((record.get("start") or {}).get("masks") or {}).values()
    mask = record["steps"][-1]["mask_rle"] if record["steps"] else next(iter(begun), "")
    return {"picture": record["picture"], "mask_rle": mask}


def _geometry(picture: Json) -> PictureGeometry:
    height, width = int(picture["height"]), int(picture["width"])
    if not picture.get("geometry"):
        return PictureGeometry.of_picture(height, width)
    geometry = PictureGeometry.from_json(picture["geometry"])
    if (geometry.height, geometry.width) != (height, width):
        raise ValueError("the picture and its geometry have different sizes")
    return geometry
