"""The clipped objective and its variants, and figures of rollouts including their rewards.

Advantages are computed in credit. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.grpo.credit import outcome_rewards, turn_rewards, weighted_sum
from training.grpo.settings import RewardSettings
from training.rollouts.figures import figures_of, mean
from training.rollouts.roller import Rollout


def score(rollout: Rollout, settings: RewardSettings) -> dict[str, float]:
    """A rollout's `score`, and every reward that has a weight.

    Turn rewards are averaged over the turns, so that longer episodes do not score higher just for being longer.
    """
    turns, outcome = turn_rewards(rollout, settings), outcome_rewards(rollout, settings)
    means = {name: mean(one[name] for one in turns) for name in settings.turn}
    total = settings.turn_credit * weighted_sum(means, settings.turn)
    total += settings.outcome_credit * weighted_sum(outcome, settings.outcome)
    return {
        "score": total,
        **{f"turn_{name}": value for name, value in means.items()},
        **{f"outcome_{name}": value for name, value in outcome.items()},
    }


def surrogate(
    new: Tensor, old: Tensor, advantage: float, low: float, high: float, ratio: str = "token"
) -> tuple[Tensor, Tensor]:
    """((n,) loss of each token of one reply, (n,) bool where it was clipped).

    Args:
        new, old: (n,) log-probabilities.
        low, high: the ratio of new to old probability is clipped to [1 − low, 1 + high].
        ratio: "token": one ratio per token, clipped where that lowers the objective (Schulman et al. 2017,
            equation 7). "sequence": one for the whole reply, the geometric mean (GSPO, Zheng et al. 2025).
            "cispo": the ratio is a weight without gradient, capped at 1 + high, so that every token keeps its
            gradient (MiniMax-M1 2025).
    """
    if ratio == "cispo":
        weight = (new - old).exp().detach()
        return -weight.clamp(max=1 + high) * advantage * new, weight > 1 + high
    apart = new - old
    if ratio == "sequence":
        apart = apart.mean().expand_as(apart)
    each = apart.exp()
    plain, held = each * advantage, each.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(plain, held), (held < plain).detach()


def importance(trainer: Tensor, rollout: Tensor, cap: float) -> Tensor:
    """(n,) importance weights, capped at `cap`, for a rollout engine whose numerics differ from the trainer's.

    Truncated importance sampling: the probability of each token according to the trainer over that according to
    the engine, from their (n,) log-probabilities.
    """
    return (trainer - rollout).exp().clamp(max=cap).detach()


def shares(lengths: Sequence[int], average: str, longest: int) -> list[float]:
    """The weight of each token of a reply in the loss, one number per reply.

    average: "token": all tokens count the same (DAPO); "reply": all replies count the same (GRPO as first
    described); "constant": divide by the greatest possible length, so that long replies are not diluted (Dr. GRPO).
    """
    if average == "token":
        return [1 / max(1, sum(lengths))] * len(lengths)
    if average == "reply":
        return [1 / (len(lengths) * max(1, length)) for length in lengths]
    return [1 / (len(lengths) * longest)] * len(lengths)


def divergence(new: Tensor, reference: Tensor) -> Tensor:
    """(n,) unbiased, non-negative estimate of KL(new ‖ reference) (Schulman 2020, "k3")."""
    ratio = reference - new
    return ratio.exp() - ratio - 1


def figures(groups: Sequence[Sequence[Rollout]], settings: RewardSettings | None = None) -> dict[str, float]:
    """Figures of training.rollouts.figures; with `settings`, also the mean of each weighted reward and of `score`."""
    # Branches repeat the turns of the rollout they left, so they are not counted.
    every = [rollout for group in groups for rollout in group if not rollout.own]
    found = figures_of(every)
    if settings is not None:
        turns = [one for each in every for one in turn_rewards(each, settings)]
        outcomes = [outcome_rewards(each, settings) for each in every]
        found |= {f"turn_{name}": mean(one[name] for one in turns) for name in settings.turn}
        found |= {f"outcome_{name}": mean(one[name] for one in outcomes) for name in settings.outcome}
        found["reward"] = mean(score(each, settings)["score"] for each in every)
    return {name: value for name, value in found.items() if not np.isnan(value)}
