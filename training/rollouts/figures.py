"""What rollouts came to, in figures for curves and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from ibis_agent.actions import Terminate

from training.rollouts.roller import Rollout

GOOD, POOR = 0.80, 0.50  # IoU of a mask that is worth ending on, and of one that is not


def figures_of(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over rollouts; what cannot be known is left out.

    Boxes count as clicks. `iou`, `dice`, `clicks`, `hit` are over the questions whose structure is there,
    `absent_recall` over the others, `false_absence` the share of the first that ended without a click. `quality` is
    over all: the IoU, 1 for "not there" said rightly, 0 for a reply that could not be read. Ends by the mask that they
    leave, of the rollouts about what is there that end after a click: `ends_good` (IoU of 0.80 or more), `ends_poor`
    (below 0.50), and `ends_iou`, their mean.
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
    """The final IoU, which is 1 where nothing is there and nothing was marked; 0 after an unreadable reply."""
    return 0.0 if rollout.turns[-1].state.action is None else rollout.iou


def mean(values: Iterable[float]) -> float:
    """NaN for no values."""
    listed = [float(each) for each in values]
    return float(np.mean(listed)) if listed else float("nan")
