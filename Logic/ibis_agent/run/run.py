"""A run: the agent's actions and a person's, over one slice or many, and the way back.

    run = Run(stack, "Segment the liver", policy, segmenter)
    run.run()                                # or: run.step(), one action at a time
    run.click(57, Click(0.4, 0.6))           # the person corrects slice 57 …
    run.spread(57)                           # … and what depends on it
    run.undo()
    run.mask(57), run.volume_ml

    run = Run.on_picture(picture, "Segment the liver", policy, segmenter)
    run.run()
    run.replace(2, Click(0.3, 0.6))          # the second click was wrong: what followed it goes
    run.run()                                # let the policy go on from there
    run.mask()

Whatever fails or is stopped leaves what was there. One thread at a time: a run has no locks. Records are in
ibis_agent.record.
"""

from __future__ import annotations

import time

from ibis_agent.actions import Prompt, Terminate, format_reply
from ibis_agent.actions import Reply as ParsedReply
from ibis_agent.errors import InputError
from ibis_agent.policy.contract import Policy, Turn
from ibis_agent.run import agent, growth
from ibis_agent.run.action import RunAction, Stage, Watch
from ibis_agent.run.alone import Alone
from ibis_agent.run.episode import Halt, Status, Step, note_of_rejection
from ibis_agent.run.plan import before_growth, clicks_on, unfinished
from ibis_agent.run.settings import Settings
from ibis_agent.run.state import Place, RunState
from ibis_agent.run.work import key_episode
from ibis_agent.scan.picture import Picture
from ibis_agent.scan.slices import one_slice
from ibis_agent.segmenter.contract import Segmenter


class Run(RunState):
    """A run that goes on. What it is made of, and how it stands: RunState."""

    @classmethod
    def on_picture(
        cls,
        picture: Picture,
        question: str,
        policy: Policy | None,
        segmenter: Segmenter,
        settings: Settings | None = None,
    ) -> Run:
        """A run over one picture: a slice, or a photograph."""
        return cls(one_slice(picture), question, policy, segmenter, settings)

    def prepare(self) -> None:
        """Begin what the first click would have to wait for, while the policy reads the picture."""
        if isinstance(self.memory, Alone):
            self.memory.prepare()

    # The agent

    @property
    def stage(self) -> Stage:
        """What `step` would do now: "look" for the key slice, "work" on it, "grow", "review" a doubtful slice,
        "finish"; after the "end" nothing.
        """
        return agent.stage_of(self)

    def turn(self) -> Turn:
        """What the policy would be asked now on the key slice. Raises InputError where there is no policy."""
        return key_episode(self).turn()

    @property
    def note(self) -> str:
        """What the policy will be told at its next turn, after a rejection."""
        if self.rejected is None or not self.rejected.steps:
            return ""
        return note_of_rejection(self.policy, self.rejected.steps[-1], self.slices.frame)

    def run(self, watch: Watch | None = None) -> Status:
        """All of it, from where the run stands; a paused one is tried once more. Returns the status.

        Stopping raises Cancelled and keeps what is there.
        """
        while True:
            self.step(watch)
            if self.status != "ready":
                return self.status

    def step(self, watch: Watch | None = None) -> RunAction | None:
        """Do what comes next. A second look and what depends on it are two actions, done in one step.

        Returns the last action; None if none came of it: `status` is then "paused" (two unreadable replies) or
        "ended" (one repetition too many), and `reason` says why.

        Raises InputError where there is no policy or the run has ended, Cancelled, and what the models raise. A
        cancelled growth leaves an action with the slices that were done; all else is then as it was.
        """
        watch = watch or Watch()
        watch.check()
        with self.whole():
            if self.policy is not None:
                self.prepare()
            return agent.act(self, watch)

    def grow(self, watch: Watch | None = None) -> RunAction:
        """Follow the object from the key slice both ways until it ends."""
        if self.key is None:
            raise InputError(
                "there is no slice to propagate from", remedy="Work on the key slice first, or click."
            )
        with self.whole():
            return growth.grow(self, self.key, False, watch or Watch())

    def add(self, click: Prompt, watch: Watch | None = None) -> RunAction:
        """A click of the person on the key slice, in whatever status; the run is ready afterwards."""
        if self.key is None:
            raise InputError("there is no key slice yet", remedy="Give the slice number with the click.")
        return self.click(self.key, click, None, watch)

    def click(
        self, index: int, click: Prompt, replace: int | None = None, watch: Watch | None = None
    ) -> RunAction:
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
        with self.whole():
            found = self.anchor(index, clicks)
            standing = self.memory.standing(index)
        logits, spent = None if standing is None else standing.logits, time.perf_counter() - begun
        seconds = {"policy": 0.0, "segmenter": spent, "total": spent}
        number = len(self.steps) + 1 if self.alone else len(clicks)
        mask = self.within(index, found.mask)
        step = Step(number, click, "person", mask, logits, found.score, seconds=seconds)
        words = "clicked" if replace is None else f"click {replace} moved"
        return self.done("click", index, "person", words, begun, watch, steps=(step,), clicks=clicks)

    def replace(self, number: int, click: Prompt, watch: Watch | None = None) -> RunAction:
        """Put a click of the person in the place of action `number`, and drop all later actions."""
        if number < 1:
            raise InputError("steps are numbered from 1", value=number)
        index = self.actions[self.check_keep(number) - 1].index
        here, past, future = self.place(), list(self._trail.past), list(self._trail.future)
        try:
            self.go_to(self.actions[: number - 1])
            action = self.click(index, click, None, watch)
        except BaseException:
            self.stand(here)
            self._trail.past, self._trail.future = past, future
            raise
        self._trail.past = past  # one change, not two
        self._trail.leave(here)
        return action

    def spread(self, index: int, watch: Watch | None = None) -> RunAction:
        """Redo what depends on an anchor: its neighbours, until they come out as they were or another anchor."""
        if not clicks_on(self.actions, index):
            raise InputError(
                "the slice has no click to propagate from", value=index, remedy="Click there first."
            )
        # What a growth from here that was stopped has yet to do is done with it.
        settle = not unfinished(self.actions).get(index)
        with self.whole():
            return growth.grow(self, index, settle, watch or Watch(), what="propagated again")

    def finish(self, answer: str = "", watch: Watch | None = None) -> RunAction:
        """Append the person's own end: the mask is accepted. Raises InputError for tags in the answer."""
        format_reply(ParsedReply("", Terminate(answer)))  # it may stand in the policy's conversation later
        begun, index, words = time.perf_counter(), self.slices.first, "The person accepted the mask."
        if not self.alone:
            index = self.actions[-1].index if self.actions else index
            return self.done("end", index, "person", words, begun, watch)
        last = self.steps[-1] if self.steps else None
        logits, score = (last.logits, last.score) if last is not None else (None, None)
        mask = last.mask if last is not None else self.mask()
        end = Step(len(self.steps) + 1, Terminate(answer), "person", mask, logits, score)
        return self.done("done", index, "person", words, begun, watch, steps=(end,))

    def reject(self) -> None:
        """Take the policy's last word back, with what grew from it, and tell it so at its next turn there.

        On a slice alone also the person's own last step, of which nobody is told.
        """
        kept = before_growth(self.actions)
        grown = len(kept) < len(self.actions)
        said = kept and kept[-1].by == "policy" and kept[-1].steps and (not grown or kept[-1].look)
        if self.alone and not kept:
            raise InputError("there is no step to reject")
        if not self.alone and not said:
            remedy = "Go back instead."
            raise InputError("the last action was not made by the policy", remedy=remedy)
        self._leave_for(Place(kept[:-1], kept[-1] if said else None))

    def back(self, keep: int) -> None:
        """Keep the first `keep` actions. Can be undone. Raises InputError where there are fewer."""
        self._leave_for(Place(self.actions[: self.check_keep(keep)]))

    def take_up(self, status: Status, reason: str) -> None:
        """Stand still as a record says: paused, or ended where no action says so."""
        if status != "ready" and status != self.status:
            self._halt = Halt(status, reason)

    @property
    def can_undo(self) -> bool:
        return bool(self._trail.past)

    @property
    def can_redo(self) -> bool:
        return bool(self._trail.future)

    def undo(self) -> None:
        """Take the last change back: on a slice alone any, in a volume one of masks, or the last way back.

        Raises InputError where there is none.
        """
        self._trail.undo(self.place(), self.stand)

    def redo(self) -> None:
        """Do again what `undo` took back. Raises InputError where there is nothing."""
        self._trail.redo(self.place(), self.stand)

    def _leave_for(self, place: Place) -> None:
        here = self.place()
        self.stand(place)
        self._trail.leave(here)
