"""The policy on one slice: the turn it is asked, the step its reply becomes, and the limits.

An episode only goes forward. Undo, going back and a person's clicks belong to the run, which opens a new episode
with the steps that are kept. Not thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ibis_agent.actions import Action, Prompt, Terminate, format_prompt
from ibis_agent.actions import Reply as ParsedReply
from ibis_agent.errors import Cancelled, InputError, ReplyError
from ibis_agent.policy.contract import IsCancelled, OnText, Policy, Turn
from ibis_agent.policy.language import Language
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.prompts import rejection_note, retry_note
from ibis_agent.scan.frame import Frame
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.contract import Prediction

Status = Literal["ready", "paused", "ended"]
Author = Literal["policy", "person"]


@dataclass(frozen=True)
class Limits:
    """When the policy is stopped; the defaults are the published ones.

    Attributes:
        max_turns: steps of the policy since the person's last one.
        max_repeats: the same action this many times in a row ends the episode; the last one is not performed.
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
    """One action and its result.

    Attributes:
        number: from 1.
        action: a Click, a Box, or Terminate.
        by: who acted.
        mask: (H, W) bool after the action; read-only.
        logits: (S/4, S/4) float32, input of the segmenter's next prediction (S: its picture size); None before the
            first prompt, and in records.
        score: the segmenter's estimate of the mask's quality, 0 to 1; None before the first prompt.
        thinking: the policy's thinking; empty for the person.
        reply: the policy's unchanged text; empty for the person.
        unreadable: the previous reply if it could not be parsed and the policy was asked again.
        seconds: durations, by "policy", "segmenter" and "total".
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


@dataclass(frozen=True)
class Halt:
    """Why the policy stopped without a step: "paused" after two unreadable replies, or "ended".

    Attributes:
        reason: for people.
        reply: the policy's last reply, which led to no step.
    """

    status: Status
    reason: str
    reply: str = ""


class Episode:
    """The steps on one picture, and the policy's next ones."""

    def __init__(
        self,
        picture: Picture,
        question: str,
        policy: Policy | None,
        predict: Callable[[Sequence[Prompt], np.ndarray | None], Prediction],
        limits: Limits,
        start: Prediction | None = None,
        steps: Sequence[Step] = (),
        note: str = "",
    ) -> None:
        """
        predict: (all prompts so far, the logits before the last of them) → Prediction.
        start: the mask before the first step. steps: earlier steps; missing logits are predicted again, masks and
        scores stay. note: added to the policy's next turn.
        """
        self.picture, self.question, self.policy, self.limits = picture, question, policy, limits
        self._predict, self._start, self.note = predict, start, note
        self._halt: Halt | None = None
        self.steps: tuple[Step, ...] = ()
        for number, step in enumerate(steps, 1):
            if step.number != number:
                step = replace(step, number=number)
            if step.logits is None and _has_click((*self.steps, step)):
                step = replace(step, logits=self._act(step.action, step.by).logits)
            self.steps = (*self.steps, step)

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, read-only: the mask after the last step."""
        return self._mask_after(len(self.steps))

    @property
    def halt(self) -> Halt | None:
        """Why the policy stopped; None while it goes on."""
        return self._halt or halt_after(self.steps, self.limits)

    def step(
        self,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
        on_retry: Callable[[str], object] | None = None,
    ) -> Step | None:
        """Let the policy act once.

        Args:
            on_text: called with the reply in pieces.
            cancelled: polled often; once it returns True, the step ends with Cancelled.
            on_retry: called with the reason when a reply could not be parsed and the policy is asked again.

        Returns the new step, or None if there was none; `halt` then says why.

        Raises InputError without a policy, Cancelled, and what the models raise; the episode then stays unchanged.
        """
        begun = time.perf_counter()
        text, parsed, unreadable, problem = self._ask(on_text, cancelled, on_retry)
        asked = time.perf_counter() - begun
        if parsed is None:
            self._halt = Halt("paused", f"The policy's reply could not be read, twice: {problem}", text)
            return None
        parsed = replace(parsed, action=self._outward(parsed.action))
        if self._repeats(parsed.action):
            reason = f"The policy repeated the same action {self.limits.max_repeats} times in a row"
            self._halt = Halt("ended", f"{reason}: {_in_words(parsed.action)}.", text)
            return None
        _stop_if(cancelled)
        made = self._act(parsed.action, "policy", asked)
        step = replace(made, thinking=parsed.thinking, reply=text, unreadable=unreadable)
        _stop_if(cancelled)
        self.steps, self.note, self._halt = (*self.steps, step), "", None
        return step

    def turn(self) -> Turn:
        """What the policy would be asked now. Raises InputError without a policy."""
        if self.policy is None:
            raise InputError("there is no policy to act", remedy="Add a click, or load a policy.")

        def mask_after(done: int) -> np.ndarray | None:
            prompted = self._start is not None or _has_click(self.steps[:done])
            return self._mask_after(done) if prompted else None

        speech = self.policy.card.speech
        said = [_reply_of(step, self.picture.frame, speech) for step in self.steps]
        started = self._start is not None
        seen, frame = self.picture.rgb, self.picture.frame
        situation = Situation(seen, self.question, said, mask_after, started, self.note, frame)
        return observe(self.policy.card, situation)

    def _ask(
        self, on_text: OnText | None, cancelled: IsCancelled | None, on_retry: Callable[[str], object] | None
    ) -> tuple[str, ParsedReply | None, str, str]:
        """Ask, and once more if need be → (text, parsed reply or None, unreadable first reply, problem)."""
        turn = self.turn()
        assert self.policy is not None
        speech = self.policy.card.speech
        text = self.policy.reply(turn, on_text, cancelled)
        try:
            return text, speech.parse(text), "", ""
        except ReplyError as error:
            unreadable, problem = text, error.problem
        _stop_if(cancelled)
        if on_retry is not None:
            on_retry(problem)
        note = "\n".join(filter(None, (turn.note, retry_note(self.policy.card.prompts, f"{problem}."))))
        text = self.policy.reply(replace(turn, note=note), on_text, cancelled)
        try:
            return text, speech.parse(text), unreadable, ""
        except ReplyError as error:
            return text, None, unreadable, str(error)

    def _act(self, action: Action, by: Author, asked: float = 0.0) -> Step:
        """The step that `action` would make now."""
        begun = time.perf_counter()
        mask, known = self.mask, self.steps[-1] if self.steps else self._start
        logits, score = (known.logits, known.score) if known else (None, None)
        if isinstance(action, Prompt):
            clicks = [step.action for step in self.steps if isinstance(step.action, Prompt)]
            found = self._predict([*clicks, action], logits)
            mask, logits, score = frozen(found.mask), frozen(found.logits), found.score
        spent = time.perf_counter() - begun
        seconds = {"policy": asked, "segmenter": spent, "total": asked + spent}
        return Step(len(self.steps) + 1, action, by, mask, logits, score, seconds=seconds)

    def _outward(self, action: Action) -> Action:
        """An action in the coordinates of the frame → of the whole picture."""
        frame = self.picture.frame
        return action if frame is None or not isinstance(action, Prompt) else frame.prompt_outward(action)

    def _repeats(self, action: Action) -> bool:
        """Whether this prompt would be the same one max_repeats times in a row."""
        tail = self.steps[-(self.limits.max_repeats - 1) :]
        return (
            isinstance(action, Prompt)
            and len(tail) == self.limits.max_repeats - 1
            and all(step.by == "policy" and step.action == action for step in tail)
        )

    def _mask_after(self, count: int) -> np.ndarray:
        if count:
            return self.steps[count - 1].mask
        shape = self.picture.rgb.shape[:2]
        return frozen(np.zeros(shape, dtype=bool) if self._start is None else self._start.mask)


def halt_after(steps: Sequence[Step], limits: Limits) -> Halt | None:
    """Why the policy stops after these steps: it or the person terminated, or the turn limit was reached."""
    if steps and isinstance(steps[-1].action, Terminate):
        who = "The person accepted the mask" if steps[-1].by == "person" else "The policy ended"
        return Halt("ended", f"{who}.")
    turns = next((n for n, step in enumerate(reversed(steps)) if step.by == "person"), len(steps))
    if turns >= limits.max_turns:
        return Halt("ended", f"The limit of {limits.max_turns} turns has been reached.")
    return None


def note_of_rejection(policy: Policy | None, step: Step, frame: Frame | None) -> str:
    """The note to the policy about its step that the person took back; empty for a person's step."""
    if policy is None or step.by != "policy":
        return ""
    return rejection_note(policy.card.prompts, _in_words(_inward(step.action, frame)))


def frozen(values: Any) -> np.ndarray:
    """A read-only copy: steps share their arrays."""
    values = np.array(values)
    values.setflags(write=False)
    return values


def _has_click(steps: Sequence[Step]) -> bool:
    return any(isinstance(step.action, Prompt) for step in steps)


def _inward(action: Action, frame: Frame | None) -> Action:
    """An action in the coordinates of the whole picture → of the frame."""
    return action if frame is None or not isinstance(action, Prompt) else frame.prompt_inward(action)


def _reply_of(step: Step, frame: Frame | None, speech: Language) -> str:
    """A step as a reply in the conversation: the policy's own text, or the person's action in that format."""
    return step.reply or speech.format(ParsedReply(step.thinking, _inward(step.action, frame)))


def _in_words(action: Action) -> str:
    return format_prompt(action) if isinstance(action, Prompt) else "Terminate"


def _stop_if(cancelled: IsCancelled | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled()
