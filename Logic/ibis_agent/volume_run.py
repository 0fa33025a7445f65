"""The decision process over a volume: key slice, growth both ways, second looks, and the way back.

    run = VolumeRun(stack, "Segment the liver", policy, segmenter)
    run.run()                                # or: search, work, grow, second_looks one by one
    run.click(57, Click(0.4, 0.6))           # the person corrects slice 57 …
    run.spread(57)                           # … and what depends on it
    run.undo()
    run.mask(57), run.volume_ml

Every change is an action in a list; whatever fails or is stopped leaves what was there. Undo goes back over
actions that changed masks. Features are computed once for all of it. Records are in volume_record, the memory
in propagation, one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .actions import Click, Terminate
from .doubt import Doubt, doubts
from .episode import Episode, Limits, Status, Step
from .errors import Cancelled, InputError
from .features import LIMIT, FeatureCache
from .found import Found
from .key_slice import Look, Search, best, search_slices
from .masks import area, dice
from .policy import IsCancelled, OnText, Policy
from .prompts import check_question
from .propagation import Propagation, State
from .segmenter import Prediction, Segmenter
from .stack import Slices

Kind = Literal["look", "click", "grow", "review"]
_MOST_UNDOS = 20  # a step back keeps the memories that it replaced alive


@dataclass(frozen=True)
class VolumeLimits:
    """Where a volume run stops by itself.

    Attributes:
        episode: of the policy's turns on one slice.
        looks: second looks.
        patience_mm: so far beyond its last slice an object is still searched for: gaps are bridged.
        search: how the key slice is looked for.
        follow: from slice to slice by "memory", by "carry" (see propagation), or "auto".
    """

    episode: Limits = field(default_factory=lambda: Limits(max_turns=6))
    looks: int = 4
    patience_mm: float = 20.0
    search: Search = field(default_factory=Search)
    follow: Literal["auto", "memory", "carry"] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.looks, bool) or not isinstance(self.looks, int) or self.looks < 0:
            raise InputError("the limit of second looks must be a whole number from 0", value=self.looks)


@dataclass(frozen=True)
class Way:
    """Slices that were visited one after the other.

    Attributes:
        start: where the way begins, not visited itself.
        last: the last slice visited, `start` if there was none.
        ended: the object ends here; what was known further on is gone.
    """

    start: int
    last: int
    ended: bool = False


@dataclass(frozen=True, eq=False)
class VolumeAction:
    """One thing that was done.

    Attributes:
        number: from 1.
        kind: "look" at a slice for the key slice; "click": a slice was worked on and is an anchor now; "grow":
            neighbouring slices were found again; "review": a second look that changed nothing.
        index: the slice.
        by: who acted.
        words: what was seen or why, for people.
        steps: on that slice.
        clicks: all clicks that the slice stands on after it.
        ways: the slices visited.
        seconds: it took.
    """

    number: int
    kind: Kind
    index: int
    by: Literal["policy", "person"]
    words: str = ""
    steps: tuple[Step, ...] = ()
    clicks: tuple[Click, ...] = ()
    ways: tuple[Way, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How far growing is: slices done, of how many at the most, and the seconds that those left may take."""

    index: int
    done: int
    total: int
    seconds_left: float


OnProgress = Callable[[Progress, Found], object]
OnAction = Callable[[VolumeAction], object]


@dataclass(frozen=True)
class _Moment:
    actions: tuple[VolumeAction, ...]
    spread: State
    clicks: Mapping[int, tuple[Click, ...]]
    bases: Mapping[int, Prediction | None]
    key: int | None
    status: Status
    reason: str
    answer: str | None


class VolumeRun:
    """A run through the slices of a volume.

    Attributes:
        slices: what is worked on.
        memory: what is known of every slice.
        features: kept for all slices; may serve another run over the same slices.
        limits: where the policy is stopped.
    """

    def __init__(
        self,
        slices: Slices,
        question: str,
        policy: Policy | None,
        segmenter: Segmenter,
        limits: VolumeLimits | None = None,
        features: FeatureCache | None = None,
        memory_limit: int = LIMIT,
    ) -> None:
        """features: of these very slices, from another run over them. memory_limit: bytes for features.

        policy None: the person alone. Raises InputError for a question that cannot be asked.
        """
        self.slices, self.policy, self.segmenter = slices, policy, segmenter
        self.limits = limits or VolumeLimits()
        asked = (policy.card.max_question, policy.card.script) if policy is not None else ()
        self.question = check_question(question, *asked)
        geometry = slices.geometry(slices.first)
        if features is None:
            features = FeatureCache(segmenter, lambda index: slices.picture(index).rgb, memory_limit)
        self.features = features
        size = geometry.height, geometry.width
        self.memory = Propagation(features, len(slices), size, self.limits.follow)
        self.row_mm, self.col_mm = geometry.row_mm or 1.0, geometry.col_mm or 1.0
        self.gap_mm = float(np.linalg.norm(geometry.affine[:3, geometry.axis]))
        self._actions: tuple[VolumeAction, ...] = ()
        self._clicks: dict[int, tuple[Click, ...]] = {}
        self._bases: dict[int, Prediction | None] = {}
        self._episodes: dict[int, Episode] = {}
        self._reviewed: set[int] = set()
        self._past: list[_Moment] = []
        self._future: list[_Moment] = []
        self.key: int | None = None
        self.status: Status = "ready"
        self.reason = ""
        self.answer: str | None = None

    # ---- what there is --------------------------------------------------------------------------------------

    @property
    def actions(self) -> tuple[VolumeAction, ...]:
        """All that was done and not taken back."""
        return self._actions

    @property
    def found(self) -> Mapping[int, Found]:
        """What is known of every slice, before the region of interest cuts it."""
        return self.memory.found

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: the object in a slice; empty where nothing is known."""
        found = self.memory.found.get(index)
        if found is None:
            return np.zeros(self.memory.size, dtype=bool)
        return self._within(index, found.mask)

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

    def doubts(self) -> list[Doubt]:
        """The slices that deserve another look, the most doubtful first; those looked at already left out."""
        shown = doubts(self.memory.found, self.row_mm, self.col_mm, self.gap_mm)
        return [each for each in shown if each.index not in self._reviewed]

    @property
    def can_undo(self) -> bool:
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        return bool(self._future)

    # ---- the agent ------------------------------------------------------------------------------------------

    def run(
        self,
        on_action: OnAction | None = None,
        on_progress: OnProgress | None = None,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
    ) -> Status:
        """All of it. Stopping raises Cancelled and keeps what is there. Returns the status."""
        if self.key is None:
            self.search(on_action, on_text, cancelled)
        if self.status == "ready" and self.key is not None and self.key not in self._clicks:
            self.work(on_action, on_text, cancelled)
        if self.status == "ready" and self._clicks:
            self.grow(on_action, on_progress, cancelled)
            self.second_looks(on_action, on_progress, on_text, cancelled)
            self.status, self.reason = "ended", "The object was followed to where it ends."
        return self.status

    def search(
        self,
        on_action: OnAction | None = None,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
    ) -> int | None:
        """Look for the key slice. Returns it; None where the object is nowhere: the run has then ended."""
        self._needs_policy()
        looks: dict[int, Look] = {}

        def look(index: int) -> Look:
            _stop_if(cancelled)
            begun = time.perf_counter()
            episode = self._episode(index)
            step = episode.step(on_text, cancelled)
            pixel = self.row_mm * self.col_mm
            seen = Look(index, step, 0.0 if step is None else area(step.mask) * pixel)
            self._episodes[index], looks[index] = episode, seen
            self._done("look", index, "policy", seen.words, episode.steps, begun=begun, on_action=on_action)
            return seen

        for _ in search_slices(self.slices.first, self.slices.last, self.gap_mm, look, self.limits.search):
            pass
        key = best(looks)
        if key is not None:
            self.key = key.index
            return self.key
        said = [
            each.step.action.answer
            for each in looks.values()
            if each.step is not None and isinstance(each.step.action, Terminate)
        ]
        if said:
            self.answer = max(said, key=said.count)
            self.status = "ended"
            places = ", ".join(str(n) for n in sorted(looks))
            self.reason = f"The policy saw it in none of the slices {places}."
        else:
            self.status, self.reason = "paused", "No slice gave a mask to begin with."
        return None

    def work(
        self,
        on_action: OnAction | None = None,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
    ) -> None:
        """Let the policy work on the key slice, and make it the first anchor."""
        self._needs_policy()
        if self.key is None:
            raise InputError("there is no key slice", mend="Search first, or click.")
        begun = time.perf_counter()
        episode = self._episodes.pop(self.key, None) or self._episode(self.key)
        if episode.status == "ready":
            episode.run(on_text=on_text, cancelled=cancelled)
        self._episodes.clear()
        clicks = _clicks_of(episode.steps)
        if not clicks or not episode.mask.any():
            self.status, self.reason = "paused", f"The policy left no mask on its key slice {self.key}."
            return
        self.answer = episode.answer
        self._push(self._moment())
        self._anchor(self.key, clicks)
        self._done(
            "click",
            self.key,
            "policy",
            episode.reason,
            episode.steps,
            clicks,
            begun=begun,
            on_action=on_action,
        )

    def grow(
        self,
        on_action: OnAction | None = None,
        on_progress: OnProgress | None = None,
        cancelled: IsCancelled | None = None,
    ) -> None:
        """Follow the object from the first anchor both ways until it ends.

        Cancelled: the slices done stay, and are an action of their own.
        """
        if self.key is None or self.key not in self._clicks:
            raise InputError("there is no slice to grow from", mend="Work on the key slice first, or click.")
        self._push(self._moment())
        self._follow(self.key, "grow", False, on_action, on_progress, cancelled)

    def second_looks(
        self,
        on_action: OnAction | None = None,
        on_progress: OnProgress | None = None,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
    ) -> int:
        """Show doubtful slices to the policy again, the most doubtful first. Returns how many were shown.

        A correction stays if the slice and its neighbours are less doubtful with it than without.
        """
        self._needs_policy()
        looked = 0
        while looked < self.limits.looks and (waiting := self.doubts()):
            _stop_if(cancelled)
            looked += 1
            self._look_again(waiting[0], looked, on_action, on_progress, on_text, cancelled)
        return looked

    def _look_again(
        self,
        doubt: Doubt,
        number: int,
        on_action: OnAction | None,
        on_progress: OnProgress | None,
        on_text: OnText | None,
        cancelled: IsCancelled | None,
    ) -> None:
        begun, index = time.perf_counter(), doubt.index
        episode = self._episode(index, self._base(index))
        episode.run(on_text=on_text, cancelled=cancelled)
        self._reviewed.add(index)
        clicks = _clicks_of(episode.steps)
        words = f"look {number} of {self.limits.looks}: {doubt.reason}"
        if not clicks:
            self._done(
                "review", index, "policy", f"{words}; left as it was", episode.steps, begun=begun,
                on_action=on_action,
            )  # fmt: skip
            return
        moment, trouble = self._moment(), self._trouble(index)
        self._anchor(index, clicks)
        if self._trouble(index) >= trouble:
            self._put_back(moment)
            self._done(
                "review", index, "policy", f"{words}; the correction fitted its neighbours no better",
                episode.steps, begun=begun, on_action=on_action,
            )  # fmt: skip
            return
        self._push(moment)
        self._done(
            "click", index, "policy", f"{words}; corrected", episode.steps, clicks, begun=begun,
            on_action=on_action,
        )  # fmt: skip
        self._follow(index, "spread", True, on_action, on_progress, cancelled)

    def _trouble(self, index: int) -> float:
        """How badly the mask of a slice fits the next one on the way to the nearest other anchor: 1 - Dice."""
        known = self.memory.found
        others = [anchor for anchor in self.memory.anchors if anchor != index]
        nearest = min(others, key=lambda anchor: abs(anchor - index))
        beside = known.get(index + (1 if nearest > index else -1))
        if beside is None:
            return 1.0
        return 1 - dice(known[index].mask, beside.mask)

    # ---- the person -----------------------------------------------------------------------------------------

    def click(
        self, index: int, click: Click, replace: int | None = None, on_action: OnAction | None = None
    ) -> Found:
        """A click of the person on any slice; the slice is corrected at once, its neighbours with `spread`.

        replace: which of the slice's clicks, from 1, it takes the place of; later ones there are dropped.
        Raises InputError for a slice outside the range, or a click that is not there.
        """
        begun = time.perf_counter()
        if not self.slices.first <= index <= self.slices.last:
            mend = f"Choose one from {self.slices.first} to {self.slices.last}."
            raise InputError("the slice is not in the range of this run", value=index, mend=mend)
        earlier = self._clicks.get(index, ())
        if replace is not None and not 1 <= replace <= len(earlier):
            raise InputError(
                "there is no such click on this slice", value=replace, mend=f"It has {len(earlier)}."
            )
        clicks = (*(earlier if replace is None else earlier[: replace - 1]), click)
        self._push(self._moment())
        found = self._anchor(index, clicks)
        self.key = index if self.key is None else self.key
        if self.status != "ended":
            self.status, self.reason = "ready", ""
        words = "clicked" if replace is None else f"click {replace} moved"
        step = Step(len(clicks), click, "person", self._within(index, found.mask), None, found.score)
        self._done("click", index, "person", words, [step], clicks, begun=begun, on_action=on_action)
        return found

    def spread(
        self,
        index: int,
        on_action: OnAction | None = None,
        on_progress: OnProgress | None = None,
        cancelled: IsCancelled | None = None,
    ) -> None:
        """Redo what depends on an anchor: its neighbours, until they come out as they were or another anchor."""
        if index not in self._clicks:
            raise InputError("the slice has no click to go out from", value=index, mend="Click there first.")
        self._push(self._moment())
        self._follow(index, "spread", True, on_action, on_progress, cancelled)

    def repeat(self, action: VolumeAction) -> None:
        """Do a recorded action again, without asking anybody: its clicks, and its ways slice by slice."""
        begun = time.perf_counter()
        if action.kind == "click":
            self._push(self._moment())
            self._anchor(action.index, action.clicks)
            self.key = action.index if self.key is None else self.key
        for way in action.ways:
            if way.last == way.start:
                continue
            direction = 1 if way.last > way.start else -1
            for _ in self.memory.follow(way.start, direction, way.last):
                pass
            if way.ended:
                end = self.slices.last if direction > 0 else self.slices.first
                self.memory.forget_beyond(way.last, direction, end)
        self._done(
            action.kind, action.index, action.by, action.words, action.steps, action.clicks, action.ways,
            begun=begun, on_action=None,
        )  # fmt: skip

    def undo(self) -> None:
        """Take the last change of masks back. Raises InputError where there is none."""
        if not self._past:
            raise InputError("there is nothing to undo")
        self._future.append(self._moment())
        self._put_back(self._past.pop())

    def redo(self) -> None:
        """Do again what `undo` took back. Raises InputError where there is nothing."""
        if not self._future:
            raise InputError("there is nothing to redo")
        self._past.append(self._moment())
        self._put_back(self._future.pop())

    # ---- inside ---------------------------------------------------------------------------------------------

    def _follow(
        self,
        start: int,
        why: Literal["grow", "spread"],
        settle: bool,
        on_action: OnAction | None,
        on_progress: OnProgress | None,
        cancelled: IsCancelled | None,
    ) -> None:
        begun = time.perf_counter()
        first, last = self.slices.first, self.slices.last
        patience = max(1, round(self.limits.patience_mm / self.gap_mm))
        ways: list[Way] = []
        done, total, stopped = 0, last - first, False
        for direction, end in ((1, last), (-1, first)):
            reached, missed = start, 0
            if start == end:
                continue
            for found in self.memory.follow(start, direction, end, patience, settle):
                done, reached = done + 1, found.index
                missed = 0 if found.mask.any() else missed + 1
                if on_progress is not None:
                    each = (time.perf_counter() - begun) / done
                    left = abs(end - found.index) + (abs(first - start) if direction > 0 else 0)
                    on_progress(Progress(found.index, done, total, each * left), found)
                stopped = cancelled is not None and bool(cancelled())
                if stopped:
                    break
            ways.append(Way(start, reached, not stopped and missed >= patience))
            if stopped:
                break
        reach = sorted({way.last for way in ways} | {start})
        what = "followed" if why == "grow" else "neighbours redone"
        words = f"{what} from slice {start}: slices {reach[0]} to {reach[-1]}" + (
            ", stopped" if stopped else ""
        )
        self._done("grow", start, "policy", words, ways=tuple(ways), begun=begun, on_action=on_action)
        if stopped:
            raise Cancelled()

    def _episode(self, index: int, standing: Prediction | None = None) -> Episode:
        on_slice = SliceSegmenter(self, index)
        return Episode(
            self.slices.picture(index), self.question, self.policy, on_slice, self.limits.episode, standing
        )

    def _base(self, index: int) -> Prediction | None:
        """What the first click on a slice goes on from; None for an empty slice, which is looked at afresh."""
        if index in self._bases:
            return self._bases[index]
        standing = self.memory.standing(index)
        return standing if standing is not None and standing.mask.any() else None

    def _anchor(self, index: int, clicks: tuple[Click, ...]) -> Found:
        """Make a slice an anchor by these clicks, made one after the other as in an episode."""
        base = self._base(index)
        logits = None if base is None else base.logits
        for count in range(1, len(clicks)):
            logits = self.memory.predict(index, clicks[:count], logits).logits
        found = self.memory.anchor(index, clicks, logits)
        self._bases[index], self._clicks[index] = base, clicks
        return found

    def _within(self, index: int, mask: np.ndarray) -> np.ndarray:
        inside = self.slices.inside(index)
        return mask if inside is None else mask & inside

    def _done(
        self,
        kind: Kind,
        index: int,
        by: Literal["policy", "person"],
        words: str,
        steps: Sequence[Step] = (),
        clicks: tuple[Click, ...] = (),
        ways: tuple[Way, ...] = (),
        *,
        begun: float,
        on_action: OnAction | None,
    ) -> None:
        seconds = time.perf_counter() - begun
        action = VolumeAction(
            len(self._actions) + 1, kind, index, by, words, tuple(steps), clicks, ways, seconds
        )
        self._actions = (*self._actions, action)
        if on_action is not None:
            on_action(action)

    def _needs_policy(self) -> None:
        if self.policy is None:
            raise InputError("there is no policy to act", mend="Click yourself, or load a policy.")

    def _moment(self) -> _Moment:
        return _Moment(
            self._actions,
            self.memory.state(),
            dict(self._clicks),
            dict(self._bases),
            self.key,
            self.status,
            self.reason,
            self.answer,
        )

    def _put_back(self, moment: _Moment) -> None:
        self._actions, self.key = moment.actions, moment.key
        self.memory.restore(moment.spread)
        self._clicks, self._bases = dict(moment.clicks), dict(moment.bases)
        self.status, self.reason, self.answer = moment.status, moment.reason, moment.answer

    def _push(self, moment: _Moment) -> None:
        self._past = [*self._past, moment][-_MOST_UNDOS:]
        self._future.clear()


class SliceSegmenter:
    """The segmenter as an episode on one slice of a run sees it: features kept, other slices remembered."""

    def __init__(self, run: VolumeRun, index: int) -> None:
        self._run, self._index = run, index
        self.identity = run.segmenter.identity

    def embed(self, rgb: np.ndarray) -> Any:
        """Nothing to do: the slice's features are kept by the run."""
        return None

    def predict(
        self, embedding: Any, clicks: Sequence[Click], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        made = self._run.memory.predict(self._index, clicks, previous_logits)
        mask = self._run._within(self._index, made.mask)
        return Prediction(mask, made.logits, made.score, made.scores)


def _clicks_of(steps: Sequence[Step]) -> tuple[Click, ...]:
    return tuple(step.action for step in steps if isinstance(step.action, Click))


def _stop_if(cancelled: IsCancelled | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled()
