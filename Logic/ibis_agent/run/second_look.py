"""Second looks: the policy sees a doubtful slice again, and its correction is kept only if it is better.

Better means a higher mean of the segmenter's score and the Dice with the neighbouring slice towards the anchor. If an
earlier look at the slice saw the object elsewhere (see doubtful_slices.seen_otherwise), the policy is not asked again:
the slice is started again from that look's click.
"""

from __future__ import annotations

import time

import numpy as np

from ibis_agent.mask.masks import dice
from ibis_agent.run import growth
from ibis_agent.run.action import RunAction, Watch
from ibis_agent.run.doubtful_slices import Doubt
from ibis_agent.run.episode import Step
from ibis_agent.run.plan import seen_at
from ibis_agent.run.slice_episode import clicks_of, episode_on
from ibis_agent.run.state import RunState

_BETTER = 0.02  # least improvement: any click may shift an edge a little


def look_again(run: RunState, doubt: Doubt, watch: Watch) -> RunAction:
    """Take a second look at a slice. A better correction is kept and propagated; otherwise the mask stays."""
    begun, index, number = time.perf_counter(), doubt.index, run.looks + 1
    words = f"second look {number} of {run.settings.looks}: {doubt.reason}"
    steps: tuple[Step, ...] = (seen_at(run.actions)[index],) if doubt.seen else ()
    if doubt.seen:
        done = "started again"
    else:
        episode, done = episode_on(run, index, run.base(index)), "corrected"
        while episode.halt is None:
            episode.step(watch.text, watch.cancelled, watch.retry)
        steps, left = episode.steps, ""
        if not clicks_of(steps):
            left = "unchanged"
        elif _worth(run, index, episode.mask, steps[-1].score) < _standing_worth(run, index) + _BETTER:
            left = "the correction was no better"
        if left:
            words = f"{words}; {left}"
            return run.done("review", index, "policy", words, begun, watch, steps=steps, look=number)
    clicks = clicks_of(steps)
    run.anchor(index, clicks, doubt.seen)
    corrected = run.done(
        "click", index, "policy", f"{words}; {done}", begun, watch, steps=steps, clicks=clicks, look=number,
        afresh=doubt.seen,
    )  # fmt: skip
    if run.segmenter.can.volume:  # it has updated the neighbours already
        return corrected
    return growth.grow(run, index, True, watch, what="propagated again")


def _standing_worth(run: RunState, index: int) -> float:
    found = run.found[index]
    return _worth(run, index, run.mask(index), found.score)


def _worth(run: RunState, index: int, mask: np.ndarray, score: float | None) -> float:
    """How good a mask of a slice seems, 0 to 1; 0 if it does not overlap the neighbouring mask."""
    if not mask.any():
        return 0.0
    known = [*run.memory.anchors, *([] if run.given.key is None else [run.given.key])]
    anchors = [anchor for anchor in known if anchor != index]
    nearest = min(anchors, key=lambda anchor: abs(anchor - index))
    towards = 1 if nearest > index else -1
    # If propagation lost the object before this slice, compare with the slice beyond instead of the empty one.
    beside = next((run.mask(n) for n in (index + towards, index - towards) if run.mask(n).any()), None)
    fit = 0.0 if beside is None else dice(mask, beside)
    return (fit + (score or 0.0)) / 2 if fit else 0.0
