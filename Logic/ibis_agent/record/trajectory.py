"""The record of an episode: `trajectory.json`, schema ibis-trajectory/1.

Everything needed to show, check, replay and continue a run travels inside, the picture too; the weights do
not, only their names and SHA-256. What comes from a file is checked field by field. The published format is
in published, the page to look at in review. No torch here.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ibis_agent import files
from ibis_agent.actions import Action, Click, Terminate
from ibis_agent.fields import Fields, read_json
from ibis_agent.mask.masks import MOST_PIXELS, area, decode_rle, encode_rle, iou
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Policy
from ibis_agent.run.episode import Author, Episode, Limits, Status, Step
from ibis_agent.scan.frame import frame_from
from ibis_agent.scan.geometry import Orientation, PictureGeometry, slice_geometry
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.contract import PictureSegmenter
from ibis_agent.segmenter.framed import framed

SCHEMA = "ibis-trajectory/1"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run as it was recorded.

    Attributes:
        picture: the picture that was worked on.
        question: as the person put it.
        steps: all that happened and was not taken back; their logits are not recorded (None).
        status, reason: how it stood at the end.
        policy, segmenter: identities ("name", "sha256", …); policy None where a person clicked alone.
        limits: of the policy's turns.
        source: the name of the scan's file, without its folder.
        orientation: how the slice was turned into the picture: "radiological", "upstream", or None for a
            photograph and where neither fits.
        note: shown wherever the run is, such as that the policy is a demonstration.
        created: ISO 8601, UTC.
    """

    picture: Picture
    question: str
    steps: tuple[Step, ...]
    status: Status = "ready"
    reason: str = ""
    policy: Mapping[str, str] | None = None
    segmenter: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    source: str = ""
    orientation: str | None = None
    note: str = ""
    created: str = ""

    @classmethod
    def of(cls, episode: Episode, source: str | os.PathLike[str] = "") -> Trajectory:
        """The record of an episode as it stands; `source` is the scan's path, of which the name is kept."""
        policy = episode.policy
        return cls(
            picture=episode.picture,
            question=episode.question,
            steps=episode.steps,
            status=episode.status,
            reason=episode.reason,
            policy=None if policy is None else dict(policy.identity),
            segmenter=dict(episode.segmenter.identity),
            limits=episode.limits,
            source=os.path.basename(os.path.normpath(source)) if os.fspath(source) else "",
            orientation=orientation_of(episode.picture.geometry, None if policy is None else policy.card),
            note="" if policy is None else policy.card.note,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )

    @property
    def answer(self) -> str | None:
        """What was answered; None while the last step is no Terminate."""
        last = self.steps[-1].action if self.steps else None
        return last.answer if isinstance(last, Terminate) else None

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: after the last step."""
        if self.steps:
            return self.steps[-1].mask
        return np.zeros(self.picture.rgb.shape[:2], dtype=bool)

    def head(self) -> dict[str, Any]:
        """All of `to_json` that is settled before the first step."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "note": self.note,
            "question": self.question,
            "models": {
                "policy": None if self.policy is None else dict(self.policy),
                "segmenter": dict(self.segmenter),
            },
            "picture": picture_to_json(self.picture, self.source, self.orientation),
            "limits": dataclasses.asdict(self.limits),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            **self.head(),
            "answer": self.answer,
            "status": self.status,
            "reason": self.reason,
            "steps": [step_to_json(step, self.picture.geometry) for step in self.steps],
        }

    @classmethod
    def from_json(cls, record: Any, file: str | os.PathLike[str] | None = None) -> Trajectory:
        """A trajectory from JSON values. Keys that are not known are passed over.

        Raises InputError naming the file, the field and its value.
        """
        fields = Fields(record, file)
        if fields.text("schema") != SCHEMA:
            raise fields.error("schema", f"must be {SCHEMA}")
        picture = picture_from_json(fields.inside("picture"))
        models = fields.inside("models")
        limits = fields.inside("limits")
        steps = tuple(
            step_from_json(each, picture.geometry, n) for n, each in enumerate(fields.list_of("steps"), 1)
        )
        status: Any = fields.choice("status", ("ready", "paused", "ended"))
        trajectory = cls(
            picture=picture,
            question=fields.text("question"),
            steps=steps,
            status=status,
            reason=fields.text("reason"),
            policy=models.texts("policy", optional=True),
            segmenter=models.texts("segmenter") or {},
            limits=limits.checked(
                lambda: Limits(limits.whole("max_turns", 1), limits.whole("max_repeats", 2))
            ),
            source=fields.inside("picture").text("source", ""),
            orientation=_orientation_from(fields.inside("picture")),
            note=fields.text("note", ""),
            created=fields.text("created", ""),
        )
        if fields.value("answer", None) != trajectory.answer:
            raise fields.error("answer", "is not what the last step answers")
        return trajectory

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, whole or not at all. Raises OutputError."""
        files.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read a JSON file. Raises InputError naming the file, the field and its value."""
        return cls.from_json(read_json(path), path)

    def replay(self, segmenter: PictureSegmenter) -> Replay:
        """Make all clicks again with the segmenter alone and compare. Raises what the segmenter raises."""
        notes = other_weights("segmenter", self.segmenter, segmenter.identity)
        segmenter = framed(segmenter, self.picture.frame)
        embedding = segmenter.embed(self.picture.rgb) if any(_clicks(self.steps)) else None
        redone: list[Step] = []
        for step in self.steps:
            before = redone[-1] if redone else None
            changes: dict[str, Any] = {"mask": before.mask, "logits": before.logits} if before else {}
            if isinstance(step.action, Click):
                clicks = [*_clicks(redone), step.action]
                found = segmenter.predict(embedding, clicks, before.logits if before else None)
                changes = {"mask": found.mask, "logits": found.logits, "score": found.score}
            elif before is None:
                changes = {"mask": np.zeros_like(step.mask)}
            redone.append(dataclasses.replace(step, **changes))
        differences = tuple(
            Difference(old.number, int(np.count_nonzero(old.mask != new.mask)), iou(old.mask, new.mask))
            for old, new in zip(self.steps, redone, strict=True)
            if not np.array_equal(old.mask, new.mask)
        )
        return Replay(tuple(redone), differences, tuple(notes))

    def to_episode(
        self, policy: Policy | None, segmenter: PictureSegmenter, limits: Limits | None = None
    ) -> Episode:
        """An episode that stands where this one stood, to be continued. It cannot undo what was before.

        The logits that the next click needs are made again by a replay; the masks are those of the record.
        Other weights than the recorded ones, and masks that came out differently, are told as UserWarning:
        the episode then goes on from the record, but not exactly as it would have.

        limits: None takes the recorded ones, and the recorded status.
        """
        replay = self.replay(segmenter)
        notes = list(replay.warnings)
        if policy is not None and self.policy is not None:
            notes += other_weights("policy", self.policy, policy.identity)
        notes += [f"step {each.number}: {each}" for each in replay.differences]
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        steps = [
            dataclasses.replace(old, logits=new.logits)
            for old, new in zip(self.steps, replay.steps, strict=True)
        ]
        status, reason = (self.status, self.reason) if limits is None else (None, "")
        episode = Episode(self.picture, self.question, policy, segmenter, limits or self.limits)
        episode.restore(steps, status, reason)
        return episode


@dataclass(frozen=True)
class Difference:
    """A step whose mask came out differently: how many pixels, and the IoU of the two masks."""

    number: int
    pixels: int
    iou: float

    def __str__(self) -> str:
        return f"the mask differs from the recorded one in {self.pixels} pixels (IoU {self.iou:.4f})"


@dataclass(frozen=True, eq=False)
class Replay:
    """What a replay gave.

    Attributes:
        steps: the recorded ones with masks, logits and scores made anew.
        differences: where a mask is not the recorded one, bit for bit.
        warnings: reasons to expect differences, for people.
    """

    steps: tuple[Step, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def masks(self) -> list[np.ndarray]:
        """(H, W) bool each, in the order of the steps."""
        return [step.mask for step in self.steps]


def orientation_of(geometry: PictureGeometry, card: ModelCard | None = None) -> str | None:
    """ "radiological", "upstream", or None for a photograph and for what is neither.

    Some files (LAS) look the same either way; then it is what the policy's card wants.
    """
    if geometry.plane == "picture":
        return None
    first = Orientation.RADIOLOGICAL if card is None else card.orientation
    for orientation in sorted(Orientation, key=lambda each: each is not first):
        plane = "xyz"[geometry.axis]
        usual = slice_geometry(geometry.shape, geometry.affine, plane, geometry.index, orientation)
        turned = (geometry.row_axis, geometry.col_axis, geometry.flip_rows, geometry.flip_cols)
        if turned == (usual.row_axis, usual.col_axis, usual.flip_rows, usual.flip_cols):
            return orientation.value
    return None


def _clicks(steps: list[Step] | tuple[Step, ...]) -> list[Click]:
    return [step.action for step in steps if isinstance(step.action, Click)]


def other_weights(role: str, recorded: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """What people should know where the identity recorded for a "policy" or "segmenter" is not the present one."""
    if recorded.get("sha256") == present.get("sha256"):
        return []
    was, now = (
        f"{each.get('name') or 'unknown'} ({(each.get('sha256') or 'unknown')[:12]})"
        for each in (recorded, present)
    )
    return [f"another {role} than the recorded one: {now} instead of {was}"]


def _action_to_json(action: Action) -> dict[str, Any]:
    if isinstance(action, Click):
        return {"kind": "click", "x": action.x, "y": action.y, "positive": action.positive}
    return {"kind": "terminate", "answer": action.answer}


def head_of(episode: Episode, source: str | os.PathLike[str] = "") -> dict[str, Any]:
    """The record of an episode without its steps and outcome, for who keeps those (see `step_to_json`)."""
    return Trajectory.of(episode, source).head()


def step_to_json(step: Step, geometry: PictureGeometry) -> dict[str, Any]:
    """One step as it stands in the record; logits are left out."""
    pixels, each = area(step.mask), geometry.pixel_area_mm2
    values = {
        "number": step.number,
        "by": step.by,
        "thinking": step.thinking,
        "reply": step.reply,
        "action": _action_to_json(step.action),
        "mask_rle": encode_rle(step.mask),
        "score": None if step.score is None else float(step.score),
        "area_px": pixels,
        "area_mm2": None if each is None else pixels * each,
        "seconds": {key: float(value) for key, value in step.seconds.items()},
    }
    return {**values, "unreadable": step.unreadable} if step.unreadable else values


def step_from_json(record: Any, geometry: PictureGeometry, number: int | None = None) -> Step:
    """The reverse of `step_to_json`; the step has no logits (`Episode.relive` makes them).

    number: which one it must be. Raises InputError naming the field and its value.
    """
    fields = record if isinstance(record, Fields) else Fields(record)
    if fields.whole("number", 1) != number and number is not None:
        raise fields.error("number", f"must be {number}: steps are numbered in their order")
    by: Author = fields.choice("by", ("policy", "person"))  # type: ignore[assignment]
    text = fields.text("mask_rle")
    mask = fields.checked(lambda: decode_rle(text, (geometry.height, geometry.width)), "mask_rle")
    mask.setflags(write=False)
    if fields.whole("area_px", 0) != area(mask):
        raise fields.error("area_px", f"is not the mask's area, {area(mask)}")
    return Step(
        number=fields.whole("number", 1),
        action=_action_from(fields.inside("action")),
        by=by,
        mask=mask,
        logits=None,
        score=fields.number("score", optional=True),
        thinking=fields.text("thinking"),
        reply=fields.text("reply"),
        unreadable=fields.text("unreadable", ""),
        seconds=fields.numbers("seconds"),
    )


def _action_from(fields: Fields) -> Action:
    if fields.choice("kind", ("click", "terminate")) == "terminate":
        return Terminate(fields.text("answer"))
    x, y, positive = fields.number("x"), fields.number("y"), fields.flag("positive")
    return fields.checked(lambda: Click(x or 0.0, y or 0.0, positive))


def picture_to_json(picture: Picture, source: str = "", orientation: str | None = None) -> dict[str, Any]:
    """A picture as it travels in the record: PNG in base64, and where it comes from."""
    return {
        "source": source,
        "geometry": picture.geometry.to_json(),
        "frame": None if picture.frame is None else picture.frame.to_json(),
        "window": None if picture.window is None else list(picture.window),
        "orientation": orientation or orientation_of(picture.geometry),
        "height": picture.rgb.shape[0],
        "width": picture.rgb.shape[1],
        "sha256": _sha256(picture.rgb),
        "png": _to_png(picture.rgb),
        **({"notes": list(picture.notes)} if picture.notes else {}),
    }


def picture_from_json(record: Any) -> Picture:
    """The picture of `picture_to_json`. Raises InputError naming the field."""
    fields = record if isinstance(record, Fields) else Fields(record)
    height, width = fields.whole("height", 1), fields.whole("width", 1)
    if height * width > MOST_PIXELS:
        raise fields.error("height", f"makes a picture of more than {MOST_PIXELS} pixels")
    values = dict(fields.inside("geometry").values)
    geometry = fields.checked(lambda: PictureGeometry.from_json(values), "geometry")
    if (geometry.height, geometry.width) != (height, width):
        raise fields.error("geometry", f"is not that of a picture of {height} × {width}")
    window = fields.value("window", None)
    if window is not None:
        low, high = (each.plain_number() for each in fields.list_of("window", count=2))
        window = (low, high)
        if not low < high:
            raise fields.error("window", "must be two rising numbers")
    rgb = _from_png(fields, height, width)
    if fields.text("sha256") != _sha256(rgb):
        raise fields.error("sha256", "is not that of the picture: it was changed")
    frame = frame_from(fields)
    if frame is not None and (frame.height, frame.width) != (height, width):
        raise fields.error("frame", f"is not of a picture of {height} × {width}")
    notes = fields.value("notes", None) or []
    told = tuple(str(note) for note in notes if isinstance(note, str))
    return Picture(rgb, geometry, window, told, frame)


def _orientation_from(fields: Fields) -> str | None:
    if fields.value("orientation", None) is None:
        return None
    return fields.choice("orientation", [each.value for each in Orientation])


def _sha256(rgb: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).hexdigest()


def _to_png(rgb: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_png(fields: Fields, height: int, width: int) -> np.ndarray:
    from PIL import Image

    try:
        data = base64.b64decode(fields.text("png"), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # The size stands in the header: compared before anything is unpacked.
            if image.size != (width, height):
                raise fields.error("png", f"is not a picture of {height} × {width}")
            rgb = np.array(image.convert("RGB"))
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise fields.error("png", "is not a PNG in base64") from error
    rgb.setflags(write=False)
    return rgb
