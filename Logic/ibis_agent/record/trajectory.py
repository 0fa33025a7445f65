"""The record of a run: `trajectory.json`, for one slice (schema ibis-trajectory/1) or many (ibis-volume/1).

It contains everything needed to show, check, replay and continue a run, including the pictures of all visited slices;
of the weights, only the names and SHA-256. Data from a file is checked field by field.

The parts are converted in steps and pictures; a run in progress is stored by journal; the published format is in
published, the review page in review. No torch here.
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
from ibis_agent.record.pictures import orientation_of, picture_to_json, subject_to_json
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
from ibis_agent.run.caveats import caveats
from ibis_agent.run.episode import Limits, Status, Step
from ibis_agent.run.given import Given
from ibis_agent.run.plan import key_of, spans_of, steps_on
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.run.single_slice import SingleSlice
from ibis_agent.scan.picture import Picture
from ibis_agent.scan.slices import Slices, Stack, one_slice
from ibis_agent.segmenter.contract import Segmenter


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A recorded run.

    Attributes:
        slices: the slices of the run; from a file, the recorded pictures.
        question: in the person's words.
        actions: all actions that were not undone; their logits are not recorded (None).
        rows: the state of every slice of a volume, see steps.slice_to_json.
        status, reason: the current status, and why. answer: None if there is none yet.
        caveats: warnings about the answer, see run.caveats; unfamiliar: the one about the kind of scan, if any.
        policy, segmenter: identities ("name", "sha256", …); policy None if only a person clicked.
        settings: of the run.
        source: the file name of the scan, without its folder.
        orientation: how the slices were turned into pictures: "radiological", "upstream", or None for a photograph
            and other orientations.
        note: displayed with the run, such as that the policy is a demonstration.
        created: ISO 8601, UTC.
        given: the mask that it started from, and the excluded voxels.
        cut: how the volume is cut into its slices, to repeat it; None for a single slice.
        measurements: of the mask, see mask.measurements; may be empty.
    """

    slices: Slices
    question: str
    actions: tuple[RunAction, ...]
    rows: Mapping[int, Json] = field(default_factory=dict)
    status: Status = "ready"
    reason: str = ""
    answer: str | None = None
    caveats: tuple[str, ...] = ()
    unfamiliar: str = ""
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

    @classmethod
    def of(cls, run: Run, source: str | os.PathLike[str] = "", created: str = "") -> Trajectory:
        """The record of the current state of a run; `source` is the scan's path, of which only the name is kept."""
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
            unfamiliar=run.unfamiliar,
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
        """A record of steps on one picture that do not come from a run. more: further attributes."""
        actions = actions_of(steps, picture.geometry.index)
        answer = actions[-1].answer if actions else None
        return cls(one_slice(picture), question, actions, answer=answer, **more)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read a record, and its journal. Raises InputError naming the file, the field and its value."""
        return cls.from_json(journal.read(path), path)

    @classmethod
    def from_json(cls, record: Any, file: str | os.PathLike[str] | None = None) -> Trajectory:
        """A trajectory from JSON values. Unknown keys are ignored.

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
            unfamiliar=fields.text("unfamiliar", ""),
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
            raise fields.error("answer", "does not match the answer of the last step")
        return made

    @property
    def alone(self) -> bool:
        """Whether it is about a single slice."""
        return self.settings.follow == "alone"

    @property
    def picture(self) -> Picture:
        """The first recorded slice; for a single slice, the only one."""
        return self.slices.picture(self.visited[0])

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        return tuple(step for action in self.actions for step in action.steps)

    @property
    def limits(self) -> Limits:
        return self.settings.episode or Limits()

    @property
    def visited(self) -> list[int]:
        """The slices with known state or covered by actions; at least one, because its picture says how the volume is
        cut.
        """
        return visited(spans_of(self.actions), self.rows, self.slices.first)

    @property
    def mask(self) -> np.ndarray:
        """The (H, W) bool mask after the last step, for a single slice."""
        first = self.slices.first
        return self.steps[-1].mask if self.steps else self.given.start.get(first, self.mask_of(first))

    def mask_of(self, index: int) -> np.ndarray:
        """The (H, W) bool mask within the region of interest; empty if unknown."""
        geometry = self.slices.geometry(index)
        shape = geometry.height, geometry.width
        return (
            decode_rle(self.rows[index]["mask_rle"], shape) if index in self.rows else np.zeros(shape, bool)
        )

    def volume(self) -> np.ndarray:
        """The (I, J, K) uint8 mask in the scan's own voxel order."""
        out = np.zeros(self.slices.geometry(self.slices.first).shape, dtype=np.uint8)
        for index in self.rows:
            self.slices.geometry(index).embed_mask(self.mask_of(index), out)
        if self.alone:
            self.picture.geometry.embed_mask(self.mask, out)
        return out

    @property
    def gap_mm(self) -> float:
        """Distance between neighbouring slices in mm."""
        geometry = self.slices.geometry(self.slices.first)
        return float(np.linalg.norm(geometry.affine[:3, geometry.axis]))

    @property
    def key(self) -> int | None:
        """The slice of the first click; None if a volume has no click yet."""
        if self.alone:
            return self.slices.first
        return key_of(self.actions) if self.given.key is None else self.given.key

    @property
    def ml(self) -> float | None:
        """The volume of the object; None if the voxel size is unknown."""
        return figures((), self.rows.values(), self.gap_mm)["ml"]

    def head(self, png: bool = True) -> Json:
        """The part of `to_json` that is fixed before the first action."""
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
        if self.unfamiliar:
            head["unfamiliar"] = self.unfamiliar
        subject = subject_to_json(self.slices.subject)
        if self.alone:
            shown = picture_to_json(self.picture, self.source, self.orientation, png)
            return {**head, "picture": shown | subject}
        slices = self.slices
        volume: Json = {
            "source": self.source,
            "first": slices.first,
            "last": slices.last,
            "count": len(slices),
            "gap_mm": self.gap_mm,
            "geometry": slices.geometry(slices.first).to_json(),
            **subject,
        }
        if self.cut is not None:
            volume |= {**dataclasses.asdict(self.cut), "orientation": self.orientation}
        return {**head, "volume": volume}

    def outcome(self) -> Json:
        """Answer, status and reason."""
        said: Json = {"answer": self.answer, "status": self.status, "reason": self.reason}
        if self.measurements:
            said["measurements"] = dict(self.measurements)
        return {**said, "caveats": list(self.caveats)} if self.caveats else said

    def to_json(self, png: bool = True) -> Json:
        """Plain values for a JSON file. png: False leaves out the pixels of the pictures."""
        if self.alone:
            geometry = self.slices.geometry(self.slices.first)
            steps = [step_to_json(step, geometry) for step in self.steps]
            return {**self.head(png), **self.outcome(), "steps": steps}
        whole, slices = self._parts(png)
        return {**whole, "slices": list(slices)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file atomically. Raises OutputError."""
        if self.alone:
            files.write_json(path, self.to_json())
        else:  # do not hold all pictures in memory
            whole, slices = self._parts()
            files.write_json(path, whole, ("slices", slices))

    def _parts(self, png: bool = True) -> tuple[Json, Iterator[Json]]:
        geometry = self.slices.geometry(self.slices.first)
        actions = [action_to_json(action, geometry) for action in self.actions]
        slices = self.slices
        return parts_of(self.head(), self.outcome(), actions, self.rows, slices.picture, slices.inside, png)

    def on_slice(self, index: int) -> Trajectory:
        """One slice of a volume as a record of a single slice: its steps, and the answer there."""
        steps = steps_on(self.actions, index)
        more = {"status": self.status, "reason": self.reason, "policy": self.policy}
        more |= {"segmenter": self.segmenter, "source": self.source, "orientation": self.orientation}
        return self.of_slice(
            self.slices.picture(index), self.question, steps, **more, note=self.note, created=self.created
        )

    def check_stack(self, stack: Stack, file: str | os.PathLike[str] | None = None) -> None:
        """Raises InputError unless the recorded slices are identical to those of the stack."""
        geometry = stack.geometry(stack.first)
        size = geometry.height, geometry.width
        for index in self.visited:
            picture = self.slices.picture(index)
            fits = index < len(stack) and (picture.geometry.height, picture.geometry.width) == size
            if not fits or not np.array_equal(stack.picture(index).rgb, picture.rgb):
                remedy = "Give the scan that it was made with."
                raise InputError(
                    f"the record does not belong to the scan {stack.scan.name}",
                    file=file,
                    value=f"slice {index}",
                    remedy=remedy,
                )

    def replay(self, segmenter: Segmenter) -> Replay:
        """Repeat all clicks with the segmenter alone and compare. Raises what the segmenter raises."""
        notes = self.other_models(None, segmenter)
        if not self.alone:
            run = Run(self.slices, self.question, None, segmenter, self.settings, 0, self.given)
            run.go_to(self.actions)
            return Replay(self.steps, run.volume(), tuple(self.differences(run)), tuple(notes))
        geometry = self.slices.geometry(self.slices.first)
        memory = SingleSlice(self.slices, segmenter, (geometry.height, geometry.width))
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
        """A run in the recorded state, to be continued. Earlier changes cannot be undone.

        What the next click needs is recomputed; for a single slice, the masks come from the record. Weights other
        than the recorded ones, and different masks, cause a UserWarning: the run continues, but not exactly as it
        would have.

        settings: None uses the recorded settings and the recorded status. slices: of the whole scan, if the run may
            visit slices that are not recorded.
        """
        how = settings or self.settings
        run = Run(slices or self.slices, self.question, policy, segmenter, how, given=self.given)
        run.go_to(self.actions, watch)
        notes = self.other_models(policy, segmenter)
        if self.alone:
            notes += [f"step {each.number}: {each}" for each in self.replay(segmenter).differences]
        elif others := [str(each.number) for each in self.differences(run)]:
            notes.append(f"the recomputed masks of these slices differ from the record: {', '.join(others)}")
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        if settings is None:
            run.take_up(self.status, self.reason)
        return run

    def differences(self, run: Run) -> list[Difference]:
        """The slices (`number`) whose mask in a run differs from this record."""
        masks = ((index, self.mask_of(index), run.mask(index)) for index in self.visited)
        return [Difference.between(*each) for each in masks if not np.array_equal(*each[1:])]

    def other_models(self, policy: Policy | None, segmenter: Segmenter) -> list[str]:
        """Warnings if the models are not the recorded ones."""
        notes = other_weights("segmenter", self.segmenter, segmenter.identity)
        if policy is not None and self.policy is not None:
            notes += other_weights("policy", self.policy, policy.identity)
        return notes
