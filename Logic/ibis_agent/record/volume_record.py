"""The record of a volume run: one `trajectory.json` for all of it, schema ibis-volume/1.

The slices that the run met travel inside as pictures, with their masks, so that it can be shown, checked and
replayed without the scan. Slices that it never met are not recorded. The record of a run on one slice is in
trajectory, whose steps stand in this one's actions too.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ibis_agent import files
from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from ibis_agent.fields import Fields, read_json
from ibis_agent.mask.masks import area, decode_rle, encode_rle, iou
from ibis_agent.record.trajectory import (
    Difference,
    other_weights,
    picture_from_json,
    picture_to_json,
    step_from_json,
    step_to_json,
)
from ibis_agent.run.volume_actions import KINDS, VolumeAction, VolumeLimits, Way
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture
from ibis_agent.scan.slices import RecordedSlices, Slices, Stack

if TYPE_CHECKING:
    from ibis_agent.policy.contract import Policy
    from ibis_agent.run.volume_run import VolumeRun
    from ibis_agent.segmenter.contract import Segmenter

SCHEMA = "ibis-volume/1"
_MOST_SLICES = 100_000


@dataclass(frozen=True, eq=False)
class VolumeTrajectory:
    """A volume run as it was recorded.

    Attributes:
        head: all of the record but its actions and slices, plain values.
        pictures: by slice.
        masks: (H, W) bool by slice, within the region of interest.
        clips: where masks may lie, by slice; empty for everywhere.
        actions: what was done, plain values.
        first, last, count: the range of slices, and how many the whole axis has.
    """

    head: dict[str, Any]
    pictures: dict[int, Picture]
    masks: dict[int, np.ndarray]
    clips: dict[int, np.ndarray]
    actions: list[dict[str, Any]]
    first: int
    last: int
    count: int

    @property
    def question(self) -> str:
        return str(self.head["question"])

    @property
    def answer(self) -> str:
        return str(self.head.get("answer") or "")

    def volume(self) -> np.ndarray:
        """(I, J, K) uint8 in the scan's own voxel order."""
        out = np.zeros(next(iter(self.pictures.values())).geometry.shape, dtype=np.uint8)
        for index, mask in self.masks.items():
            self.pictures[index].geometry.embed_mask(mask, out)
        return out

    def facts(self) -> dict[str, str]:
        """What the record says of itself, for people; texts by term, empty where it says nothing."""
        head, volume = self.head, Fields(self.head).inside("volume")
        one = next(iter(self.pictures.values())).geometry
        shown = [index for index, mask in sorted(self.masks.items()) if mask.any()]
        people = sum(each.get("by") == "person" for each in self.actions)
        where = f"{shown[0]} to {shown[-1]}" if shown else "none"
        models = head.get("models") or {}
        return {
            "question": self.question,
            "answer": self.answer,
            "actions": f"{len(self.actions)}, {people} of them by a person",
            "second looks": str(max((int(each.get("look") or 0) for each in self.actions), default=0)),
            "status": f"{head.get('status', '')}. {head.get('reason') or ''}".strip(" ."),
            "scan": volume.text("source", ""),
            "slices": f"{one.plane}, {self.first} to {self.last} of {self.count}, {len(self.masks)} visited",
            "key slice": "" if volume.value("key", None) is None else str(volume.value("key")),
            "object": f"in slices {where}, {volume.number('ml') or 0:.2f} mL",
            "made": str(head.get("created") or ""),
            **{
                role: ", ".join(map(str, (models.get(role) or {}).values()))
                for role in ("policy", "segmenter")
            },
            "note": str(head.get("note") or ""),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VolumeTrajectory:
        """Read a JSON file. Raises InputError naming the file, the field and its value."""
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, record: Any, file: str | os.PathLike[str] | None = None) -> VolumeTrajectory:
        """The reverse of `volume_to_json`. Raises InputError naming the field and its value."""
        fields = Fields(record, file)
        if fields.text("schema") != SCHEMA:
            raise fields.error("schema", f"must be {SCHEMA}")
        fields.text("question")
        volume = fields.inside("volume")
        first, last, count = (volume.whole(key, 0) for key in ("first", "last", "count"))
        if not 0 <= first <= last < count <= _MOST_SLICES:
            raise volume.error("last", "is not a slice of this volume")
        pictures: dict[int, Picture] = {}
        masks: dict[int, np.ndarray] = {}
        clips: dict[int, np.ndarray] = {}
        for each in fields.list_of("slices"):
            picture = picture_from_json(each.inside("picture"))
            index = picture.geometry.index
            if not first <= index <= last or index in pictures:
                raise each.error(
                    "picture", f"is of slice {index}, which is not in the range or is there twice"
                )
            shape = (picture.geometry.height, picture.geometry.width)
            pictures[index] = picture
            masks[index] = _mask_from(each, "mask_rle", shape)
            if each.value("inside_rle", None) is not None:
                clips[index] = _mask_from(each, "inside_rle", shape)
        if not pictures:
            raise fields.error("slices", "are none", "[]")
        one = next(iter(pictures.values())).geometry
        if any((p.geometry.axis, p.geometry.shape) != (one.axis, one.shape) for p in pictures.values()):
            raise fields.error("slices", "are not of one volume", "[…]")
        actions = [dict(each.values) for each in fields.list_of("actions")]
        head = {key: value for key, value in record.items() if key not in ("actions", "slices")}
        made = cls(head, pictures, masks, clips, actions, first, last, count)
        made.volume_actions(file)  # checks them
        return made

    def volume_actions(self, file: str | os.PathLike[str] | None = None) -> list[VolumeAction]:
        """The actions as VolumeRun knows them. Raises InputError naming the field."""
        made = []
        for number, each in enumerate(self.actions, 1):
            fields = Fields(each, file, f"actions[{number - 1}]")
            index = fields.whole("slice", 0)
            if index not in self.pictures:
                raise fields.error("slice", "is not among the recorded slices")
            action = action_from_json(fields, self.pictures[index].geometry, number)
            for way in action.ways:
                if way.start not in self.pictures or way.last not in self.pictures:
                    raise fields.error("ways", "lead out of the recorded slices", "[…]")
            made.append(action)
        return made

    def check_stack(self, stack: Stack, file: str | os.PathLike[str] | None = None) -> None:
        """Raises InputError unless the recorded slices are those of the stack, pixel for pixel."""
        geometry = stack.geometry(stack.first)
        size = geometry.height, geometry.width
        for index, picture in self.pictures.items():
            fits = index < len(stack) and (picture.geometry.height, picture.geometry.width) == size
            if not fits or not np.array_equal(stack.picture(index).rgb, picture.rgb):
                remedy = "Name the scan that it was made with."
                raise InputError(
                    f"the record is of another scan than {stack.scan.name}",
                    file=file,
                    value=f"slice {index}",
                    remedy=remedy,
                )

    def replay(self, segmenter: Segmenter) -> VolumeReplay:
        """Do all of it again with the segmenter alone, and compare every slice. Raises what it raises."""
        from ibis_agent.run.volume_run import VolumeRun

        follow: Any = Fields(self.head).inside("limits").choice("follow", ("memory", "carry"))
        slices = RecordedSlices(self.pictures, self.count, self.first, self.last, self.clips)
        run = VolumeRun(slices, self.question, None, segmenter, VolumeLimits(follow=follow), history_limit=0)
        run.go_to(self.volume_actions())
        differences, notes = self.differences(run), self.other_models(None, segmenter)
        return VolumeReplay(run.volume(), tuple(differences), tuple(notes))

    def differences(self, run: VolumeRun) -> list[Difference]:
        """The slices (`number`) that a run shows otherwise than this record."""
        found = []
        for index, old in sorted(self.masks.items()):
            new = run.mask(index)
            if not np.array_equal(old, new):
                found.append(Difference(index, int(np.count_nonzero(old != new)), iou(old, new)))
        return found

    def other_models(self, policy: Policy | None, segmenter: Segmenter) -> list[str]:
        """What people should know where the models are not those that this was made with."""
        recorded: Mapping[str, Any] = self.head.get("models") or {}
        notes = other_weights("segmenter", recorded.get("segmenter") or {}, segmenter.identity)
        if policy is not None and recorded.get("policy"):
            notes += other_weights("policy", recorded["policy"], policy.identity)
        return notes


@dataclass(frozen=True, eq=False)
class VolumeReplay:
    """What a replay gave: (I, J, K) uint8, the slices (`number`) that came out differently, and warnings."""

    volume: np.ndarray
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


def head_of_run(run: VolumeRun, source: str | os.PathLike[str] = "", created: str = "") -> dict[str, Any]:
    """The record of a run without its outcome, actions and slices, for who keeps those.

    source: the scan's path, of which the name is kept.
    """
    slices = run.slices
    geometry = slices.geometry(slices.first)
    return {
        "schema": SCHEMA,
        "created": created or datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "note": "" if run.policy is None else run.policy.card.note,
        "question": run.question,
        "models": {
            "policy": None if run.policy is None else dict(run.policy.identity),
            "segmenter": dict(run.segmenter.identity),
        },
        "limits": {**dataclasses.asdict(run.limits), "follow": run.memory.way},
        "volume": {
            "source": os.path.basename(os.path.normpath(source)) if os.fspath(source) else "",
            "first": slices.first,
            "last": slices.last,
            "count": len(slices),
            "gap_mm": run.gap_mm,
            "geometry": geometry.to_json(),
            **_how_cut(slices),
        },
    }


def slice_to_json(run: VolumeRun, index: int) -> dict[str, Any] | None:
    """What is known of one slice; None where nothing is."""
    found, mask = run.found.get(index), run.mask(index)
    if found is None:
        return None
    return {
        "slice": index,
        "mask_rle": encode_rle(mask),
        "area_px": area(mask),
        "area_mm2": area(mask) * run.row_mm * run.col_mm,
        "score": found.score,
        "presence": found.presence,
        "anchor": found.anchor,
    }


def put_together(
    head: Mapping[str, Any],
    outcome: Mapping[str, Any],
    actions: Sequence[Mapping[str, Any]],
    slices: Mapping[int, Mapping[str, Any]],
    picture_of: Callable[[int], Picture],
    inside: Callable[[int], np.ndarray | None] = lambda index: None,
) -> dict[str, Any]:
    """The whole record out of its parts.

    Args:
        head: see `head_of_run`. outcome: answer, status, reason.
        actions: see `action_to_json`. slices: see `slice_to_json`.
        picture_of: the picture of a slice.
        inside: where masks of a slice may lie, see stack.Slices.
    """
    source = str(head["volume"]["source"])
    rows: list[dict[str, Any]] = []
    # Before the first action there is a slice all the same: how the volume is cut stands in its picture.
    for index in sorted({*slices, *_visited(actions)} or {int(head["volume"]["first"])}):
        picture = picture_of(index)
        empty = encode_rle(np.zeros(picture.rgb.shape[:2], dtype=bool))
        nothing = {"area_px": 0, "area_mm2": 0.0, "score": None, "presence": None, "anchor": False}
        row: dict[str, Any] = {"slice": index, "mask_rle": empty, **nothing, **slices.get(index, {})}
        clip = inside(index)
        if clip is not None:
            row["inside_rle"] = encode_rle(clip)
        rows.append({**row, "picture": picture_to_json(picture, source)})
    key = next((int(action["slice"]) for action in actions if action["kind"] == "click"), None)
    ml = sum(float(row["area_mm2"]) for row in rows) * float(head["volume"]["gap_mm"]) / 1000
    volume = {**head["volume"], "key": key, "ml": ml}
    return {**head, "volume": volume, **outcome, "actions": [dict(each) for each in actions], "slices": rows}


def _visited(actions: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Every slice that an action was on or went through, also those that a later one made unknown again."""
    for action in actions:
        yield int(action["slice"])
        for way in action["ways"]:
            yield from range(min(way["start"], way["last"]), max(way["start"], way["last"]) + 1)


def volume_to_json(run: VolumeRun, source: str | os.PathLike[str] = "", created: str = "") -> dict[str, Any]:
    """The record of a run as it stands."""
    geometry = run.slices.geometry(run.slices.first)
    return put_together(
        head_of_run(run, source, created),
        {"answer": run.answer, "status": run.status, "reason": run.reason},
        [action_to_json(action, geometry) for action in run.actions],
        {index: slice_to_json(run, index) or {} for index in run.found},
        run.slices.picture,
        run.slices.inside,
    )


def _how_cut(slices: Slices) -> dict[str, Any]:
    """What a stack is made again from, to go on with a record."""
    if not isinstance(slices, Stack):
        return {}
    roi = None if slices.roi is None else [n for pair in zip(*slices.roi, strict=True) for n in pair]
    axis = slices.geometry(slices.first).axis
    return {
        "axis": axis,
        "orientation": slices.orientation.value,
        "window": list(slices.window),
        "roi": roi,
        "frame": None if slices.frame is None else slices.frame.to_json(),
    }


def is_volume_record(record: Any) -> bool:
    """Whether a JSON value says of itself that it is the record of a volume run."""
    return isinstance(record, Mapping) and record.get("schema") == SCHEMA


def save_volume(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the JSON file, whole or not at all. Raises OutputError."""
    files.write_json(path, dict(record))


def action_to_json(action: VolumeAction, geometry: PictureGeometry) -> dict[str, Any]:
    """One action as it stands in the record. geometry: of a slice of the volume."""
    return {
        "number": action.number,
        "kind": action.kind,
        "slice": action.index,
        "by": action.by,
        "words": action.words,
        "steps": [step_to_json(step, geometry) for step in action.steps],
        "clicks": [{"x": c.x, "y": c.y, "positive": c.positive} for c in action.clicks],
        "ways": [dataclasses.asdict(way) for way in action.ways],
        "look": action.look,
        "afresh": action.afresh,
        "stopped": action.stopped,
        "seconds": action.seconds,
    }


def action_from_json(fields: Fields, geometry: PictureGeometry, number: int) -> VolumeAction:
    """The reverse of `action_to_json`; its steps have no logits. Raises InputError naming the field."""
    kind: Any = fields.choice("kind", KINDS)
    by: Any = fields.choice("by", ("policy", "person"))
    clicks = tuple(_click_from(click) for click in fields.list_of("clicks"))
    if kind == "click" and not clicks:
        raise fields.error("clicks", "are none", "[]")
    return VolumeAction(
        number=number,
        kind=kind,
        index=fields.whole("slice", 0),
        by=by,
        words=fields.text("words"),
        steps=tuple(step_from_json(step, geometry) for step in fields.list_of("steps")),
        clicks=clicks,
        ways=tuple(
            Way(way.whole("start", 0), way.whole("last", 0), way.flag("ended"))
            for way in fields.list_of("ways")
        ),
        look=int(fields.value("look", 0)),
        afresh=bool(fields.value("afresh", False)),
        stopped=bool(fields.value("stopped", False)),
        seconds=fields.number("seconds") or 0.0,
    )


def _click_from(fields: Fields) -> Click:
    x, y, positive = fields.number("x"), fields.number("y"), fields.flag("positive")
    return fields.checked(lambda: Click(x or 0.0, y or 0.0, positive))


def _mask_from(fields: Fields, key: str, shape: tuple[int, int]) -> np.ndarray:
    text = fields.text(key)
    mask = fields.checked(lambda: decode_rle(text, shape), key)
    mask.setflags(write=False)
    return mask
