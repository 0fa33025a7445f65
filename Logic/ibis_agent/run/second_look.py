"""Second looks: a doubtful slice is shown to the policy again, and its correction is judged before it counts.

A correction counts when its mask is better than the one before it: by the segmenter's own score, and by how well it
fits the slice beside it, on the side that the object came from. Where the looks for the key slice had seen the object
elsewhere, and agree with each other, the policy's word is known already: the slice is begun afresh with that click.
"""

from __future__ import annotations

import time

import numpy as np

from ibis_agent.mask.masks import dice
from ibis_agent.run import growth
from ibis_agent.run.action import RunAction, Watch
from ibis_agent.run.doubt import Doubt
from ibis_agent.run.episode import Step
from ibis_agent.run.plan import seen_at
from ibis_agent.run.state import RunState
from ibis_agent.run.work import clicks_of, episode_on

_BETTER = 0.02  # by so much a correction must be better: a click may always shift an edge a little


def look_again(run: RunState, doubt: Doubt, watch: Watch) -> RunAction:
    """One look at a slice; corrected and redone if that makes it better, else told and left."""
    begun, index, number = time.perf_counter(), doubt.index, run.looks + 1
    words = f"second look {number} of {run.settings.looks}: {doubt.reason}"
    steps: tuple[Step, ...] = (seen_at(run.actions)[index],) if doubt.seen else ()
    if doubt.seen:
        done = "started again there"
    else:
        episode, done = episode_on(run, index, run.base(index)), "corrected"
        while episode.halt is None:
            episode.step(watch.text, watch.cancelled, watch.retry)
        steps, left = episode.steps, ""
        if not clicks_of(steps):
            left = "unchanged"
        elif _worth(run, index, episode.mask, steps[-1].score) < _standing_worth(run, index) + _BETTER:
            left = "the correction did not fit better"
        if left:
            words = f"{words}; {left}"
            return run.done("review", index, "policy", words, begun, watch, steps=steps, look=number)
    clicks = clicks_of(steps)
    run.anchor(index, clicks, doubt.seen)
    corrected = run.done(
        "click", index, "policy", f"{words}; {done}", begun, watch, steps=steps, clicks=clicks, look=number,
        afresh=doubt.seen,
    )  # fmt: skip
    if run.segmenter.can.volume:  # the neighbours are redone already
        return corrected
    return growth.grow(run, index, True, watch, what="propagated again")


def _standing_worth(run: RunState, index: int) -> float:
    found = run.found[index]
    return _worth(run, index, run.mask(index), found.score)


def _worth(run: RunState, index: int, mask: np.ndarray, score: float | None) -> float:
    """How good a mask of a slice seems, 0 to 1; one that touches nothing beside it is worth nothing."""
    if not mask.any():
        return 0.0
    known = [*run.memory.anchors, *([] if run.given.key is None else [run.given.key])]
    anchors = [anchor for anchor in known if anchor != index]
    nearest = min(anchors, key=lambda anchor: abs(anchor - index))
    towards = 1 if nearest > index else -1
    # Where the object was lost on the way, the slice beyond tells more than the empty one before.
    beside = next((run.mask(n) for n in (index + towards, index - towards) if run.mask(n).any()), None)
    fit = 0.0 if beside is None else dice(mask, beside)
    return (fit + (score or 0.0)) / 2 if fit else 0.0
