"""The record of a run: `trajectory.json`, of one slice (schema ibis-trajectory/1) or many (ibis-volume/1).

Everything needed to show, check, replay and continue a run travels inside, the pictures of all slices that it met
too; the weights do not, only their names and SHA-256. What comes from a file is checked field by field. How its
parts are written is in steps and pictures, how a run is kept while it goes on in journal, the published format in
published, the page to look at in review. No torch here.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ibis_agent import files
from ibis_agent.errors import InputError
from ibis_agent.fields import Fields
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.contract import Policy
from ibis_agent.record import journal
from ibis_agent.record.forms import (
    SCHEMA,
    VOLUME_SCHEMA,
    Cut,
    figures,
    measurements_from,
    parts_of,
    slice_from,
    visited,
    volume_from,
)
from ibis_agent.record.pictures import orientation_of, picture_to_json
from ibis_agent.record.replay import Difference, Replay, other_weights, steps_again
from ibis_agent.record.steps import (
    Json,
    action_to_json,
    actions_of,
    given_from_json,
    given_to_json,
    settings_from_json,
    settings_to_json,
    slice_to_json,
    step_to_json,
)
from ibis_agent.run.action import RunAction, Watch
from ibis_agent.run.alone import Alone
from ibis_agent.run.caveats import caveats
from ibis_agent.run.episode import Limits, Status, Step
from ibis_agent.run.given import Given
from ibis_agent.run.plan import key_of, spans_of, steps_on
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.picture import Picture
from ibis_agent.scan.slices import Slices, Stack, one_slice
from ibis_agent.segmenter.contract import Segmenter


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run as it was recorded.

    Attributes:
        slices: what was worked on; of a file, the pictures that the run met.
        question: as the person put it.
        actions: all that happened and was not taken back; their logits are not recorded (None).
        rows: what is known of every slice of a volume, see steps.slice_to_json.
        status, reason: how it stood at the end.
        answer: what was answered.
        caveats: what to know before trusting it, see run.caveats.
        policy, segmenter: identities ("name", "sha256", …); policy None where a person clicked alone.
        settings: of the run.
        source: the name of the scan's file, without its folder.
        orientation: how the slices were turned into pictures: "radiological", "upstream", or None for a
            photograph and where neither fits.
        note: shown wherever the run is, such as that the policy is a demonstration.
        created: ISO 8601, UTC.
        given: the mask that it began from, and where its masks never are.
        cut: how the volume is cut into its slices, to do so again; None of a slice alone.
        measurements: of the mask, see mask.measurements; empty where nobody measured.
    """

    slices: Slices
    question: str
    actions: tuple[RunAction, ...]
    rows: Mapping[int, Json] = field(default_factory=dict)
    status: Status = "ready"
    reason: str = ""
    answer: str | None = None
    caveats: tuple[str, ...] = ()
    policy: Mapping[str, str] | None = None
    segmenter: Mapping[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=lambda: Settings(Limits(), follow="alone"))
    source: str = ""
    orientation: str | None = None
    note: str = ""
    created: str = ""
    given: Given = field(default_factory=Given)
    cut: Cut | None = None
    measurements: Json = field(default_factory=dict)

    # Where one comes from

    @classmethod
    def of(cls, run: Run, source: str | os.PathLike[str] = "", created: str = "") -> Trajectory:
        """The record of a run as it stands; `source` is the scan's path, of which the name is kept."""
        policy, slices, pixel = run.policy, run.slices, run.pixel_mm2
        orientation = slices.orientation.value if isinstance(slices, Stack) else None
        if run.alone:
            card = None if policy is None else policy.card
            orientation = orientation_of(slices.geometry(slices.first), card)
        known = {} if run.alone else run.found
        rows = {n: slice_to_json(each, run.within(n, each.mask), n, pixel) or {} for n, each in known.items()}
        return cls(
            slices=slices,
            question=run.question,
            actions=run.actions,
            rows=rows,
            status=run.status,
            reason=run.reason,
            answer=run.answer,
            caveats=caveats(run),
            policy=None if policy is None else dict(policy.identity),
            segmenter=dict(run.segmenter.identity),
            settings=run.settings,
            source=os.path.basename(os.path.normpath(source)) if os.fspath(source) else "",
            orientation=orientation,
            note="" if policy is None else policy.card.note,
            given=run.given,
            cut=Cut.of(slices) if isinstance(slices, Stack) else None,
            created=created or datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )

    @classmethod
    def of_slice(cls, picture: Picture, question: str, steps: Sequence[Step], **more: Any) -> Trajectory:
        """The record of steps on one picture that no run made. more: further attributes."""
        actions = actions_of(steps, picture.geometry.index)
        answer = actions[-1].answer if actions else None
        return cls(one_slice(picture), question, actions, answer=answer, **more)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read a record, and what its journal adds. Raises InputError naming the file, the field and its value."""
        return cls.from_json(journal.read(path), path)

    @classmethod
    def from_json(cls, record: Any, file: str | os.PathLike[str] | None = None) -> Trajectory:
        """A trajectory from JSON values. Keys that are not known are passed over.

        Raises InputError naming the file, the field and its value.
        """
        fields = Fields(record, file)
        schema = fields.text("schema")
        if schema not in (SCHEMA, VOLUME_SCHEMA):
            raise fields.error("schema", f"must be {SCHEMA} or {VOLUME_SCHEMA}")
        models, alone = fields.inside("models"), schema == SCHEMA
        status: Any = fields.choice("status", ("ready", "paused", "ended"))
        parts = slice_from(fields) if alone else volume_from(fields)
        made = cls(
            question=fields.text("question"),
            status=status,
            reason=fields.text("reason"),
            caveats=fields.lines("caveats"),
            policy=models.texts("policy", optional=True),
            segmenter=models.texts("segmenter") or {},
            settings=settings_from_json(fields.inside("limits"), alone),
            note=fields.text("note", ""),
            created=fields.text("created", ""),
            given=given_from_json(fields, parts["slices"].geometry(parts["slices"].first)),
            measurements=measurements_from(fields),
            **parts,
        )
        if alone and fields.value("answer", None) != made.answer:
            raise fields.error("answer", "is not what the last step answers")
        return made

    # What it says

    @property
    def alone(self) -> bool:
        """It is of one slice alone."""
        return self.settings.follow == "alone"

    @property
    def picture(self) -> Picture:
        """The first slice that is recorded, and of a slice alone the only one."""
        return self.slices.picture(self.visited[0])

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, first to last."""
        return tuple(step for action in self.actions for step in action.steps)

    @property
    def limits(self) -> Limits:
        return self.settings.episode or Limits()

    @property
    def visited(self) -> list[int]:
        """The slices that are known, that an action was on or went through, and one where there is none: how the
        volume is cut stands in its picture.
        """
        return visited(spans_of(self.actions), self.rows, self.slices.first)

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: after the last step, of a slice alone."""
        first = self.slices.first
        return self.steps[-1].mask if self.steps else self.given.start.get(first, self.mask_of(first))

    def mask_of(self, index: int) -> np.ndarray:
        """(H, W) bool, within the region of interest; empty where nothing is known."""
        geometry = self.slices.geometry(index)
        shape = geometry.height, geometry.width
        return (
            decode_rle(self.rows[index]["mask_rle"], shape) if index in self.rows else np.zeros(shape, bool)
        )

    def volume(self) -> np.ndarray:
        """(I, J, K) uint8 in the scan's own voxel order."""
        out = np.zeros(self.slices.geometry(self.slices.first).shape, dtype=np.uint8)
        for index in self.rows:
            self.slices.geometry(index).embed_mask(self.mask_of(index), out)
        if self.alone:
            self.picture.geometry.embed_mask(self.mask, out)
        return out

    @property
    def gap_mm(self) -> float:
        geometry = self.slices.geometry(self.slices.first)
        return float(np.linalg.norm(geometry.affine[:3, geometry.axis]))

    @property
    def key(self) -> int | None:
        """The slice that all began at; None before there is a click in a volume."""
        if self.alone:
            return self.slices.first
        return key_of(self.actions) if self.given.key is None else self.given.key

    @property
    def ml(self) -> float | None:
        """Of the object in a volume; None where the scan does not say how large a voxel is."""
        return figures((), self.rows.values(), self.gap_mm)["ml"]

    # How it is written

    def head(self, png: bool = True) -> Json:
        """All of `to_json` that is settled before the first action."""
        models = {
            "policy": None if self.policy is None else dict(self.policy),
            "segmenter": dict(self.segmenter),
        }
        head = {
            "schema": SCHEMA if self.alone else VOLUME_SCHEMA,
            "created": self.created,
            "note": self.note,
            "question": self.question,
            "models": models,
            "limits": settings_to_json(self.settings),
            **given_to_json(self.given),
        }
        if self.alone:
            return {**head, "picture": picture_to_json(self.picture, self.source, self.orientation, png)}
        slices, geometry = self.slices, self.slices.geometry(self.slices.first)
        volume: Json = {
            "source": self.source,
            "first": slices.first,
            "last": slices.last,
            "count": len(slices),
            "gap_mm": self.gap_mm,
            "geometry": geometry.to_json(),
        }
        if self.cut is not None:
            volume |= {**dataclasses.asdict(self.cut), "orientation": self.orientation}
        return {**head, "volume": volume}

    def outcome(self) -> Json:
        """How the run stands."""
        said: Json = {"answer": self.answer, "status": self.status, "reason": self.reason}
        if self.measurements:
            said["measurements"] = dict(self.measurements)
        return {**said, "caveats": list(self.caveats)} if self.caveats else said

    def to_json(self, png: bool = True) -> Json:
        """Plain values for a JSON file. png: without it, all but the pixels of the pictures."""
        if self.alone:
            geometry = self.slices.geometry(self.slices.first)
            steps = [step_to_json(step, geometry) for step in self.steps]
            return {**self.head(png), **self.outcome(), "steps": steps}
        whole, slices = self._parts(png)
        return {**whole, "slices": list(slices)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, whole or not at all. Raises OutputError."""
        if self.alone:
            files.write_json(path, self.to_json())
        else:  # never all pictures at once
            whole, slices = self._parts()
            files.write_json(path, whole, ("slices", slices))

    def _parts(self, png: bool = True) -> tuple[Json, Iterator[Json]]:
        geometry = self.slices.geometry(self.slices.first)
        actions = [action_to_json(action, geometry) for action in self.actions]
        slices = self.slices
        return parts_of(self.head(), self.outcome(), actions, self.rows, slices.picture, slices.inside, png)

    # What can be done with it

    def on_slice(self, index: int) -> Trajectory:
        """The work on one slice of a volume as the record of a slice alone: its steps, and the answer there."""
        steps = steps_on(self.actions, index)
        more = {"status": self.status, "reason": self.reason, "policy": self.policy}
        more |= {"segmenter": self.segmenter, "source": self.source, "orientation": self.orientation}
        return self.of_slice(
            self.slices.picture(index), self.question, steps, **more, note=self.note, created=self.created
        )

    def check_stack(self, stack: Stack, file: str | os.PathLike[str] | None = None) -> None:
        """Raises InputError unless the recorded slices are those of the stack, pixel for pixel."""
        geometry = stack.geometry(stack.first)
        size = geometry.height, geometry.width
        for index in self.visited:
            picture = self.slices.picture(index)
            fits = index < len(stack) and (picture.geometry.height, picture.geometry.width) == size
            if not fits or not np.array_equal(stack.picture(index).rgb, picture.rgb):
                remedy = "Name the scan that it was made with."
                raise InputError(
                    f"the record is of another scan than {stack.scan.name}",
                    file=file,
                    value=f"slice {index}",
                    remedy=remedy,
                )

    def replay(self, segmenter: Segmenter) -> Replay:
        """Make all clicks again with the segmenter alone and compare. Raises what the segmenter raises."""
        notes = self.other_models(None, segmenter)
        if not self.alone:
            run = Run(self.slices, self.question, None, segmenter, self.settings, 0, self.given)
            run.go_to(self.actions)
            return Replay(self.steps, run.volume(), tuple(self.differences(run)), tuple(notes))
        geometry = self.slices.geometry(self.slices.first)
        memory = Alone(self.slices, segmenter, (geometry.height, geometry.width))
        redone = steps_again(memory, self.actions, self.given)
        differences = tuple(
            Difference.between(old.number, old.mask, new.mask)
            for old, new in zip(self.steps, redone, strict=True)
            if not np.array_equal(old.mask, new.mask)
        )
        volume = np.zeros(geometry.shape, dtype=np.uint8)
        geometry.embed_mask(redone[-1].mask if redone else self.mask, volume)
        return Replay(tuple(redone), volume, differences, tuple(notes))

    def to_run(
        self,
        policy: Policy | None,
        segmenter: Segmenter,
        settings: Settings | None = None,
        slices: Slices | None = None,
        watch: Watch | None = None,
    ) -> Run:
        """A run that stands where this one stood, to be continued. It cannot undo what was before.

        What the next click needs is made again; of a slice alone the masks are those of the record. Other weights
        than the recorded ones, and masks that came out differently, are told as UserWarning: the run then goes on,
        but not exactly as it would have.

        settings: None takes the recorded ones, and the recorded status. slices: of the whole scan, where the run
        may come to slices that are not recorded.
        """
        how = settings or self.settings
        run = Run(slices or self.slices, self.question, policy, segmenter, how, given=self.given)
        run.go_to(self.actions, watch)
        notes = self.other_models(policy, segmenter)
        if self.alone:
            notes += [f"step {each.number}: {each}" for each in self.replay(segmenter).differences]
        elif others := [str(each.number) for each in self.differences(run)]:
            notes.append(f"made anew, these slices are not as recorded: {', '.join(others)}")
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        if settings is None:
            run.take_up(self.status, self.reason)
        return run

    def differences(self, run: Run) -> list[Difference]:
        """The slices (`number`) that a run shows otherwise than this record."""
        masks = ((index, self.mask_of(index), run.mask(index)) for index in self.visited)
        return [Difference.between(*each) for each in masks if not np.array_equal(*each[1:])]

    def other_models(self, policy: Policy | None, segmenter: Segmenter) -> list[str]:
        """What people should know where the models are not those that this was made with."""
        notes = other_weights("segmenter", self.segmenter, segmenter.identity)
        if policy is not None and self.policy is not None:
            notes += other_weights("policy", self.policy, policy.identity)
        return notes
