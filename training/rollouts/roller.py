"""Rollouts: the policy's own episodes, many at a time, the segmenter in the loop.

    roller = Roller(policy, segmenter, Limits(max_turns=5))
    groups = roller.run(questions, group=8, temperature=1.0, generator=generator)   # 8 rollouts a question

All rollouts take their turns in step: one batch through the policy, one through the segmenter, until the last
one has ended. A rollout goes as an Episode goes (same requests, same prompts, same masks, same ends), with one
difference: a reply that cannot be read ends it, because a second chance would hide the fault from the reward.
Where questions come from is in training.grpo.tasks, what a turn is worth in training.grpo.rewards.
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
"""A picture's name and what was prompted on it, in its order."""
Predictions = dict[Prompted, Prediction]


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about a picture, and the truth.

    Attributes:
        picture: a name that no other picture has.
        rgb: (H, W, 3) uint8.
        structure: what is asked for; text: how.
        truth: (H, W) bool; empty where the structure is not there.
    """

    picture: str
    rgb: np.ndarray
    structure: str
    text: str
    truth: np.ndarray

    def __post_init__(self) -> None:
        if self.truth.shape != self.rgb.shape[:2]:
            raise InputError(
                "the truth is of another size than the picture",
                file=self.picture,
                value=f"{self.truth.shape} and {self.rgb.shape[:2]}",
            )

    @property
    def present(self) -> bool:
        return bool(self.truth.any())


@dataclass(frozen=True, eq=False)
class RolloutTurn:
    """One turn: what was asked (None where it is not learned from), what was said, and the state around it."""

    request: Request | None
    said: Sample
    state: State


@dataclass(eq=False)
class Rollout:
    """One episode of the policy. `reason` is ENDED, LIMIT, REPEATED or UNREADABLE once it is over.

    `language` is that of the policy's card. The first `own` turns of a branch are another rollout's, from whose state
    it went another way.
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
        """The clicks and boxes that were done: a repetition too many is not."""
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
        """The first click is positive and on the structure; the first box shares half with the structure's own."""
        first = self.turns[0].state.action if self.turns else None
        return isinstance(first, Prompt) and first.positive and points_at(first, self.question.truth)

    @property
    def said_absent(self) -> bool:
        """It ended without a click or a box."""
        return self.reason == ENDED and not self.prompts

    def repeats(self, action: Action | None, limits: Limits) -> bool:
        """Whether a click or a box is the same as those just before, once too often; it is then not done."""
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
        """Append a turn; `found` is what a click or a box led to, None where none was done."""
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
        """What a policy of this card is asked now."""
        states = [turn.state for turn in self.turns]

        def mask_after(done: int) -> np.ndarray | None:
            prompted = any(isinstance(state.action, Prompt) for state in states[:done])
            return states[done - 1].after if prompted else None

        said = [turn.said.text for turn in self.turns]
        return observe(card, Situation(self.question.rgb, self.question.text, said, mask_after))


class Roller:
    """Makes rollouts with one policy and one segmenter.

    batch: how many replies are written at a time; what the memory of a GPU allows.
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
        """`group` rollouts of each question. temperature 0 is greedy.

        branches: from so many later states of a group, chosen by `rng`, replies are sampled until each state has
        so many: they stand at the end of the group, see Rollout. The segmenter goes on from the state's logits.
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
        self,
        going: list[Rollout],
        temperature: float,
        generator: torch.Generator | None,
        done: Predictions,
    ) -> None:
        """Take turns in step until all rollouts are over; `done` gets every prediction."""
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
                # What was asked is large, and of greedy replies nothing is learned.
                request = requests[n] if temperature else None
                rollout.take(request, samples[n], actions[n], prediction, self.limits)
            going = [rollout for rollout in going if not rollout.reason]

    def _requests(self, rollouts: Sequence[Rollout]) -> list[Request]:
        """What each is asked now; equal states share one request."""
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

    def _predict(
        self,
        wanted: Sequence[tuple[Rollout, Prompt]],
        done: Predictions,
    ) -> list[Prediction]:
        """The masks after one prompt more each; the same prompts on the same picture are done once."""
        keys = [(rollout.question.picture, (*rollout.prompts, prompt)) for rollout, prompt in wanted]
        fresh = {key: rollout for key, (rollout, _) in zip(keys, wanted, strict=True) if key not in done}
        # Alike in number stand together: those share a pass.
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
    """Rollouts that begin where others of the group had come to, ready to be played."""
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
    """The action in a reply; None where none can be read."""
    try:
        return language.parse(text).action
    except ReplyError:
        return None
