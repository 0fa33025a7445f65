"""The two forms of a record: for a single slice (ibis-trajectory/1) and for many slices (ibis-volume/1). No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibis_agent.fields import Fields
from ibis_agent.mask.masks import encode_rle
from ibis_agent.mask.measurements import Measurements
from ibis_agent.record.pictures import (
    RecordedPictures,
    orientation_from,
    picture_from_json,
    picture_to_json,
    subject_from_json,
)
from ibis_agent.record.steps import Json, action_from_json, actions_of, mask_from, step_from_json
from ibis_agent.scan.frame import Frame, frame_from
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.picture import Picture
from ibis_agent.scan.slices import RecordedSlices, Stack, one_slice

SCHEMA, VOLUME_SCHEMA = "ibis-trajectory/1", "ibis-volume/1"
_MOST_SLICES = 100_000
NOTHING: Json = {"area_px": 0, "area_mm2": 0.0, "score": None, "presence": None, "anchor": False}


@dataclass(frozen=True)
class Cut:
    """How a volume is cut into slices, besides their orientation and range.

    Attributes:
        axis: the voxel axis of the file that is perpendicular to the slices.
        window: (minimum, maximum) shown as black and white.
        roi: i0 i1 j0 j1 k0 k1, or None.
        frame: the part of every slice that the models see; None for all of it.
    """

    axis: int
    window: list[float]
    roi: list[int] | None
    frame: Frame | None = None

    @classmethod
    def of(cls, stack: Stack) -> Cut:
        roi = None if stack.roi is None else [n for pair in zip(*stack.roi, strict=True) for n in pair]
        return cls(stack.geometry(stack.first).axis, list(stack.window), roi, stack.frame)

    @classmethod
    def from_json(cls, fields: Fields) -> Cut | None:
        if fields.value("window", None) is None:
            return None
        window = [each.plain_number() for each in fields.list_of("window", 2)]
        return cls(fields.whole("axis", 0) % 3, window, fields.value("roi", None), frame_from(fields))


def is_volume_record(record: Any) -> bool:
    """Whether a JSON value is the record of a run over many slices."""
    return isinstance(record, Mapping) and record.get("schema") == VOLUME_SCHEMA


def slice_from(fields: Fields) -> Json:
    """The arguments of a Trajectory, from the record of a single slice. Raises InputError naming the field."""
    recorded = fields.inside("picture")
    picture = picture_from_json(recorded)
    geometry = picture.geometry
    steps = [step_from_json(each, geometry, n) for n, each in enumerate(fields.list_of("steps"), 1)]
    actions = actions_of(steps, geometry.index)
    return {
        "slices": one_slice(picture, subject_from_json(recorded)),
        "actions": actions,
        "answer": actions[-1].answer if actions else None,
        "source": recorded.text("source", ""),
        "orientation": orientation_from(recorded),
    }


def volume_from(fields: Fields) -> Json:
    """The arguments of a Trajectory, from the record of many slices. Raises InputError naming the field."""
    volume = fields.inside("volume")
    first, last, count = (volume.whole(key, 0) for key in ("first", "last", "count"))
    if not 0 <= first <= last < count <= _MOST_SLICES:
        raise volume.error("last", "is not a slice of this volume")
    pictures, rows, clips = RecordedPictures(), dict[int, Json](), dict[int, np.ndarray]()
    axes = set()
    for each in fields.list_of("slices"):
        inside = each.inside("picture")
        index = Fields(inside.value("geometry", None), fields.file).value("index", None)
        if index in pictures:
            raise each.error("picture", f"repeats slice {index}")
        geometry = pictures.add(inside).geometry
        index, shape = geometry.index, (geometry.height, geometry.width)
        if not first <= index <= last:
            raise each.error("picture", f"belongs to slice {index}, which is outside the range")
        axes.add((geometry.axis, geometry.shape))
        mask_from(each, "mask_rle", shape)  # checks it
        rows[index] = {
            key: value for key, value in each.values.items() if key not in ("picture", "inside_rle")
        }
        if each.value("inside_rle", None) is not None:
            clips[index] = mask_from(each, "inside_rle", shape)
    if not pictures:
        raise fields.error("slices", "must not be empty", "[]")
    if len(axes) > 1:
        raise fields.error("slices", "do not belong to the same volume", "[…]")
    actions = []
    for number, each in enumerate(fields.list_of("actions"), 1):
        index = each.whole("slice", 0)
        if index not in pictures:
            raise each.error("slice", "is not one of the recorded slices")
        action = action_from_json(each, geometry, number)
        if any(way.start not in pictures or way.last not in pictures for way in action.ways):
            raise each.error("ways", "include slices that were not recorded", "[…]")
        actions.append(action)
    turned = None
    if volume.value("orientation", None) is not None:
        turned = volume.choice("orientation", [each.value for each in Orientation])
    return {
        "slices": RecordedSlices(pictures, count, first, last, clips, subject_from_json(volume)),
        "actions": tuple(actions),
        "rows": rows,
        "answer": None if fields.value("answer", None) is None else fields.text("answer"),
        "source": volume.text("source", ""),
        "orientation": turned,
        "cut": Cut.from_json(volume),
    }


def put_together(
    head: Mapping[str, Any],
    outcome: Mapping[str, Any],
    actions: Sequence[Mapping[str, Any]],
    rows: Mapping[int, Mapping[str, Any]],
    picture_of: Callable[[int], Picture],
    inside: Callable[[int], np.ndarray | None] = lambda index: None,
) -> Json:
    """Assemble the record of many slices from its parts. See `parts_of`."""
    whole, slices = parts_of(head, outcome, actions, rows, picture_of, inside)
    return {**whole, "slices": list(slices)}


def parts_of(
    head: Mapping[str, Any],
    outcome: Mapping[str, Any],
    actions: Sequence[Mapping[str, Any]],
    rows: Mapping[int, Mapping[str, Any]],
    picture_of: Callable[[int], Picture],
    inside: Callable[[int], np.ndarray | None] = lambda index: None,
    png: bool = True,
) -> tuple[Json, Iterator[Json]]:
    """The record of many slices without its slices, and the slices one by one, because their pictures are large.

    Args:
        head: see Trajectory.head.
        outcome: answer, status, reason.
        actions, rows: see steps.action_to_json, slice_to_json.
        picture_of: the picture of a slice.
        inside: where masks of a slice may lie, see scan.slices.Slices.
        png: see pictures.picture_to_json.
    """
    volume = head["volume"]
    spans = [span for each in actions for span in _spans_of(each)]
    slices = (
        row_with_picture(index, rows.get(index), picture_of(index), inside(index), str(volume["source"]), png)
        for index in visited(spans, rows, int(volume["first"]))
    )
    whole = {**volume, **figures(actions, rows.values(), float(volume["gap_mm"]))}
    return {**head, "volume": whole, **outcome, "actions": [dict(each) for each in actions]}, slices


def figures(actions: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]], gap_mm: float) -> Json:
    """The key slice and the volume in mL."""
    key = next((int(each["slice"]) for each in actions if each["kind"] == "click"), None)
    areas = [each["area_mm2"] for each in rows]
    known = None not in areas  # None if the voxel size is unknown
    return {"key": key, "ml": sum(float(each) for each in areas) * gap_mm / 1000 if known else None}


def _spans_of(action: Mapping[str, Any]) -> list[tuple[int, int]]:
    """First and last slice that an action covered."""
    index = int(action["slice"])
    return [(index, index), *((int(way["start"]), int(way["last"])) for way in action["ways"])]


def row_with_picture(
    index: int,
    row: Mapping[str, Any] | None,
    picture: Picture,
    clip: np.ndarray | None,
    source: str,
    png: bool = True,
) -> Json:
    """A slice in the form of the record.

    row: see steps.slice_to_json; None if nothing is known. clip: see scan.slices.Slices.inside.
    """
    made: Json = {"slice": index, "mask_rle": "", **NOTHING, **(row or {})}
    if clip is not None:
        made["inside_rle"] = encode_rle(clip)
    return {**made, "picture": picture_to_json(picture, source, png=png)}


def visited(spans: Iterable[tuple[int, int]], rows: Iterable[int], first: int) -> list[int]:
    """The slices with known state or covered by actions, including those whose state was undone.

    Before the first action it still contains one slice, because its picture says how the volume is cut.
    """
    met = {n for one, other in spans for n in range(min(one, other), max(one, other) + 1)}
    return sorted({*rows, *met} or {first})


def measurements_from(fields: Fields) -> Json:
    """The measurements of the object as plain values; may be empty. Raises InputError naming the field."""
    values = fields.value("measurements", None)
    if values is None:
        return {}
    try:
        Measurements(**values).lines()
    except (TypeError, ValueError, AttributeError) as error:
        raise fields.error("measurements", "are not measurements of this program", "{…}") from error
    return dict(values)
