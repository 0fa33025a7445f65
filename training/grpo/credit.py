"""The advantage of each turn of an update's rollouts.

Two ways (`rewards.credit` in the settings):
- "turn": a turn's own rewards are compared with those of the turns of the same number in its group, and the
  outcome's with the outcomes of its group (GRPO, DeepSeekMath section 4.1, on two levels). Turns of the same
  number start from different masks, so this compares unlike states; it is kept as a reference.
- "state": the return from this turn on, minus a baseline for the state the turn was in. The baseline is the mean
  over replies to this very state (every first turn, and states that were branched, see training.rollouts) or,
  where there are too few, over the update's turns that started from masks of similar quality. So ending on a poor
  mask is worth less than the clicks that would have improved it, and ending on a good mask is worth more.

A baseline that does not depend on the turn's own action leaves the expected gradient unchanged. Pure functions.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from ibis_agent.actions import Prompt, Terminate

from training.grpo import rewards
from training.grpo.settings import RewardSettings
from training.rollouts.figures import GOOD, POOR, mean
from training.rollouts.roller import Rollout

_LEAST_SPREAD = 1e-6
# Limits of the bands of IoU before a turn; masks in the same band are taken to be of equal quality.
_BANDS = (1e-9, 0.3, 0.5, 0.65, 0.8, 0.9)

Values = list[list[np.ndarray]]
"""For each group, for each rollout: (turns,) one number per turn."""


def turn_rewards(rollout: Rollout, settings: RewardSettings) -> list[dict[str, float]]:
    """The unweighted rewards of every turn, for the rewards that have a weight."""
    steps = settings.optimal_steps
    return [{name: rewards.TURN[name](turn.state, steps) for name in settings.turn} for turn in rollout.turns]


def outcome_rewards(rollout: Rollout, settings: RewardSettings) -> dict[str, float]:
    """The unweighted outcome rewards that have a weight."""
    last, steps = rollout.turns[-1].state, settings.optimal_steps
    return {name: rewards.OUTCOME[name](last, steps) for name in settings.outcome}


def weighted_sum(values: dict[str, float], weights: dict[str, float]) -> float:
    return sum(weights[name] * value for name, value in values.items())


def normalised(values: Sequence[float] | np.ndarray, divide: bool = True) -> np.ndarray:
    """(n,) values minus their mean, divided by their standard deviation; zeros if all are equal."""
    values = np.asarray(values, dtype=np.float64)
    spread = float(values.std()) if values.size else 0.0
    if spread < _LEAST_SPREAD:
        return np.zeros_like(values)
    return (values - values.mean()) / (spread if divide else 1.0)


def returns(rollout: Rollout, settings: RewardSettings) -> np.ndarray:
    """(turns,) the return of each turn: its rewards, those of later turns, and the outcome's; no discount."""
    turns = turn_rewards(rollout, settings)
    each = [settings.turn_credit * weighted_sum(one, settings.turn) for one in turns]
    each[-1] += settings.outcome_credit * weighted_sum(outcome_rewards(rollout, settings), settings.outcome)
    return np.cumsum(each[::-1])[::-1]


def differ(group: Sequence[Rollout], settings: RewardSettings) -> bool:
    """Whether the returns of a question's rollouts differ; otherwise there is nothing to learn from them."""
    return bool(np.ptp([returns(each, settings)[0] for each in group]) > _LEAST_SPREAD)


def advantages(groups: Sequence[Sequence[Rollout]], settings: RewardSettings) -> Values:
    """The advantage of every turn. Turns that a branch shares with the rollout it left get 0."""
    if settings.credit == "state":
        return _from_states(groups, settings)
    found = [_among_turns(group, settings) for group in groups]
    if settings.divisor == "batch":
        listed = [value for group in found for each in group for value in each]
        spread = float(np.std(listed)) if listed else 0.0
        found = [[each / max(spread, _LEAST_SPREAD) for each in group] for group in found]
    return found


def _among_turns(group: Sequence[Rollout], settings: RewardSettings) -> list[np.ndarray]:
    divide = settings.divisor == "deviation"
    outcomes = normalised(
        [weighted_sum(outcome_rewards(each, settings), settings.outcome) for each in group], divide
    )
    turns = [[weighted_sum(one, settings.turn) for one in turn_rewards(each, settings)] for each in group]
    found = [np.full(len(mine), settings.outcome_credit * outcomes[n]) for n, mine in enumerate(turns)]
    for number in range(max(len(mine) for mine in turns)):
        there = [n for n, mine in enumerate(turns) if number < len(mine)]
        if len(there) < settings.least:
            continue
        own = normalised([turns[n][number] for n in there], divide)
        for n, value in zip(there, own, strict=True):
            found[n][number] += settings.turn_credit * value
    return found


def _from_states(groups: Sequence[Sequence[Rollout]], settings: RewardSettings) -> Values:
    earned = [[returns(rollout, settings) for rollout in group] for group in groups]
    found = [[np.zeros(len(each)) for each in group] for group in earned]
    places = [
        (g, r, t)
        for g, group in enumerate(groups)
        for r, rollout in enumerate(group)
        for t in range(rollout.own, len(rollout.turns))
    ]
    values = compare(
        [earned[g][r][t] for g, r, t in places],
        [(g, state_of(groups[g][r], t)) for g, r, t in places],
        [band_of(groups[g][r], t) for g, r, t in places],
        settings.least,
        settings.divisor,
    )
    for (g, r, t), value in zip(places, values, strict=True):
        found[g][r][t] = value
    return found


def compare(
    earned: Sequence[float] | np.ndarray,
    equal: Sequence[Hashable],
    alike: Sequence[Hashable],
    least: int,
    divisor: str,
) -> np.ndarray:
    """(n,) the returns `earned` by n turns, minus the baseline of each turn's state.

    Args:
        equal, alike: (n,) keys of identical states, and of states of similar quality. `alike` is used only where
            fewer than `least` turns share the `equal` key.
        divisor: "deviation" of the turns compared, of the whole "batch", or "none".
    """
    values = np.asarray(earned, dtype=np.float64)
    found = np.zeros(len(values))
    for keys in (alike, equal):
        members: dict[Hashable, list[int]] = {}
        for n, key in enumerate(keys):
            members.setdefault(key, []).append(n)
        for together in members.values():
            if len(together) >= least:
                found[together] = normalised(values[together], divisor == "deviation")
    if divisor == "batch" and len(found):
        found /= max(float(found.std()), _LEAST_SPREAD)
    return found


def state_of(rollout: Rollout, turn: int) -> tuple[Any, ...]:
    """A key for a state among those of one question: the actions that led to it."""
    return tuple(each.state.action for each in rollout.turns[:turn])


def band_of(rollout: Rollout, turn: int) -> int:
    """0 to 15: the quality band of the mask before the turn; first turns have bands of their own."""
    first = 8 if turn == 0 else 0
    if not rollout.question.present:
        return first + len(_BANDS) + 1
    return first + bisect(_BANDS, rollout.turns[turn].state.iou_before)


def credit_figures(groups: Sequence[Sequence[Rollout]], values: Values) -> dict[str, float]:
    """The mean advantage by kind of turn, for the curves.

    "credit_click"; "credit_end_good", "credit_end_fair" and "credit_end_poor" for ends on a mask of IoU 0.80 or
    more, 0.50 or more, and less; "credit_absence" and "credit_false_absence" for correct and wrong ends without a
    mask.
    """
    kinds: dict[str, list[float]] = {}
    for group, mine in zip(groups, values, strict=True):
        for rollout, each in zip(group, mine, strict=True):
            for turn, advantage in list(zip(rollout.turns, each, strict=True))[rollout.own :]:
                kinds.setdefault(_kind(turn.state, rollout.question.present), []).append(float(advantage))
    return {f"credit_{kind}": mean(each) for kind, each in sorted(kinds.items()) if kind}


def _kind(state: Any, present: bool) -> str:
    if isinstance(state.action, Prompt):
        return "click"
    if not isinstance(state.action, Terminate):
        return ""
    if not state.after.any():
        return "false_absence" if present else "absence"
    if not present:
        return "end_poor"
    return "end_good" if state.iou_after >= GOOD else "end_poor" if state.iou_after < POOR else "end_fair"
