"""What a GRPO run can be told, key by key; the YAML files in configs/ are made of these."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ibis_agent.errors import InputError

from training.common.settings import setting
from training.grpo import rewards
from training.sft.settings import LoraSettings

# Keys that do not change what comes out, so that a run may go on with others.
FREE = ("out", "save_every", "threads", "evaluate_every")


@dataclass(frozen=True)
class TaskSettings:
    """What is asked about.

    Attributes:
        phantoms: so many phantom pictures of the seed `phantom_seed`, from its number `first` on.
        cases: a folder or manifest of cases (training/cases.py) instead of phantoms.
        per_volume: slices of each volume among the cases, evenly spread; 0: all that show something.
        store: a folder that keeps the pictures of cases, see training.common.store; without one they are all read
            at every start, and kept in memory.
        absent: share of the questions about what a picture does not show.
    """

    phantoms: int = setting(200, least=1)
    phantom_seed: int = setting(101, least=0, most=99_999)
    first: int = setting(0, least=0)
    cases: Path | None = None
    per_volume: int = setting(8, least=0)
    store: Path | None = None
    absent: float = setting(0.125, least=0, most=0.9)


@dataclass(frozen=True)
class RewardSettings:
    """Weights of the rewards, by their names in training.grpo.rewards, and how turns are credited.

    Attributes:
        turn: rewards of a turn's own action; outcome: of the state in which the episode ended.
        turn_credit, outcome_credit: what a turn's advantage takes of either.
        optimal_steps: of the length reward.
        credit: "state" or "turn", see training.grpo.credit. With "state" rewards of turns add up: one that every
            turn gets, such as `format`, would pay for more turns.
        divisor: of an advantage: the "deviation" of what it is compared with (GRPO), that of the whole "batch"
            (REINFORCE++), or "none" (Dr. GRPO).
        least: turns that a comparison needs; with fewer there is no credit from it.
    """

    turn: dict[str, Any] = field(
        default_factory=lambda: {"format": 1.0, "placement": 1.0, "improvement": 1.0}
    )
    outcome: dict[str, Any] = field(default_factory=lambda: {"answer": 1.0, "length": 1.0})
    turn_credit: float = setting(1.0, least=0)
    outcome_credit: float = setting(1.0, least=0)
    optimal_steps: int = setting(rewards.OPTIMAL_STEPS, least=1)
    credit: Literal["turn", "state"] = "turn"
    divisor: Literal["deviation", "batch", "none"] = "deviation"
    least: int = setting(2, least=2)


@dataclass(frozen=True)
class GrpoSettings:
    """A GRPO run.

    Attributes:
        model: the policy's folder to start from; segmenter: a checkpoint, None for the demo's.
        out: a new folder, or that of the same run, which then goes on.
        name: what the new policy is called; empty: after the old one.
        tasks, held: what it learns from, and what it is measured on (held.phantoms pictures).
        updates: how many.
        questions, group: of an update, and rollouts of each question.
        max_turns, temperature: of a rollout.
        epochs, minibatches: how often an update's rollouts are learned from, in how many optimiser steps.
        rate, warmup: peak learning rate, and updates in which it rises; it falls to a tenth at the end.
        clip_low, clip_high: the ratio of new to old probability stays within 1 − low and 1 + high.
        ratio: of "token", "sequence" (GSPO) or "cispo"; average: of the loss, by "token" (DAPO), "reply" (GRPO as
            first described) or "constant" (Dr. GRPO); see training.grpo.objective.
        importance_cap: truncated importance correction between what rollouts were sampled by and the model that
            learns, cut there; 0: none. Here both are one model; it matters where they compute in other numbers.
        refill: groups whose rollouts all earned the same are replaced by new questions (DAPO's dynamic sampling),
            at most so many times the questions of an update; 0: never.
        branch_states, branch_replies: from so many later states of a group, replies are sampled until there are
            so many from each: a baseline over equal states. 0: no branching.
        kl: weight of the divergence from the start; 0 needs no reference model.
        tune, lora, vision: as for training.sft.
        replies: written at a time; tokens: computed at a time. What memory allows.
        evaluate_every, save_every: updates; evaluate_every 0 measures at the end only.
        keep: which state becomes the policy: of those measured, the "best" on the held questions, or the "last".
        collapse: the run ends where the held questions' quality falls below this share of the best; 0: never.
        precision: "bf16" computes in bf16 on CUDA; what is trained is kept in fp32.
    """

    model: Path
    out: Path
    segmenter: Path | None = None
    name: str = ""
    tasks: TaskSettings = TaskSettings()
    held: TaskSettings = TaskSettings(phantoms=20, phantom_seed=102)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    updates: int = setting(30, least=1)
    questions: int = setting(8, least=1)
    group: int = setting(8, least=2)
    max_turns: int = setting(5, least=1, most=50)
    temperature: float = setting(1.0, above=0, most=5)
    epochs: int = setting(1, least=1)
    minibatches: int = setting(2, least=1)
    rate: float = setting(1e-6, above=0, most=1)
    warmup: int = setting(2, least=0)
    weight_decay: float = setting(0.0, least=0, most=10)
    clip: float = setting(1.0, above=0)
    clip_low: float = setting(0.2, above=0, most=1)
    clip_high: float = setting(0.2, above=0)
    ratio: Literal["token", "sequence", "cispo"] = "token"
    average: Literal["token", "reply", "constant"] = "token"
    importance_cap: float = setting(0.0, least=0)
    refill: int = setting(0, least=0, most=20)
    branch_states: int = setting(0, least=0)
    branch_replies: int = setting(4, least=2)
    kl: float = setting(0.0, least=0)
    tune: Literal["lora", "full"] = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    vision: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    replies: int = setting(256, least=1)
    tokens: int = setting(16_000, least=64)
    evaluate_every: int = setting(0, least=0)
    keep: Literal["best", "last"] = "best"
    collapse: float = setting(0.5, least=0, most=1)
    save_every: int = setting(5, least=1)
    threads: int = setting(0, least=0, most=1024)
    seed: int = setting(1, least=0, most=2**31)


def check(settings: GrpoSettings, file: str | None = None) -> None:
    """What the types cannot say. Raises InputError."""
    given = settings.rewards
    for part, weights, known in (
        ("turn", given.turn, rewards.TURN),
        ("outcome", given.outcome, rewards.OUTCOME),
    ):
        for name, weight in weights.items():
            if name not in known:
                remedy = f"Known: {', '.join(known)}."
                raise InputError(f"rewards.{part} has no such reward", file=file, value=name, remedy=remedy)
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight):
                raise InputError(f"rewards.{part}.{name} must be a number", file=file, value=weight)
    turn = given.turn_credit * sum(abs(w) for w in given.turn.values())
    outcome = given.outcome_credit * sum(abs(w) for w in given.outcome.values())
    if not turn and not outcome:
        raise InputError("no reward has a weight", file=file, remedy="Give at least one under rewards.")
    if settings.group < given.least:
        raise InputError(
            "a group is smaller than rewards.least: nothing could be compared",
            file=file,
            value=f"group {settings.group}, rewards.least {given.least}",
            remedy="Make groups larger, or rewards.least smaller.",
        )
    if settings.lora.dropout:
        raise InputError(
            "lora.dropout must be 0: what is learnt from must be what was sampled",
            file=file,
            value=settings.lora.dropout,
        )
    same = settings.tasks.cases is None and settings.held.cases is None
    if same and settings.tasks.phantom_seed == settings.held.phantom_seed:
        mine = range(settings.tasks.first, settings.tasks.first + settings.tasks.phantoms)
        other = range(settings.held.first, settings.held.first + settings.held.phantoms)
        if mine[0] <= other[-1] and other[0] <= mine[-1]:
            raise InputError(
                "the held phantoms are among those that it learns from",
                file=file,
                value=f"seed {settings.held.phantom_seed}",
                remedy="Give held.phantom_seed another number.",
            )
