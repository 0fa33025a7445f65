"""The decision process over a volume: key slice, growth both ways, second looks, and the way back.

    run = VolumeRun(stack, "Segment the liver", policy, segmenter)
    run.run()                                # or: run.step(), one action at a time
    run.click(57, Click(0.4, 0.6))           # the person corrects slice 57 …
    run.spread(57)                           # … and what depends on it
    run.undo()
    run.mask(57), run.volume_ml

A run is its list of actions: what comes next, the clicks, how it stands, all follow from them (volume_plan), so
that going back is choosing fewer of them. Whatever fails or is stopped leaves what was there. Records are in
volume_record; how an object goes from slice to slice is the segmenter's follower's matter. One thread at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import area
from ibis_agent.policy.contract import Policy
from ibis_agent.policy.prompts import check_question
from ibis_agent.run import volume_agent, volume_growth
from ibis_agent.run.doubt import Doubt, doubts, seen_otherwise
from ibis_agent.run.episode import Author, Status, Step
from ibis_agent.run.volume_actions import Kind, Stage, VolumeAction, VolumeLimits, Watch
from ibis_agent.run.volume_history import LIMIT as HISTORY_LIMIT
from ibis_agent.run.volume_history import History, Moment
from ibis_agent.run.volume_plan import answer_of, before_growth, clicks_on, key_of, seen_at, unfinished
from ibis_agent.scan.slices import Slices
from ibis_agent.segmenter.contract import Found, Prediction, Segmenter
from ibis_agent.segmenter.framed import framed

_MOST_UNDOS = 200
_Place = tuple[tuple[VolumeAction, ...], VolumeAction | None]  # `actions` and `rejected`


class VolumeRun:
    """A run through the slices of a volume.

    Attributes:
        slices: what is worked on.
        memory: what is known of every slice.
        limits: where the policy is stopped.
        actions: all that was done and not taken back.
        rejected: the action that the person took back last, as long as nothing has followed.
    """

    def __init__(
        self,
        slices: Slices,
        question: str,
        policy: Policy | None,
        segmenter: Segmenter,
        limits: VolumeLimits | None = None,
        history_limit: int = HISTORY_LIMIT,
    ) -> None:
        """history_limit: bytes for what going back needs.

        policy None: the person alone. Raises InputError for a question that cannot be asked.
        """
        self.slices, self.policy, self.segmenter = slices, policy, segmenter
        self.limits = limits or VolumeLimits()
        asked = (policy.card.max_question, policy.card.script) if policy is not None else ()
        self.question = check_question(question, *asked)
        geometry = slices.geometry(slices.first)
        size = geometry.height, geometry.width
        self.memory = framed(segmenter, slices.picture(slices.first).frame).follower(
            lambda index: slices.picture(index).rgb, len(slices), size, self.limits.follow
        )
        self.row_mm, self.col_mm = geometry.row_mm or 1.0, geometry.col_mm or 1.0
        self.gap_mm = float(np.linalg.norm(geometry.affine[:3, geometry.axis]))
        self.actions: tuple[VolumeAction, ...] = ()
        self._bases: dict[int, Prediction | None] = {}
        self._paused = ""
        self.rejected: VolumeAction | None = None
        self._doubted: tuple[Any, list[Doubt]] = (None, [])
        self._now = Moment((), self.memory.state(), {})  # after the last action
        self._history = History(self._now, history_limit)
        self._past: list[_Place] = []
        self._future: list[_Place] = []

    # ---- what there is --------------------------------------------------------------------------------------

    @property
    def found(self) -> Mapping[int, Found]:
        """What is known of every slice, before the region of interest cuts it."""
        return self.memory.found

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: the object in a slice; empty where nothing is known."""
        found = self.memory.found.get(index)
        if found is None:
            return np.zeros(self.memory.size, dtype=bool)
        return self.within(index, found.mask)

    def within(self, index: int, mask: np.ndarray) -> np.ndarray:
        """A mask of a slice without what lies outside the region of interest."""
        inside = self.slices.inside(index)
        return mask if inside is None else mask & inside

    def volume(self) -> np.ndarray:
        """(I, J, K) uint8 in the scan's own voxel order."""
        out = np.zeros(self.slices.geometry(self.slices.first).shape, dtype=np.uint8)
        for index in self.memory.found:
            self.slices.geometry(index).embed_mask(self.mask(index), out)
        return out

    def areas_mm2(self) -> dict[int, float]:
        """The area in every slice that was visited."""
        pixel = self.row_mm * self.col_mm
        return {index: area(self.mask(index)) * pixel for index in sorted(self.memory.found)}

    @property
    def volume_ml(self) -> float:
        """Areas times the distance of the slices."""
        return sum(self.areas_mm2().values()) * self.gap_mm / 1000

    @property
    def key(self) -> int | None:
        """The slice that all began at; None before there is a click."""
        return key_of(self.actions)

    @property
    def status(self) -> Status:
        """ "ready": `step` will do. "paused": the policy was not understood. "ended"."""
        return "paused" if self._paused else "ended" if self._ended else "ready"

    @property
    def reason(self) -> str:
        """Why the run is paused or ended, for people."""
        return self._paused or (self.actions[-1].words if self._ended else "")

    @property
    def answer(self) -> str | None:
        """What the policy answered on its key slice; where it saw nothing, what it answered most often."""
        return answer_of(self.actions)

    @property
    def looks(self) -> int:
        """How many second looks were taken."""
        return max((each.look for each in self.actions), default=0)

    def doubts(self) -> list[Doubt]:
        """The slices that deserve another look, the most doubtful first; those looked at already left out."""
        if self._doubted[0] is not self.actions:
            looked = {each.index for each in self.actions if each.look}
            found = self.memory.found
            shown = [
                *seen_otherwise(found, self._seen()),
                *doubts(found, self.row_mm, self.col_mm, self.gap_mm),
            ]
            self._doubted = self.actions, [each for each in shown if each.index not in looked]
        return self._doubted[1]

    def _seen(self) -> dict[int, Found]:
        """What the looks for the key slice gave, by slice."""
        steps = seen_at(self.actions).items()
        return {n: Found(n, self.within(n, each.mask), each.score or 0.0, 1.0, False) for n, each in steps}

    @property
    def stage(self) -> Stage:
        """What `step` would do now: "look" for the key slice, "work" on it, "grow", "review" a doubtful slice,
        "finish"; after the "end" nothing.
        """
        return volume_agent.stage_of(self)

    # ---- the agent ------------------------------------------------------------------------------------------

    def run(self, watch: Watch | None = None) -> Status:
        """All of it, from where the run stands. Stopping raises Cancelled and keeps what is there."""
        while True:
            self.step(watch)
            if self.status != "ready":
                return self.status

    def step(self, watch: Watch | None = None) -> VolumeAction | None:
        """Do what comes next. A correction and what depends on it are two actions, done in one step.

        Returns the last action; None if none came of it: the run is then paused.

        Raises InputError where the run has ended, Cancelled, and what the models raise. A cancelled growth
        leaves an action with the slices that were done; all else is then as it was.
        """
        watch = watch or Watch()
        self._paused = ""
        watch.check()
        with self._whole():
            return volume_agent.act(self, watch)

    def grow(self, watch: Watch | None = None) -> VolumeAction:
        """Follow the object from the key slice both ways until it ends."""
        if self.key is None:
            raise InputError(
                "there is no slice to grow from", remedy="Work on the key slice first, or click."
            )
        with self._whole():
            return volume_growth.grow(self, self.key, False, watch or Watch())

    # ---- the person -----------------------------------------------------------------------------------------

    def click(
        self, index: int, click: Click, replace: int | None = None, watch: Watch | None = None
    ) -> VolumeAction:
        """A click of the person on any slice; the slice is corrected at once, its neighbours with `spread`.

        replace: which of the slice's clicks, from 1, it takes the place of; later ones there are dropped.
        Raises InputError for a slice outside the range, or a click that is not there.
        """
        begun = time.perf_counter()
        if not self.slices.first <= index <= self.slices.last:
            remedy = f"Choose one from {self.slices.first} to {self.slices.last}."
            raise InputError("the slice is not in the range of this run", value=index, remedy=remedy)
        earlier = clicks_on(self.actions, index)
        if replace is not None and not 1 <= replace <= len(earlier):
            raise InputError(
                "there is no such click on this slice", value=replace, remedy=f"It has {len(earlier)}."
            )
        clicks = (*(earlier if replace is None else earlier[: replace - 1]), click)
        with self._whole():
            found = self.anchor(index, clicks)
            standing = self.memory.standing(index)
        logits, spent = None if standing is None else standing.logits, time.perf_counter() - begun
        seconds = {"policy": 0.0, "segmenter": spent, "total": spent}
        mask = self.within(index, found.mask)
        step = Step(len(clicks), click, "person", mask, logits, found.score, seconds=seconds)
        words = "clicked" if replace is None else f"click {replace} moved"
        return self.done("click", index, "person", words, begun, watch, steps=(step,), clicks=clicks)

    def spread(self, index: int, watch: Watch | None = None) -> VolumeAction:
        """Redo what depends on an anchor: its neighbours, until they come out as they were or another anchor."""
        if not clicks_on(self.actions, index):
            raise InputError(
                "the slice has no click to go out from", value=index, remedy="Click there first."
            )
        # What a growth from here that was stopped has yet to do is done with it.
        settle = not unfinished(self.actions).get(index)
        with self._whole():
            return volume_growth.grow(self, index, settle, watch or Watch(), what="neighbours redone")

    def reject(self) -> None:
        """Take the policy's last word back, with what grew from it, and tell it so at its next turn there."""
        kept = before_growth(self.actions)
        grown = len(kept) < len(self.actions)
        if not kept or kept[-1].by != "policy" or not kept[-1].steps or (grown and not kept[-1].look):
            raise InputError("the last action is no word of the policy's", remedy="Go back instead.")
        self._leave_for(kept[:-1])
        self.rejected = kept[-1]

    def back(self, keep: int) -> None:
        """Keep the first `keep` actions. Can be undone. Raises InputError where there are fewer."""
        if not 0 <= keep <= len(self.actions):
            remedy = f"There are {len(self.actions)} actions."
            raise InputError("there is no such action", value=keep, remedy=remedy)
        self._leave_for(self.actions[:keep])

    def go_to(self, actions: Sequence[VolumeAction], watch: Watch | None = None) -> None:
        """Stand after these actions: some of this run's first ones, or those of a record.

        What was kept is taken from there, all else is done again without asking the policy. Where that fails or
        is stopped (Cancelled), the run stands where it stood. Undo and redo do not know of it.
        """
        here, watch = self._now, watch or Watch()
        try:
            self._put_back(self._history.nearest(actions))
            for action in actions[len(self.actions) :]:
                self.repeat(action, watch)
        except BaseException:
            self._put_back(here)
            raise

    def repeat(self, action: VolumeAction, watch: Watch) -> None:
        """Do a recorded action again, without asking anybody: its clicks, and its ways slice by slice."""
        if action.kind == "click":
            self.anchor(action.index, action.clicks, action.afresh)
        for way in action.ways:
            direction = 1 if way.last > way.start else -1
            if way.last != way.start:
                for _ in self.memory.follow(way.start, direction, way.last):
                    watch.check()
            if way.ended:
                end = self.slices.last if direction > 0 else self.slices.first
                self.memory.forget_beyond(way.last, direction, end)
        self._append(action)

    @property
    def can_undo(self) -> bool:
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        return bool(self._future)

    def undo(self) -> None:
        """Take the last change of masks back, or the last way back. Raises InputError where there is none."""
        if not self._past:
            raise InputError("there is nothing to undo")
        self._future.append(self._swap(self._past[-1]))
        self._past.pop()

    def redo(self) -> None:
        """Do again what `undo` took back. Raises InputError where there is nothing."""
        if not self._future:
            raise InputError("there is nothing to redo")
        self._past.append(self._swap(self._future[-1]))
        self._future.pop()

    # ---- for volume_agent and its like ------------------------------------------------------------------------

    def base(self, index: int) -> Prediction | None:
        """What the first click on a slice goes on from; None for an empty slice, which is looked at afresh."""
        if index in self._bases:
            return self._bases[index]
        standing = self.memory.standing(index)
        return standing if standing is not None and self.mask(index).any() else None

    def anchor(self, index: int, clicks: tuple[Click, ...], afresh: bool = False) -> Found:
        """Make a slice an anchor by these clicks, made one after the other as in an episode.

        afresh: without the mask that is there.
        """
        base = None if afresh else self.base(index)
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
    ) -> VolumeAction:
        """Write an action down and tell of it. more: other fields of VolumeAction."""
        now, before = self.memory.found, self._now.state.found
        touched = tuple(n for n in sorted({*now, *before}) if now.get(n) is not before.get(n))
        action = VolumeAction(
            number=len(self.actions) + 1,
            kind=kind,
            index=index,
            by=by,
            words=words,
            touched=touched,
            seconds=time.perf_counter() - begun,
            **more,
        )
        if action.changes:
            self._remember((self.actions, self.rejected))
        self._append(action)
        if watch is not None:
            watch.action(action)
        return action

    def pause(self, reason: str) -> None:
        """The policy was not understood; the next step asks it again."""
        self._paused = reason

    @property
    def _ended(self) -> bool:
        return bool(self.actions) and self.actions[-1].kind == "end"

    def _leave_for(self, actions: tuple[VolumeAction, ...]) -> None:
        self._remember(self._swap((actions, None)))

    def _swap(self, place: _Place) -> _Place:
        """Stand there; where it stood."""
        left = self.actions, self.rejected
        self.go_to(place[0])
        self.rejected = place[1]
        return left

    def _remember(self, place: _Place) -> None:
        """For undo."""
        self._past = [*self._past, place][-_MOST_UNDOS:]
        self._future.clear()

    def _append(self, action: VolumeAction) -> None:
        self.actions, self._paused, self.rejected = (*self.actions, action), "", None
        self._now = Moment(self.actions, self.memory.state(), dict(self._bases))
        if action.changes:
            self._history.keep(self._now)

    def _put_back(self, moment: Moment) -> None:
        self.actions, self._bases = moment.actions, dict(moment.bases)
        self._paused, self.rejected = "", None
        self.memory.restore(moment.state)
        self._now = moment

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What fails leaves no slices behind that no action knows of."""
        try:
            yield
        except BaseException:
            rejected = self.rejected
            self._put_back(self._now)
            self.rejected = rejected  # the policy has yet to be told
            raise
