"""From rollouts to a loss: rewards of turns and outcomes, group-normalised advantages, the clipped objective.

GRPO (DeepSeekMath, section 4.1) with credit on two levels: a turn's advantage is the sum of its own, among the
turns of the same number in its group, and its rollout's, among the outcomes of its group. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.grpo import rewards
from training.grpo.settings import RewardSettings
from training.rollouts.figures import figures_of, mean
from training.rollouts.roller import Rollout

_LEAST_SPREAD = 1e-6


def normalised(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n,) values less their mean, over their standard deviation; zeros where all are equal."""
    values = np.asarray(values, dtype=np.float64)
    spread = float(values.std()) if values.size else 0.0
    if spread < _LEAST_SPREAD:
        return np.zeros_like(values)
    return (values - values.mean()) / spread


def turn_rewards(rollout: Rollout, settings: RewardSettings) -> list[dict[str, float]]:
    """Of every turn, each reward that has a weight, unweighted."""
    steps = settings.optimal_steps
    return [{name: rewards.TURN[name](turn.state, steps) for name in settings.turn} for turn in rollout.turns]


def outcome_rewards(rollout: Rollout, settings: RewardSettings) -> dict[str, float]:
    """Each reward of the outcome that has a weight, unweighted."""
    last, steps = rollout.turns[-1].state, settings.optimal_steps
    return {name: rewards.OUTCOME[name](last, steps) for name in settings.outcome}


def score(rollout: Rollout, settings: RewardSettings) -> dict[str, float]:
    """A whole rollout in one number, `score`, and every reward that has a weight.

    A turn's rewards are averaged over the turns: longer is not better by itself.
    """
    turns, outcome = turn_rewards(rollout, settings), outcome_rewards(rollout, settings)
    means = {name: mean(one[name] for one in turns) for name in settings.turn}
    total = settings.turn_credit * _sum(means, settings.turn)
    total += settings.outcome_credit * _sum(outcome, settings.outcome)
    return {
        "score": total,
        **{f"turn_{name}": value for name, value in means.items()},
        **{f"outcome_{name}": value for name, value in outcome.items()},
    }


def advantages(group: Sequence[Rollout], settings: RewardSettings) -> list[np.ndarray]:
    """For each rollout of one question, (turns,) the advantage of each of its turns."""
    outcomes = normalised([_sum(outcome_rewards(each, settings), settings.outcome) for each in group])
    turns = [[_sum(one, settings.turn) for one in turn_rewards(each, settings)] for each in group]
    found = [np.full(len(mine), settings.outcome_credit * outcomes[n]) for n, mine in enumerate(turns)]
    for number in range(max(len(mine) for mine in turns)):
        there = [n for n, mine in enumerate(turns) if number < len(mine)]
        own = normalised([turns[n][number] for n in there])
        for n, value in zip(there, own, strict=True):
            found[n][number] += settings.turn_credit * value
    return found


def clipped(new: Tensor, old: Tensor, advantage: float, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(n,) loss of each token, and where the clip held it back.

    `new`, `old` (n,) log-probabilities; the ratio of the probabilities is clipped to 1 − low … 1 + high where
    that makes the objective smaller (Schulman et al. 2017, equation 7).
    """
    ratio = (new - old).exp()
    plain, held = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(plain, held), (held < plain).detach()


def divergence(new: Tensor, reference: Tensor) -> Tensor:
    """(n,) unbiased, never negative estimate of KL(new ‖ reference) (Schulman 2020, "k3")."""
    ratio = reference - new
    return ratio.exp() - ratio - 1


def figures(groups: Sequence[Sequence[Rollout]], settings: RewardSettings | None = None) -> dict[str, float]:
    """Those of training.rollouts.figures; with `settings` also of every weighted reward and the `score`."""
    every = [rollout for group in groups for rollout in group]
    found = figures_of(every)
    if settings is not None:
        turns = [one for each in every for one in turn_rewards(each, settings)]
        outcomes = [outcome_rewards(each, settings) for each in every]
        found |= {f"turn_{name}": mean(one[name] for one in turns) for name in settings.turn}
        found |= {f"outcome_{name}": mean(one[name] for one in outcomes) for name in settings.outcome}
        found["reward"] = mean(score(each, settings)["score"] for each in every)
    return {name: value for name, value in found.items() if not np.isnan(value)}


def _sum(values: dict[str, float], weights: dict[str, float]) -> float:
    return sum(weights[name] * value for name, value in values.items())
