"""Rollouts: the policy's own episodes with the segmenter in the loop, many at a time.

    roller = Roller(policy, segmenter, Limits(max_turns=5))
    groups = roller.run(questions, group=8, temperature=1.0, generator=generator)   # 8 rollouts per question

All rollouts advance together: one batch through the policy, one through the segmenter, until the last has ended.
They match inference (same requests, prompts, masks and ends) with one difference: an unreadable reply ends a rollout,
because a second chance would hide the fault from the reward. Questions come from training.grpo.tasks, rewards from
training.grpo.rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ibis_agent.actions import Action, Prompt, Terminate
from ibis_agent.errors import InputError, ReplyError
from ibis_agent.mask.masks import dice, iou
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.language import IBIS, Language
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.run.episode import Limits
from ibis_agent.segmenter.contract import Prediction, Segmenter

from training.common.placing import points_at
from training.rollouts.sampling import BatchPolicy, Request, Sample
from training.rollouts.state import State

ENDED, LIMIT, REPEATED, UNREADABLE = "ended", "limit", "repeated", "unreadable"
Prompted = tuple[str, tuple[Prompt, ...]]
"""A picture's name and the prompts on it so far, in order."""
Predictions = dict[Prompted, Prediction]


@dataclass(frozen=True, eq=False)
class Question:
    """A question about a picture, and the ground truth.

    Attributes:
        picture: a unique name.
        rgb: (H, W, 3) uint8.
        structure: the structure asked for.
        text: the wording of the question.
        truth: (H, W) bool; all False if the structure is absent.

    Raises InputError if truth and picture differ in size.
    """

    picture: str
    rgb: np.ndarray
    structure: str
    text: str
    truth: np.ndarray

    def __post_init__(self) -> None:
        if self.truth.shape != self.rgb.shape[:2]:
            raise InputError(
                "the true mask and the picture have different sizes",
                file=self.picture,
                value=f"{self.truth.shape} and {self.rgb.shape[:2]}",
            )

    @property
    def present(self) -> bool:
        return bool(self.truth.any())


@dataclass(frozen=True, eq=False)
class RolloutTurn:
    """One turn: the request (None if it is not learned from), the reply, and the state."""

    request: Request | None
    said: Sample
    state: State


@dataclass(eq=False)
class Rollout:
    """One episode of the policy. `reason` is ENDED, LIMIT, REPEATED or UNREADABLE once it is over.

    `language` is the action language of the policy's card. A branch starts from a state of another rollout: its
    first `own` turns are that rollout's.
    """

    question: Question
    turns: list[RolloutTurn] = field(default_factory=list)
    mask: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    logits: np.ndarray | None = None
    reason: str = ""
    own: int = 0
    language: Language = IBIS

    def __post_init__(self) -> None:
        if not self.mask.size:
            self.mask = np.zeros(self.question.rgb.shape[:2], bool)

    @property
    def prompts(self) -> list[Prompt]:
        """The clicks and boxes that were done. The last one of a REPEATED rollout was not."""
        done = self.turns[:-1] if self.reason == REPEATED else self.turns
        return [turn.state.action for turn in done if isinstance(turn.state.action, Prompt)]

    @property
    def iou(self) -> float:
        return iou(self.mask, self.question.truth)

    @property
    def dice(self) -> float:
        return dice(self.mask, self.question.truth)

    @property
    def hit(self) -> bool:
        """Whether the first prompt is positive and on the structure (see placing.points_at)."""
        first = self.turns[0].state.action if self.turns else None
        return isinstance(first, Prompt) and first.positive and points_at(first, self.question.truth)

    @property
    def said_absent(self) -> bool:
        """It ended without a click or a box."""
        return self.reason == ENDED and not self.prompts

    def repeats(self, action: Action | None, limits: Limits) -> bool:
        """Whether a click or box repeats the previous ones too often (limits.max_repeats); then it is not done."""
        tail = [turn.state.action for turn in self.turns[1 - limits.max_repeats :]]
        full = len(tail) == limits.max_repeats - 1
        return isinstance(action, Prompt) and full and all(each == action for each in tail)

    def take(
        self,
        request: Request | None,
        said: Sample,
        action: Action | None,
        found: Prediction | None,
        limits: Limits,
    ) -> None:
        """Append a turn. `found`: the prediction after a click or box; None if none was done."""
        before = self.mask
        if found is not None:
            self.mask, self.logits = found.mask, found.logits
        truth, number = self.question.truth, len(self.turns) + 1
        state = State.of(said.text, action, before, self.mask, truth, number, self.language)
        repeated = isinstance(action, Prompt) and found is None
        self.turns.append(RolloutTurn(request, said, state))
        if action is None:
            self.reason = UNREADABLE
        elif isinstance(action, Terminate):
            self.reason = ENDED
        elif repeated:
            self.reason = REPEATED
        elif len(self.turns) >= limits.max_turns:
            self.reason = LIMIT

    def observed(self, card: ModelCard) -> Turn:
        """The turn that a policy with this card sees now."""
        states = [turn.state for turn in self.turns]

        def mask_after(done: int) -> np.ndarray | None:
            prompted = any(isinstance(state.action, Prompt) for state in states[:done])
            return states[done - 1].after if prompted else None

        said = [turn.said.text for turn in self.turns]
        return observe(card, Situation(self.question.rgb, self.question.text, said, mask_after))


class Roller:
    """Makes rollouts with one policy and one segmenter.

    batch: replies sampled at a time; limited by GPU memory.
    """

    def __init__(
        self, policy: BatchPolicy, segmenter: Segmenter, limits: Limits | None = None, batch: int = 256
    ) -> None:
        self.policy, self.segmenter = policy, segmenter
        self.limits = limits or Limits()
        self.batch = batch

    def run(
        self,
        questions: Sequence[Question],
        group: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        branches: tuple[int, int] | None = None,
        rng: np.random.Generator | None = None,
    ) -> list[list[Rollout]]:
        """`group` rollouts of each question. Temperature 0 is greedy.

        branches: (states, replies). For that many later states of each group, chosen by `rng`, replies are sampled
        until each state has `replies` of them. These rollouts come last in the group (see Rollout.own); the segmenter
        continues from the state's logits.
        """
        language = self.policy.card.speech
        groups = [[Rollout(question, language=language) for _ in range(group)] for question in questions]
        done: Predictions = {}
        self._play([rollout for each in groups for rollout in each], temperature, generator, done)
        if branches is not None:
            more = [_branches(each, *branches, rng or np.random.default_rng(0), done) for each in groups]
            self._play([rollout for each in more for rollout in each], temperature, generator, done)
            groups = [[*each, *others] for each, others in zip(groups, more, strict=True)]
        return groups

    def _play(
        self, going: list[Rollout], temperature: float, generator: torch.Generator | None, done: Predictions
    ) -> None:
        """Advance all rollouts together until they are over. Adds every prediction to `done`."""
        while going:
            requests = self._requests(going)
            samples = self.policy.sample(requests, temperature, generator, self.batch)
            actions = [read_action(sample.text, self.policy.card.speech) for sample in samples]
            wanted: list[tuple[Rollout, Prompt] | None] = [
                (rollout, action)
                if isinstance(action, Prompt) and not rollout.repeats(action, self.limits)
                else None
                for rollout, action in zip(going, actions, strict=True)
            ]
            found = iter(self._predict([each for each in wanted if each is not None], done))
            for n, rollout in enumerate(going):
                prediction = next(found) if wanted[n] is not None else None
                # Requests are large, and greedy replies are not learned from.
                request = requests[n] if temperature else None
                rollout.take(request, samples[n], actions[n], prediction, self.limits)
            going = [rollout for rollout in going if not rollout.reason]

    def _requests(self, rollouts: Sequence[Rollout]) -> list[Request]:
        """The next request of each rollout; equal states share one."""
        known: dict[tuple[str, str, str], Request] = {}
        found = []
        for rollout in rollouts:
            question = rollout.question
            said = "\0".join(turn.said.text for turn in rollout.turns) if self.policy.card.history else ""
            state = f"{len(rollout.turns)}{rollout.prompts}{said}"
            key = (question.picture, question.text, state)
            if key not in known:
                known[key] = self.policy.request(rollout.observed(self.policy.card))
            found.append(known[key])
        return found

    def _predict(self, wanted: Sequence[tuple[Rollout, Prompt]], done: Predictions) -> list[Prediction]:
        """The masks after one more prompt each; equal prompts on the same picture are computed once."""
        keys = [(rollout.question.picture, (*rollout.prompts, prompt)) for rollout, prompt in wanted]
        fresh = {key: rollout for key, (rollout, _) in zip(keys, wanted, strict=True) if key not in done}
        # States with the same number of prompts share a pass.
        states = sorted(fresh.items(), key=lambda each: len(each[0][1]))
        for start in range(0, len(states), self.batch):
            part = states[start : start + self.batch]
            found = self.segmenter.predict_many(
                [self.segmenter.embed(rollout.question.rgb) for _, rollout in part],
                [prompts for (_, prompts), _ in part],
                [rollout.logits for _, rollout in part],
            )
            done.update(zip((key for key, _ in part), found, strict=True))
        return [done[key] for key in keys]


def _branches(
    group: Sequence[Rollout],
    states: int,
    replies: int,
    rng: np.random.Generator,
    done: Mapping[Prompted, Prediction],
) -> list[Rollout]:
    """New rollouts that start from states which others of the group reached."""
    at: dict[tuple[Action | None, ...], list[tuple[Rollout, int]]] = {}
    for rollout in group:
        for n in range(1, len(rollout.turns)):
            at.setdefault(tuple(turn.state.action for turn in rollout.turns[:n]), []).append((rollout, n))
    places = list(at.values())
    found = []
    for which in rng.permutation(len(places))[:states]:
        origin, n = places[which][0]
        prompts = tuple(t.state.action for t in origin.turns[:n] if isinstance(t.state.action, Prompt))
        state = done[origin.question.picture, prompts]
        for _ in range(replies - len(places[which])):
            begun = origin.turns[:n]
            found.append(
                Rollout(origin.question, begun, state.mask, state.logits, own=n, language=origin.language)
            )
    return found


def read_action(text: str, language: Language) -> Action | None:
    """The action in a reply; None if it cannot be parsed."""
    try:
        return language.parse(text).action
    except ReplyError:
        return None
