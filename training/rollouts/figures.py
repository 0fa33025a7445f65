"""Figures of rollouts for curves and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from ibis_agent.actions import Terminate

from training.rollouts.roller import Rollout

GOOD, POOR = 0.80, 0.50  # IoU from which a mask is good, and below which it is poor


def figures_of(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over rollouts, without those that have no values. Boxes count as clicks.

    Over rollouts whose structure is present: `iou`, `dice`, `clicks`, `hit` (first click on the structure),
    `false_absence` (ended without a click); of those that terminated after a click, `ends_iou` is the mean final IoU,
    `ends_good` the share with 0.80 or more, `ends_poor` the share below 0.50.
    Over rollouts whose structure is absent: `absent_recall`.
    Over all: `turns`, `ended` (terminated), `unreadable`, and `quality` (see quality).
    """
    present = [each for each in rollouts if each.question.present]
    absent = [each for each in rollouts if not each.question.present]
    ends = [
        each.iou for each in present if each.prompts and isinstance(each.turns[-1].state.action, Terminate)
    ]
    found = {
        "iou": mean(each.iou for each in present),
        "dice": mean(each.dice for each in present),
        "clicks": mean(len(each.prompts) for each in present),
        "hit": mean(each.hit for each in present),
        "false_absence": mean(each.said_absent for each in present),
        "absent_recall": mean(each.said_absent for each in absent),
        "turns": mean(len(each.turns) for each in rollouts),
        "ended": mean(isinstance(each.turns[-1].state.action, Terminate) for each in rollouts),
        "ends_iou": mean(ends),
        "ends_good": mean(each >= GOOD for each in ends),
        "ends_poor": mean(each < POOR for each in ends),
        "unreadable": mean(each.turns[-1].state.action is None for each in rollouts),
        "quality": mean(quality(each) for each in rollouts),
    }
    return {name: value for name, value in found.items() if not np.isnan(value)}


def quality(rollout: Rollout) -> float:
    """The final IoU, which is 1 for an absent structure and an empty mask; 0 after an unreadable reply."""
    return 0.0 if rollout.turns[-1].state.action is None else rollout.iou


def mean(values: Iterable[float]) -> float:
    """The mean; NaN if there are no values."""
    listed = [float(each) for each in values]
    return float(np.mean(listed)) if listed else float("nan")
