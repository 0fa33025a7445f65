"""The state of a run: its actions, the masks of its slices, and the snapshots for going back.

Everything follows from the list of actions. Snapshots keep the masks after some of them; other states are made again
by repeating actions, without asking the policy. The agent's actions are in agent, a person's in run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ibis_agent.actions import Prompt
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import area
from ibis_agent.policy.contract import Policy
from ibis_agent.policy.prompts import check_question
from ibis_agent.run.action import Kind, RunAction, Watch
from ibis_agent.run.doubtful_slices import Doubt, agreed, doubts, seen_otherwise
from ibis_agent.run.episode import Author, Halt, Limits, Status, Step, halt_after
from ibis_agent.run.given import Given
from ibis_agent.run.plan import answer_of, key_of, seen_at, steps_on
from ibis_agent.run.prefetch import Prefetch
from ibis_agent.run.settings import Settings
from ibis_agent.run.single_slice import SingleSlice
from ibis_agent.run.snapshots import LIMIT, Snapshot, Snapshots
from ibis_agent.run.undo import UndoHistory
from ibis_agent.run.unfamiliar import unfamiliar
from ibis_agent.scan.slices import Slices
from ibis_agent.segmenter.contract import Follower, Found, Prediction, Segmenter
from ibis_agent.segmenter.framed import framed

# On a single slice the published limit holds.
_TURNS_WITHIN_A_VOLUME = 6


@dataclass(frozen=True, eq=False)
class Place:
    """A point in a run that undo can return to: its actions, the rejected one, and why the policy stopped."""

    actions: tuple[RunAction, ...]
    rejected: RunAction | None = None
    halt: Halt | None = None


class RunState:
    """The state of a run, and what changes it.

    Attributes:
        slices: the slices it works on.
        given: the starting mask and the exclusion.
        alone: it works on a single slice, without search, propagation and second looks.
        settings: its settings, with "auto" and None resolved.
        memory: the masks of the slices.
        actions: everything done and not taken back.
        rejected: the action that the person took back last, until another one follows.
    """

    def __init__(
        self,
        slices: Slices,
        question: str,
        policy: Policy | None,
        segmenter: Segmenter,
        settings: Settings | None = None,
        history_limit: int = LIMIT,
        given: Given | None = None,
    ) -> None:
        """policy: None if only a person acts. history_limit: bytes for snapshots.

        Raises InputError for an invalid question, and for a starting mask that does not fit or that the segmenter
        cannot use.
        """
        settings = settings or Settings()
        self.prefetch, self.given = Prefetch(), given or Given()
        self.slices, self.policy, self.segmenter = slices, policy, segmenter
        asked = (policy.card.max_question, policy.card.script) if policy is not None else ()
        self.question = check_question(question, *asked)
        geometry = slices.geometry(slices.first)
        size = geometry.height, geometry.width
        one = slices.first == slices.last and slices.inside(slices.first) is None
        self.alone = settings.follow == "alone" or (one and settings.follow == "auto")
        self.memory: Follower | SingleSlice
        if self.alone:
            self.memory = SingleSlice(slices, segmenter, size)
        else:
            way: Any = settings.follow
            self.memory = framed(segmenter, slices.frame).follower(
                lambda n: slices.picture(n).rgb, len(slices), size, way, settings.following
            )
        if self.given.start:
            check_start(self.given, slices, segmenter)
            self.memory.begin(self.given.start if self.alone else self.given.filled())
        self.limits = settings.episode or (Limits() if self.alone else Limits(_TURNS_WITHIN_A_VOLUME))
        follow: Any = self.memory.way
        self.settings = replace(settings, episode=self.limits, follow=follow)
        self.row_mm, self.col_mm = geometry.row_mm or 1.0, geometry.col_mm or 1.0
        self.gap_mm = float(np.linalg.norm(geometry.affine[:3, geometry.axis]))
        self.actions: tuple[RunAction, ...] = ()
        self.rejected: RunAction | None = None
        self._halt: Halt | None = None
        self._bases: dict[int, Prediction | None] = {}
        self._doubted: tuple[Any, list[Doubt]] = (None, [])
        self._now = Snapshot((), self.memory.state(), {})  # after the last action
        self._snapshots = Snapshots(self._now, history_limit)
        self._history: UndoHistory[Place] = UndoHistory()

    # Queries

    @property
    def unfamiliar(self) -> str:
        """A warning if the policy was not trained on scans of this kind; otherwise ""."""
        return unfamiliar(self.policy.card, self.slices) if self.policy is not None else ""

    @property
    def found(self) -> Mapping[int, Found]:
        """The segmenter's mask of every slice, before the region of interest and the exclusion are applied."""
        return self.memory.found

    def mask(self, index: int | None = None) -> np.ndarray:
        """(H, W) bool: the object in a slice (None: the first slice); empty if the slice was not segmented."""
        index = self.slices.first if index is None else index
        found = self.memory.found.get(index)
        if found is None:
            return np.zeros(self.memory.size, dtype=bool)
        return self.within(index, found.mask)

    def within(self, index: int, mask: np.ndarray) -> np.ndarray:
        """An (H, W) mask of a slice, cut to the region of interest, minus the exclusion."""
        inside = self.slices.inside(index)
        return self.given.without_excluded(index, mask if inside is None else mask & inside)

    def volume(self) -> np.ndarray:
        """The mask of the volume, (I, J, K) uint8 in the scan's voxel order."""
        out = np.zeros(self.slices.geometry(self.slices.first).shape, dtype=np.uint8)
        for index, found in self.memory.found.items():
            self.slices.geometry(index).embed_mask(self.within(index, found.mask), out)
        return out

    def areas_mm2(self) -> dict[int, float]:
        """Area by slice, for every segmented slice: in mm², or in pixels if `pixel_mm2` is None."""
        pixel = self.row_mm * self.col_mm
        found = sorted(self.memory.found.items())
        return {index: area(self.within(index, each.mask)) * pixel for index, each in found}

    @property
    def pixel_mm2(self) -> float | None:
        """The area of a pixel in mm²; None if the scan does not say it. Areas are then in pixels."""
        return self.slices.geometry(self.slices.first).pixel_area_mm2

    def size_text(self, index: int | None = None) -> str:
        """The size in one slice (mm² or pixels) or, for None, in all slices (mL or voxels), for people."""
        area = sum(self.areas_mm2().values()) if index is None else self.areas_mm2()[index]
        if self.pixel_mm2 is None:
            return f"{area:.0f} {'voxels' if index is None else 'px'}"
        return f"{self.volume_ml:.1f} mL" if index is None else f"{area:.0f} mm²"

    def in_units(self, words: str) -> str:
        """A text with mm and mm² replaced by pixels, if the scan does not say the size of a pixel."""
        return words if self.pixel_mm2 is not None else words.replace(" mm²", " px").replace(" mm", " px")

    @property
    def volume_ml(self) -> float:
        """The sum of the areas times the slice distance; meaningless if `pixel_mm2` is None."""
        return sum(self.areas_mm2().values()) * self.gap_mm / 1000

    @property
    def key(self) -> int | None:
        """The key slice. In a volume None until there is a click or a starting mask."""
        if self.alone:
            return self.slices.first
        return key_of(self.actions) if self.given.key is None else self.given.key

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps on the key slice, in order."""
        return () if self.key is None else tuple(steps_on(self.actions, self.key))

    @property
    def halt(self) -> Halt | None:
        """Why the policy stopped; None while it goes on."""
        if self._halt is not None or not self.actions:
            return self._halt
        if self.alone:
            return halt_after(self.steps, self.limits)
        last = self.actions[-1]
        return Halt("ended", last.words) if last.kind == "end" else None

    @property
    def status(self) -> Status:
        """ "ready" for a `step`, "paused" after two unreadable replies, or "ended"; see `reason`."""
        return "ready" if self.halt is None else self.halt.status

    @property
    def reason(self) -> str:
        """Why the run is paused or ended, for people; empty if it is ready."""
        return "" if self.halt is None else self.halt.reason

    @property
    def answer(self) -> str | None:
        """The answer. On a single slice that of the last action; in a volume that given on the key slice or, if the
        policy saw nothing, its most frequent one.
        """
        if self.alone:
            return self.actions[-1].answer if self.actions else None
        return answer_of(self.actions)

    @property
    def looks(self) -> int:
        """The number of second looks taken."""
        return max((each.look for each in self.actions), default=0)

    def doubts(self) -> list[Doubt]:
        """The slices that deserve a second look and have not had one, the most doubtful first."""
        if self._doubted[0] is not self.actions:
            looked = {each.index for each in self.actions if each.look}
            found, limits = dict(self.memory.found), self.settings.doubt
            if (key := self.given.key) in found:  # the policy has looked at the starting mask there
                found[key] = replace(found[key], anchor=True)
            shown = [
                *seen_otherwise(found, self._seen(), limits),
                *doubts(found, self.row_mm, self.col_mm, self.gap_mm, limits),
            ]
            told = [replace(each, reason=self.in_units(each.reason)) for each in shown]
            self._doubted = self.actions, [each for each in told if each.index not in looked]
        return self._doubted[1]

    def agreed(self) -> list[int]:
        """The slices where looks agree with each other and with the present mask, see doubtful_slices.agreed."""
        return agreed(self.memory.found, self._seen(), self.settings.doubt)

    def _seen(self) -> dict[int, Found]:
        """The masks of the looks for the key slice, by slice."""
        steps = seen_at(self.actions).items()
        return {n: Found(n, self.within(n, each.mask), each.score or 0.0, 1.0, False) for n, each in steps}

    # Changes

    def base(self, index: int) -> Prediction | None:
        """The prediction that a slice's first prompt refines; None if the slice is empty."""
        if index in self._bases:
            return self._bases[index]
        standing = self.memory.standing(index)
        return standing if standing is not None and self.mask(index).any() else None

    def anchor(self, index: int, clicks: tuple[Prompt, ...], afresh: bool = False) -> Found:
        """Prompt a slice with `clicks`, one after another as in an episode, and make it an anchor.

        afresh: ignore the present mask of the slice.
        """
        base = None if afresh else self.base(index)
        steps = steps_on(self.actions, index) if self.alone else []
        made = [step for step in steps if isinstance(step.action, Prompt)][: len(clicks) - 1]
        if made and made[-1].logits is not None and tuple(step.action for step in made) == clicks[:-1]:
            logits: np.ndarray | None = made[-1].logits
        else:
            logits = None if base is None else base.logits
            for count in range(1, len(clicks)):
                logits = self.memory.predict(index, clicks[:count], logits).logits
        found = self.memory.anchor(index, clicks, logits)
        self._bases[index] = base
        return found

    def done(
        self,
        kind: Kind,
        index: int,
        by: Author,
        words: str,
        begun: float,
        watch: Watch | None = None,
        **more: Any,
    ) -> RunAction:
        """Append an action and report it. begun: time.perf_counter() at its start. more: other fields of RunAction."""
        now, before = self.memory.found, self._now.state.found
        touched = tuple(n for n in sorted({*now, *before}) if now.get(n) is not before.get(n))
        action = RunAction(
            number=len(self.actions) + 1,
            kind=kind,
            index=index,
            by=by,
            words=words,
            touched=touched,
            seconds=time.perf_counter() - begun,
            **more,
        )
        if action.changes or self.alone:
            self._history.leave(self.place())
        self._append(action)
        if watch is not None:
            watch.action(action)
        return action

    def stop(self, halt: Halt) -> None:
        """Pause or end the run without an action."""
        if self.alone:
            self._history.leave(self.place())
        self._halt = halt

    def go_to(self, actions: Sequence[RunAction], watch: Watch | None = None) -> None:
        """Restore the state after these actions: the first ones of this run, or those of a record.

        Starts from the nearest snapshot and repeats the other actions without asking the policy. If that fails or is
        stopped (Cancelled), the run stays as it was. Not part of the undo history.
        """
        here, watch = (self._now, self.rejected, self._halt), watch or Watch()
        try:
            self._put_back(self._snapshots.nearest(actions))
            for action in actions[len(self.actions) :]:
                self.repeat(action, watch)
        except BaseException:
            self._put_back(here[0])
            _, self.rejected, self._halt = here
            raise

    def repeat(self, action: RunAction, watch: Watch) -> None:
        """Repeat an action without asking the policy: its prompts, and its propagation slice by slice."""
        if action.kind == "click":
            self.anchor(action.index, action.clicks, action.afresh)
            standing = self.memory.standing(action.index)
            if action.steps and action.steps[-1].logits is None and standing is not None:
                last = replace(action.steps[-1], logits=standing.logits)
                action = replace(action, steps=(*action.steps[:-1], last))
            if isinstance(self.memory, SingleSlice) and action.steps:
                self.memory.show(action.index, action.steps[-1].mask)
        for way in action.ways:
            direction = 1 if way.last > way.start else -1
            if way.last != way.start:
                for _ in self.memory.follow(way.start, direction, way.last):
                    watch.check()
            if way.ended:
                end = self.slices.last if direction > 0 else self.slices.first
                self.memory.forget_beyond(way.last, direction, end)
        self._append(action)

    def place(self) -> Place:
        return Place(self.actions, self.rejected, self._halt)

    def stand(self, place: Place, watch: Watch | None = None) -> None:
        """Return to a place. Raises as `go_to`."""
        self.go_to(place.actions, watch)
        self.rejected, self._halt = place.rejected, place.halt

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Discard changed masks if the block fails, so that every mask belongs to an action."""
        try:
            yield
        except BaseException:
            rejected, halt = self.rejected, self._halt
            self._put_back(self._now)
            self.rejected, self._halt = rejected, halt  # not yet told to the policy
            raise

    def check_keep(self, keep: int) -> int:
        """Return `keep`. Raises InputError unless there are that many actions."""
        if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= len(self.actions):
            what = "step" if self.alone else "action"
            remedy = f"There are {len(self.actions)}." if len(self.actions) != 1 else f"There is one {what}."
            raise InputError(f"there is no such {what}", value=keep, remedy=remedy)
        return keep

    def _append(self, action: RunAction) -> None:
        self.actions, self._halt, self.rejected = (*self.actions, action), None, None
        self._now = Snapshot(self.actions, self.memory.state(), dict(self._bases))
        if action.changes:
            self._snapshots.keep(self._now)

    def _put_back(self, snapshot: Snapshot) -> None:
        self.actions, self._bases = snapshot.actions, dict(snapshot.bases)
        self._halt = self.rejected = None
        self.memory.restore(snapshot.state)
        self._now = snapshot


def check_start(given: Given, slices: Slices, segmenter: Segmenter) -> None:
    """Raise InputError if a run over these slices cannot start from the given mask."""
    if not segmenter.can.starting_mask:
        name = segmenter.identity.get("name")
        remedy = "Choose another segmenter, or start without a mask."
        raise InputError("this segmenter cannot start from a mask", value=name, remedy=remedy)
    geometry = slices.geometry(slices.first)
    size = geometry.height, geometry.width
    for index, mask in given.start.items():
        if not slices.first <= index <= slices.last or mask.shape != size:
            what = "the mask to start from does not fit the slices"
            raise InputError(what, value=f"slice {index}, {mask.shape}", remedy=f"They are {size}.")
