"""The decision process over one picture: question, steps, and the way back.

An Episode is a list of steps, each one action of the policy or of the person and the mask that it left. Every
change makes a new state out of the old one and puts it in place at its very end, so that whatever fails on
the way (a cancelled reply, a broken model) leaves the episode as it was. A step keeps what the next one
needs; going back is therefore exact. Nothing is computed twice, nothing is written: records are in
trajectory.

One thread at a time: an episode has no locks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ibis_agent.actions import Action, Click, Terminate, format_click, format_reply, parse_reply
from ibis_agent.actions import Reply as ParsedReply
from ibis_agent.errors import Cancelled, InputError, ReplyError
from ibis_agent.policy.contract import IsCancelled, OnText, Policy, Turn
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.prompts import check_question, rejection_note, retry_note
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.contract import PictureSegmenter, Prediction
from ibis_agent.segmenter.framed import framed

Status = Literal["ready", "paused", "ended"]
Author = Literal["policy", "person"]


@dataclass(frozen=True)
class Limits:
    """Where a policy left alone is stopped; the defaults are the published ones.

    Attributes:
        max_turns: steps of the policy since the last one of the person.
        max_repeats: the same action so many times in a row ends the episode; the last of them is not done.
    """

    max_turns: int = 20
    max_repeats: int = 3

    def __post_init__(self) -> None:
        for name, least in (("max_turns", 1), ("max_repeats", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number from {least}", value=value)


@dataclass(frozen=True, eq=False)
class Step:
    """One action and what came of it.

    Attributes:
        number: from 1.
        action: a Click, or Terminate.
        by: who acted.
        mask: (H, W) bool after the action; read-only.
        logits: (S/4, S/4) float32 for the segmenter's next turn; None before the first click.
        score: the segmenter's own estimate of the mask; None before the first click.
        thinking: of the policy; empty for the person.
        reply: the policy's text as it came; empty for the person.
        unreadable: the reply before it that could not be read, if the policy was asked again.
        seconds: "policy", "segmenter", "total".
    """

    number: int
    action: Action
    by: Author
    mask: np.ndarray
    logits: np.ndarray | None
    score: float | None
    thinking: str = ""
    reply: str = ""
    unreadable: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _State:
    steps: tuple[Step, ...] = ()
    status: Status = "ready"
    reason: str = ""
    unused: str = ""  # the last reply, where no step came of it
    note: str = ""  # what the policy is told at its next turn


class Episode:
    """A run over one picture.

        episode = Episode(picture, "Segment the liver", policy, segmenter)
        while episode.status == "ready":
            episode.step()
        episode.replace(2, Click(0.3, 0.6))   # the second click was wrong
        episode.run()                          # let the policy go on from there
        episode.mask

    `step` and `add` append, `back`, `replace` and `reject` go back, `undo` and `redo` go through all of
    these.
    """

    def __init__(
        self,
        picture: Picture,
        question: str,
        policy: Policy | None,
        segmenter: PictureSegmenter,
        limits: Limits | None = None,
        start: Prediction | None = None,
    ) -> None:
        """policy None: the person clicks alone. start: a mask that is there before the first step.

        Raises InputError for a question that is empty, too long or not text.
        """
        asked = (policy.card.max_question, policy.card.script) if policy is not None else ()
        self.question = check_question(question, *asked)
        self.picture, self.policy, self.segmenter = picture, policy, framed(segmenter, picture.frame)
        self.limits = limits or Limits()
        self._start = start
        self._state = _State()
        self._past: list[_State] = []
        self._future: list[_State] = []
        self._embedding: Any = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps so far."""
        return self._state.steps

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, read-only: after the last step."""
        return self._mask_of(self.steps)

    @property
    def status(self) -> Status:
        """ "ready": `step` will do. "paused": the policy was not understood. "ended". `reason` says why."""
        return self._state.status

    @property
    def reason(self) -> str:
        """Why the episode is paused or ended, for people; empty while it is ready."""
        return self._state.reason

    @property
    def answer(self) -> str | None:
        """What was answered at the end; None while the last step is no Terminate."""
        last = self.steps[-1].action if self.steps else None
        return last.answer if isinstance(last, Terminate) else None

    @property
    def unused_reply(self) -> str:
        """The policy's last reply where no step came of it (unreadable, or one repetition too many)."""
        return self._state.unused

    @property
    def note(self) -> str:
        """What the policy will be told at its next turn, after a rejection."""
        return self._state.note

    @property
    def can_undo(self) -> bool:
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        return bool(self._future)

    def prepare(self) -> None:
        """Embed the picture now rather than at the first click."""
        if self._embedding is None:
            self._embedding = self.segmenter.embed(self.picture.rgb)

    def step(
        self,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
        on_retry: Callable[[str], object] | None = None,
    ) -> Step | None:
        """Let the policy act once.

        Args:
            on_text: gets the reply in pieces as it comes.
            cancelled: asked often; once it says True the step ends in Cancelled.
            on_retry: gets the reason when a reply could not be read and the policy is asked again.

        Returns the new step; None if none came of it: then `status` is "paused" (two unreadable replies) or
        "ended" (one repetition too many) and `reason` says why.

        Raises InputError where there is no policy or the episode has ended, Cancelled, and what the models
        raise; the episode is then as it was.
        """
        if self.policy is None:
            raise InputError("there is no policy to act", remedy="Add a click, or load a policy.")
        if self.status == "ended":
            raise InputError(f"the episode has ended: {self.reason}", remedy="Add a click, or go back.")
        begun = time.perf_counter()
        text, parsed, unreadable, problem = self._ask(on_text, cancelled, on_retry)
        asked = time.perf_counter() - begun
        if parsed is not None:
            parsed = replace(parsed, action=self._outward(parsed.action))
        if parsed is None:
            reason = f"The policy's reply could not be read, twice: {problem}"
            self._commit(replace(self._state, status="paused", reason=reason, unused=text))
            return None
        if self._repeats(parsed.action):
            reason = f"The policy asked for the same {self.limits.max_repeats} times in a row"
            reason = f"{reason}: {_in_words(parsed.action)}."
            self._commit(replace(self._state, status="ended", reason=reason, unused=text))
            return None
        _stop_if(cancelled)
        step = self._act(
            parsed.action, self.steps, "policy", asked, text, thinking=parsed.thinking, unreadable=unreadable
        )
        _stop_if(cancelled)
        self._commit(self._after((*self.steps, step)))
        return step

    def run(
        self,
        on_step: Callable[[Step], object] | None = None,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
        on_retry: Callable[[str], object] | None = None,
    ) -> Status:
        """Step until the episode ends or pauses; a paused one is tried once more. Returns the status.

        Steps that are done stay when a later one is cancelled or fails.
        """
        while True:
            step = self.step(on_text, cancelled, on_retry)
            if step is not None and on_step is not None:
                on_step(step)
            if self.status != "ready":
                return self.status

    def add(self, click: Click) -> Step:
        """Append a click of the person, in whatever status; the episode is ready afterwards."""
        step = self._act(click, self.steps, "person")
        self._commit(self._after((*self.steps, step)))
        return step

    def finish(self, answer: str = "") -> Step:
        """Append the person's own end: the mask is accepted. Raises InputError for tags in the answer."""
        format_reply(ParsedReply("", Terminate(answer)))  # it may stand in the policy's conversation later
        step = self._act(Terminate(answer), self.steps, "person")
        self._commit(self._after((*self.steps, step)))
        return step

    def back(self, keep: int) -> None:
        """Keep the first `keep` steps. Raises InputError where there are fewer."""
        self._commit(self._after(self._first(keep)))

    def replace(self, number: int, click: Click) -> Step:
        """Put a click of the person in the place of step `number` and drop all later steps."""
        if number < 1:
            raise InputError("steps are numbered from 1", value=number)
        kept = self._first(number)[:-1]
        step = self._act(click, kept, "person")
        self._commit(self._after((*kept, step)))
        return step

    def reject(self) -> None:
        """Take the last step back and tell the policy so at its next turn."""
        if not self.steps:
            raise InputError("there is no step to take back")
        last = self.steps[-1]
        note = ""
        if self.policy is not None and last.by == "policy":
            note = rejection_note(self.policy.card.prompts, _in_words(self._inward(last.action)))
        self._commit(replace(self._after(self.steps[:-1]), note=note))

    def undo(self) -> None:
        """Take the last change back, whatever it was. Raises InputError where there is none."""
        if not self._past:
            raise InputError("there is nothing to undo")
        self._future.append(self._state)
        self._state = self._past.pop()

    def redo(self) -> None:
        """Do again what `undo` took back. Raises InputError where there is nothing."""
        if not self._future:
            raise InputError("there is nothing to redo")
        self._past.append(self._state)
        self._state = self._future.pop()

    def restore(self, steps: Sequence[Step], status: Status | None = None, reason: str = "") -> None:
        """Stand after `steps`, which a record or another process brought; undo and redo start anew.

        status None: what follows from the last step. Raises InputError for steps that do not fit the picture
        or lack the logits that the next one needs (see `relive`).
        """
        for number, step in enumerate(steps, 1):
            if step.number != number or step.mask.shape != self.picture.rgb.shape[:2]:
                raise InputError("the steps do not belong to this picture", value=f"step {step.number}")
            if step.logits is None and _has_click(steps[:number]):
                raise InputError("a step lacks the logits that the next one needs", value=f"step {number}")
        state = self._after(tuple(steps))
        self._state = state if status is None else replace(state, status=status, reason=reason)
        self._past.clear()
        self._future.clear()

    def relive(self, before: Sequence[Step], step: Step) -> Step:
        """A recorded step after the steps `before`, with the logits that a record lacks computed again.

        Its mask and score stay the recorded ones, even where this machine would round them differently.
        """
        return replace(step, logits=self._act(step.action, tuple(before), step.by).logits)

    def turn(self) -> Turn:
        """What the policy would be asked now. Raises InputError where there is no policy."""
        if self.policy is None:
            raise InputError("there is no policy to ask", remedy="Load a policy.")
        steps = self.steps

        def mask_after(done: int) -> np.ndarray | None:
            prompted = self._start is not None or _has_click(steps[:done])
            return self._mask_of(steps[:done]) if prompted else None

        said = [self._reply_of(step) for step in steps]
        started, note = self._start is not None, self._state.note
        situation = Situation(
            self.picture.rgb, self.question, said, mask_after, started, note, self.picture.frame
        )
        return observe(self.policy.card, situation)

    def _outward(self, action: Action) -> Action:
        """What the policy said about what it sees, about the whole picture."""
        frame = self.picture.frame
        return action if frame is None or not isinstance(action, Click) else frame.click_outward(action)

    def _inward(self, action: Action) -> Action:
        """An action as the policy would put it."""
        frame = self.picture.frame
        return action if frame is None or not isinstance(action, Click) else frame.click_inward(action)

    def _reply_of(self, step: Step) -> str:
        """What stands in the conversation for a step: the policy's text, or the person's action put so."""
        return step.reply or format_reply(ParsedReply(step.thinking, self._inward(step.action)))

    def _ask(
        self, on_text: OnText | None, cancelled: IsCancelled | None, on_retry: Callable[[str], object] | None
    ) -> tuple[str, ParsedReply | None, str, str]:
        """Ask once, and once more if need be → (text, parsed or None, the reply before, problem)."""
        assert self.policy is not None
        turn = self.turn()
        text = self.policy.reply(turn, on_text, cancelled)
        try:
            return text, parse_reply(text), "", ""
        except ReplyError as error:
            unreadable, problem = text, error.problem
        _stop_if(cancelled)
        if on_retry is not None:
            on_retry(problem)
        note = "\n".join(filter(None, (turn.note, retry_note(self.policy.card.prompts, f"{problem}."))))
        text = self.policy.reply(replace(turn, note=note), on_text, cancelled)
        try:
            return text, parse_reply(text), unreadable, ""
        except ReplyError as error:
            return text, None, unreadable, str(error)

    def _act(
        self,
        action: Action,
        before: tuple[Step, ...],
        by: Author,
        asked: float = 0.0,
        reply: str = "",
        *,
        thinking: str = "",
        unreadable: str = "",
    ) -> Step:
        """The step that `action` makes after the steps `before`; changes nothing."""
        begun = time.perf_counter()
        last = before[-1] if before else None
        mask = self._mask_of(before)
        known = last or self._start
        logits, score = (known.logits, known.score) if known else (None, None)
        if isinstance(action, Click):
            self.prepare()
            clicks = [step.action for step in before if isinstance(step.action, Click)]
            found = self.segmenter.predict(self._embedding, [*clicks, action], logits)
            mask, logits, score = _frozen(found.mask), _frozen(found.logits), found.score
        spent = time.perf_counter() - begun
        seconds = {"policy": asked, "segmenter": spent, "total": asked + spent}
        return Step(len(before) + 1, action, by, mask, logits, score, thinking, reply, unreadable, seconds)

    def _after(self, steps: tuple[Step, ...]) -> _State:
        """The state in which the last of `steps` leaves the episode."""
        last = steps[-1].action if steps else None
        if isinstance(last, Terminate):
            who = "The person accepted the mask" if steps[-1].by == "person" else "The policy ended"
            return _State(steps, "ended", who + ".")
        turns = 0
        for step in reversed(steps):
            if step.by == "person":
                break
            turns += 1
        if turns >= self.limits.max_turns:
            return _State(steps, "ended", f"The limit of {self.limits.max_turns} turns is reached.")
        return _State(steps)

    def _repeats(self, action: Action) -> bool:
        """Whether the policy asks for the same click as in its steps just before, once too often."""
        tail = self.steps[-(self.limits.max_repeats - 1) :]
        return (
            isinstance(action, Click)
            and len(tail) == self.limits.max_repeats - 1
            and all(step.by == "policy" and step.action == action for step in tail)
        )

    def _commit(self, state: _State) -> None:
        self._past.append(self._state)
        self._future.clear()
        self._state = state

    def _first(self, keep: int) -> tuple[Step, ...]:
        if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= len(self.steps):
            raise InputError(
                "there is no such step", value=keep, remedy=f"There are {len(self.steps)} steps."
            )
        return self.steps[:keep]

    def _mask_of(self, steps: Sequence[Step]) -> np.ndarray:
        if steps:
            return steps[-1].mask
        shape = self.picture.rgb.shape[:2]
        return _frozen(np.zeros(shape, dtype=bool) if self._start is None else self._start.mask)


def _has_click(steps: Sequence[Step]) -> bool:
    return any(isinstance(step.action, Click) for step in steps)


def _in_words(action: Action) -> str:
    return format_click(action) if isinstance(action, Click) else "Terminate"


def _stop_if(cancelled: IsCancelled | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled()


def _frozen(values: np.ndarray) -> np.ndarray:
    """A read-only copy: steps share their arrays, nobody may paint into them."""
    values = np.array(values)
    values.setflags(write=False)
    return values
