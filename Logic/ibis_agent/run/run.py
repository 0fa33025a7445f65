"""A run: the actions of the agent and of a person on one slice or many, with undo.

    run = Run(stack, "Segment the liver", policy, segmenter)
    run.run()                                # or: run.step(), one action at a time
    run.click(57, Click(0.4, 0.6))           # the person corrects slice 57 …
    run.spread(57)                           # … and its neighbours
    run.undo()
    run.mask(57), run.volume_ml

    run = Run.on_picture(picture, "Segment the liver", policy, segmenter)
    run.run()
    run.replace(2, Click(0.3, 0.6))          # replace the second click; later steps are dropped
    run.run()                                # the policy continues from there
    run.mask()

An action that fails or is stopped leaves the run unchanged. Not thread-safe. Records are in ibis_agent.record.
"""

from __future__ import annotations

import time

from ibis_agent.actions import Prompt, Terminate, format_reply
from ibis_agent.actions import Reply as ParsedReply
from ibis_agent.errors import InputError
from ibis_agent.policy.contract import Policy, Turn
from ibis_agent.run import agent, growth
from ibis_agent.run.action import RunAction, Stage, Watch
from ibis_agent.run.episode import Halt, Status, Step, note_of_rejection
from ibis_agent.run.plan import before_growth, clicks_on, unfinished
from ibis_agent.run.settings import Settings
from ibis_agent.run.single_slice import SingleSlice
from ibis_agent.run.slice_episode import key_episode
from ibis_agent.run.state import Place, RunState
from ibis_agent.scan.picture import Picture
from ibis_agent.scan.slices import one_slice
from ibis_agent.segmenter.contract import Segmenter


class Run(RunState):
    """A run and what can be done with it. Its state is in RunState."""

    @classmethod
    def on_picture(
        cls,
        picture: Picture,
        question: str,
        policy: Policy | None,
        segmenter: Segmenter,
        settings: Settings | None = None,
    ) -> Run:
        """A run on one picture: a slice, or a photograph."""
        return cls(one_slice(picture), question, policy, segmenter, settings)

    def prepare(self) -> None:
        """Start embedding a single slice in the background, while the policy reads the picture."""
        if isinstance(self.memory, SingleSlice):
            self.memory.prepare()

    # The agent

    @property
    def stage(self) -> Stage:
        """What `step` would do now: "look" for the key slice, "work" on it, "grow" (propagate), "review" a doubtful
        slice, "finish", or nothing after the "end".
        """
        return agent.stage_of(self)

    def turn(self) -> Turn:
        """What the policy would be asked now on the key slice. Raises InputError without a policy."""
        return key_episode(self).turn()

    @property
    def note(self) -> str:
        """The note to the policy for its next turn after a rejection; otherwise empty."""
        if self.rejected is None or not self.rejected.steps:
            return ""
        return note_of_rejection(self.policy, self.rejected.steps[-1], self.slices.frame)

    def run(self, watch: Watch | None = None) -> Status:
        """Step until the run is paused or ended; a paused run is tried again. Returns the status.

        Raises as `step`. A stopped run keeps its actions.
        """
        while True:
            self.step(watch)
            if self.status != "ready":
                return self.status

    def step(self, watch: Watch | None = None) -> RunAction | None:
        """Perform the next action. A second look and the propagation of its correction are two actions in one step.

        Returns the last action, or None if there was none: `status` is then "paused" (two unreadable replies) or
        "ended" (too many repetitions), and `reason` says why.

        Raises InputError without a policy or after the end, Cancelled, and what the models raise; the run then stays
        unchanged, except that a cancelled propagation is recorded with the slices it has done.
        """
        watch = watch or Watch()
        watch.check()
        with self.whole():
            if self.policy is not None:
                self.prepare()
            return agent.act(self, watch)

    def grow(self, watch: Watch | None = None) -> RunAction:
        """Propagate from the key slice in both directions. Raises InputError without a key slice."""
        if self.key is None:
            raise InputError(
                "there is no slice to propagate from", remedy="Work on the key slice first, or click."
            )
        with self.whole():
            return growth.grow(self, self.key, False, watch or Watch())

    def add(self, click: Prompt, watch: Watch | None = None) -> RunAction:
        """A person's prompt on the key slice, in any status. Raises InputError without a key slice."""
        if self.key is None:
            raise InputError("there is no key slice yet", remedy="Give the slice number with the click.")
        return self.click(self.key, click, None, watch)

    def click(
        self, index: int, click: Prompt, replace: int | None = None, watch: Watch | None = None
    ) -> RunAction:
        """A person's prompt on any slice. It corrects this slice; `spread` corrects the neighbours.

        replace: the number, from 1, of the slice's prompt to replace; later ones are dropped.
        Raises InputError for a slice outside the range, or a prompt that does not exist.
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
        """Replace action `number`, from 1, by a person's prompt; later actions are dropped. Raises InputError."""
        if number < 1:
            raise InputError("steps are numbered from 1", value=number)
        index = self.actions[self.check_keep(number) - 1].index
        here, past, future = self.place(), list(self._history.past), list(self._history.future)
        try:
            self.go_to(self.actions[: number - 1])
            action = self.click(index, click, None, watch)
        except BaseException:
            self.stand(here)
            self._history.past, self._history.future = past, future
            raise
        self._history.past = past  # one change, not two
        self._history.leave(here)
        return action

    def spread(self, index: int, watch: Watch | None = None) -> RunAction:
        """Propagate a corrected slice again, until the masks no longer change or another anchor is reached.

        Raises InputError for a slice without a prompt, and Cancelled.
        """
        if not clicks_on(self.actions, index):
            raise InputError(
                "the slice has no click to propagate from", value=index, remedy="Click there first."
            )
        # A stopped propagation from here is completed at the same time.
        settle = not unfinished(self.actions).get(index)
        with self.whole():
            return growth.grow(self, index, settle, watch or Watch(), what="propagated again")

    def finish(self, answer: str = "", watch: Watch | None = None) -> RunAction:
        """The person accepts the mask and ends the run. Raises InputError for tags in the answer."""
        format_reply(ParsedReply("", Terminate(answer)))  # the policy may see it later in its conversation
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
        """Take back the policy's last action and its propagation. The policy is told at its next turn there.

        On a single slice it also takes back a person's last step, without a note. Raises InputError if there is
        nothing to reject.
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
        """Keep only the first `keep` actions. Can be undone. Raises InputError if there are fewer."""
        self._leave_for(Place(self.actions[: self.check_keep(keep)]))

    def take_up(self, status: Status, reason: str) -> None:
        """Restore a recorded status, "paused" or "ended", that does not follow from the actions."""
        if status != "ready" and status != self.status:
            self._halt = Halt(status, reason)

    @property
    def can_undo(self) -> bool:
        return bool(self._history.past)

    @property
    def can_redo(self) -> bool:
        return bool(self._history.future)

    def undo(self) -> None:
        """Undo the last change: on a single slice any action; in a volume a change of masks, or a `back`.

        Raises InputError if there is none.
        """
        self._history.undo(self.place(), self.stand)

    def redo(self) -> None:
        """Redo what `undo` took back. Raises InputError if there is nothing."""
        self._history.redo(self.place(), self.stand)

    def _leave_for(self, place: Place) -> None:
        here = self.place()
        self.stand(place)
        self._history.leave(here)
