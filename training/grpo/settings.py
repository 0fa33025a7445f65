"""The settings of a GRPO run; each attribute is a key of the YAML files in configs/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ibis_agent.errors import InputError

from training.common.settings import setting
from training.grpo import rewards
from training.sft.settings import LoraSettings

# Keys that do not change the result, so they may differ when a run is resumed.
FREE = ("out", "save_every", "threads", "evaluate_every")


@dataclass(frozen=True)
class TaskSettings:
    """The pictures that questions are asked about.

    Attributes:
        phantoms: number of phantom pictures, of the seed `phantom_seed`, starting with number `first`.
        cases: a folder or manifest of cases (ibis_agent.cases) instead of phantoms.
        per_volume: slices of each volume among the cases, evenly spread; 0: all with a labelled structure.
        store: a folder that keeps the cases' pictures, see training.common.store. Without it they are read at
            every start and kept in memory.
        absent: share of the questions that ask for a structure the picture does not show.
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
    """Weights of the rewards, by their names in training.grpo.rewards, and how advantages are computed.

    Attributes:
        turn: weights of rewards for a turn's own action.
        outcome: weights of rewards for the state in which the episode ended.
        turn_credit, outcome_credit: factors of the two in an advantage.
        optimal_steps: of the length reward.
        credit: "state" or "turn", see training.grpo.credit. With "state" turn rewards add up, so a reward that
            every turn gets, such as `format`, would favour longer episodes.
        divisor: advantages are divided by the standard "deviation" of the turns compared (GRPO), by that of the
            whole "batch" (REINFORCE++), or not at all ("none", Dr. GRPO).
        least: the smallest number of turns to compare; smaller sets get no advantage.
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
        model: folder of the policy to start from.
        segmenter: a checkpoint; None for the demo segmenter.
        out: a new folder, or that of the same run to resume it.
        name: name of the new policy; empty: derived from the old one.
        tasks, held: the pictures to learn from, and the held-out set.
        updates: number of updates.
        questions, group: questions per update, and rollouts per question.
        max_turns, temperature: of a rollout.
        epochs, minibatches: passes over an update's rollouts, and optimiser steps per pass.
        rate, warmup: peak learning rate, and updates of linear warm-up; the rate decays to a tenth of the peak.
        clip: greatest norm of the gradient.
        clip_low, clip_high: the ratio of new to old probability is clipped to [1 − low, 1 + high].
        ratio: by "token", by "sequence" (GSPO), or "cispo"; average: of the loss, over each "token" (DAPO), each
            "reply" (GRPO as first described) or "constant" (Dr. GRPO); see training.grpo.objective.
        importance_cap: cap of the truncated importance weights between the model that sampled the rollouts and the
            one that learns; 0: no weights. Here both are the same model; it matters if their numerics differ.
        refill: groups whose rollouts all have the same return are replaced by new questions (DAPO's dynamic
            sampling), in at most this many rounds; 0: never.
        branch_states, branch_replies: for this many later states of a group, sample replies until each state has
            `branch_replies` of them, for a baseline over equal states. 0 states: no branching.
        kl: weight of the KL divergence from the initial policy; 0 needs no reference model.
        tune, lora, vision: as in training.sft.
        replies, tokens: replies sampled at a time, and tokens scored at a time; limited by memory.
        evaluate_every, save_every: in updates; evaluate_every 0 evaluates at the end only.
        keep: which state becomes the new policy: the "best" on the held-out set (not the initial one), or
            the "last".
        collapse: stop when the held-out quality falls below this share of the best; 0: never.
        precision: "bf16" computes in bf16 on CUDA; trainable weights stay fp32.
        threads: of the CPU; 0: torch's default.
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
    clip_high: float = setting(0.2, above=0, most=10)
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
    """Check what the types cannot express. Raises InputError."""
    check_rewards(settings.rewards, file)
    if settings.group < settings.rewards.least:
        raise InputError(
            "the group is smaller than rewards.least, so nothing could be compared",
            file=file,
            value=f"group {settings.group}, rewards.least {settings.rewards.least}",
            remedy="Raise group or lower rewards.least.",
        )
    if settings.branch_states and settings.rewards.credit != "state":
        raise InputError(
            "branch_states needs rewards.credit: state; with credit: turn, the turns of a branch would count twice",
            file=file,
            value=f"branch_states {settings.branch_states}, rewards.credit {settings.rewards.credit}",
            remedy="Set branch_states: 0, or rewards.credit: state.",
        )
    if settings.warmup > settings.updates:
        raise InputError(
            "warmup is longer than the run, so the peak learning rate would never be reached",
            file=file,
            value=f"warmup {settings.warmup}, updates {settings.updates}",
            remedy="Lower warmup.",
        )
    if 0 < settings.importance_cap < 1:
        raise InputError(
            "importance_cap must be 0 (off) or at least 1: a lower cap only makes steps smaller",
            file=file,
            value=settings.importance_cap,
            remedy="Such as 2.",
        )
    if settings.lora.dropout:
        raise InputError(
            "lora.dropout must be 0: the policy must learn from what it sampled",
            file=file,
            value=settings.lora.dropout,
            remedy="Remove it.",
        )
    for name, part in (("tasks", settings.tasks), ("held", settings.held)):
        if part.store is not None and part.cases is None:
            raise InputError(
                f"{name}.store needs {name}.cases",
                file=file,
                value=part.store,
                remedy=f"Give {name}.cases or remove {name}.store.",
            )
    if settings.tasks.cases is not None and settings.tasks.cases == settings.held.cases:
        raise InputError(
            "the held-out cases are the training cases",
            file=file,
            value=settings.held.cases,
            remedy="Give held.cases other patients.",
        )
    if settings.tasks.cases is None and settings.held.cases is None:
        _check_phantoms(settings.tasks, settings.held, file)


def check_rewards(given: RewardSettings, file: str | None = None) -> None:
    """Raises InputError for an unknown reward, a weight that is not a number, and if there is no weight."""
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
                remedy = "Such as 1 or 0.5."
                raise InputError(
                    f"rewards.{part}.{name} must be a number", file=file, value=weight, remedy=remedy
                )
    turn = given.turn_credit * sum(abs(w) for w in given.turn.values())
    outcome = given.outcome_credit * sum(abs(w) for w in given.outcome.values())
    if not turn and not outcome:
        raise InputError("no reward has a weight", file=file, remedy="Give at least one under rewards.")


def _check_phantoms(tasks: TaskSettings, held: TaskSettings, file: str | None) -> None:
    mine, other = (range(each.first, each.first + each.phantoms) for each in (tasks, held))
    if tasks.phantom_seed == held.phantom_seed and mine[0] <= other[-1] and other[0] <= mine[-1]:
        raise InputError(
            "the held-out phantoms overlap the training phantoms",
            file=file,
            value=f"seed {held.phantom_seed}",
            remedy="Give held.phantom_seed another number.",
        )
