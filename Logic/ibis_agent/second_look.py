"""Second looks: a doubtful slice is shown to the policy again, and its correction is judged before it counts.

A correction counts when its mask is better than the one before it: by the segmenter's own score, and by how well it
fits the slice beside it, on the side that the object came from. Where the looks for the key slice had seen the object
elsewhere, and agree with each other, the policy's word is known already: the slice is begun afresh with that click.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from . import volume_growth
from .actions import Click
from .doubt import Doubt
from .masks import dice
from .volume_actions import VolumeAction, Watch
from .volume_plan import seen_at
from .volume_slice import clicks_of, episode_on

if TYPE_CHECKING:
    from .volume_run import VolumeRun

_BETTER = 0.02  # by so much a correction must be better: a click may always shift an edge a little


def look_again(run: VolumeRun, doubt: Doubt, watch: Watch) -> VolumeAction:
    """One look at a slice; corrected and redone if that makes it better, else told and left."""
    begun, index, number = time.perf_counter(), doubt.index, run.looks + 1
    words = f"look {number} of {run.limits.looks}: {doubt.reason}"
    if doubt.seen:
        step = seen_at(run.actions)[index]
        assert isinstance(step.action, Click)
        run.anchor(index, (step.action,), afresh=True)
        run.done(
            "click", index, "policy", f"{words}; begun there afresh", begun, watch, steps=(step,),
            clicks=(step.action,), look=number, afresh=True,
        )  # fmt: skip
        return volume_growth.grow(run, index, True, watch, what="neighbours redone")
    base = run.base(index)
    episode = episode_on(run, index, base)
    while episode.status == "ready":
        episode.step(watch.text, watch.cancelled, watch.retry)
    clicks = clicks_of(episode.steps)
    if not clicks:
        words = f"{words}; left as it was"
    elif _worth(run, index, episode.mask, episode.steps[-1].score) < _standing_worth(run, index) + _BETTER:
        words = f"{words}; the correction fitted no better"
    else:
        run.anchor(index, clicks)
        run.done(
            "click", index, "policy", f"{words}; corrected", begun, watch, steps=episode.steps, clicks=clicks,
            look=number,
        )  # fmt: skip
        return volume_growth.grow(run, index, True, watch, what="neighbours redone")
    return run.done("review", index, "policy", words, begun, watch, steps=episode.steps, look=number)


def _standing_worth(run: VolumeRun, index: int) -> float:
    found = run.found[index]
    return _worth(run, index, run.mask(index), found.score)


def _worth(run: VolumeRun, index: int, mask: np.ndarray, score: float | None) -> float:
    """How good a mask of a slice seems, 0 to 1; one that touches nothing beside it is worth nothing."""
    if not mask.any():
        return 0.0
    anchors = [anchor for anchor in run.memory.anchors if anchor != index]
    nearest = min(anchors, key=lambda anchor: abs(anchor - index))
    towards = 1 if nearest > index else -1
    # Where the object was lost on the way, the slice beyond tells more than the empty one before.
    beside = next((run.mask(n) for n in (index + towards, index - towards) if run.mask(n).any()), None)
    fit = 0.0 if beside is None else dice(mask, beside)
    return (fit + (score or 0.0)) / 2 if fit else 0.0
