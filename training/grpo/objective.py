"""From advantages to a loss: the clipped objective and its variants; and rollouts in figures with their rewards.

Which turn gets which advantage is in credit. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.grpo.credit import outcome_rewards, turn_rewards, weighed
from training.grpo.settings import RewardSettings
from training.rollouts.figures import figures_of, mean
from training.rollouts.roller import Rollout


def score(rollout: Rollout, settings: RewardSettings) -> dict[str, float]:
    """A whole rollout in one number, `score`, and every reward that has a weight.

    A turn's rewards are averaged over the turns: longer is not better by itself.
    """
    turns, outcome = turn_rewards(rollout, settings), outcome_rewards(rollout, settings)
    means = {name: mean(one[name] for one in turns) for name in settings.turn}
    total = settings.turn_credit * weighed(means, settings.turn)
    total += settings.outcome_credit * weighed(outcome, settings.outcome)
    return {
        "score": total,
        **{f"turn_{name}": value for name, value in means.items()},
        **{f"outcome_{name}": value for name, value in outcome.items()},
    }


def surrogate(
    new: Tensor, old: Tensor, advantage: float, low: float, high: float, ratio: str = "token"
) -> tuple[Tensor, Tensor]:
    """(n,) loss of each token of one reply, and where the clip held it back.

    Args:
        new, old: (n,) log-probabilities.
        low, high: ratios of new to old probability are kept within 1 − low and 1 + high.
        ratio: "token": each token's own, clipped where that makes the objective smaller (Schulman et al. 2017,
            equation 7). "sequence": one for the whole reply, the geometric mean (GSPO, Zheng et al. 2025).
            "cispo": the ratio is a weight without a gradient, cut at 1 + high, so that no token is left out
            (MiniMax-M1 2025).
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
    """(n,) weights that correct for a rollout engine whose numbers are not the trainer's, cut at `cap`.

    Truncated importance sampling: the ratio of the probabilities by which a token was sampled, as the trainer
    and as the engine computed them.
    """
    return (trainer - rollout).exp().clamp(max=cap).detach()


def shares(lengths: Sequence[int], average: str, longest: int) -> list[float]:
    """What each token of a reply weighs in the loss, for replies of these lengths.

    average: "token": all tokens alike (DAPO); "reply": all replies alike (GRPO as first described);
    "constant": over as many tokens as replies could have, so that a long one is not diluted (Dr. GRPO).
    """
    if average == "token":
        return [1 / max(1, sum(lengths))] * len(lengths)
    if average == "reply":
        return [1 / (len(lengths) * max(1, length)) for length in lengths]
    return [1 / (len(lengths) * longest)] * len(lengths)


def divergence(new: Tensor, reference: Tensor) -> Tensor:
    """(n,) unbiased, never negative estimate of KL(new ‖ reference) (Schulman 2020, "k3")."""
    ratio = reference - new
    return ratio.exp() - ratio - 1


def figures(groups: Sequence[Sequence[Rollout]], settings: RewardSettings | None = None) -> dict[str, float]:
    """Those of training.rollouts.figures; with `settings` also of every weighted reward and the `score`."""
    every = [
        rollout for group in groups for rollout in group if not rollout.own
    ]  # branches would count twice
    found = figures_of(every)
    if settings is not None:
        turns = [one for each in every for one in turn_rewards(each, settings)]
        outcomes = [outcome_rewards(each, settings) for each in every]
        found |= {f"turn_{name}": mean(one[name] for one in turns) for name in settings.turn}
        found |= {f"outcome_{name}": mean(one[name] for one in outcomes) for name in settings.outcome}
        found["reward"] = mean(score(each, settings)["score"] for each in every)
    return {name: value for name, value in found.items() if not np.isnan(value)}
