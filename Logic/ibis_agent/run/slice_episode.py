"""Episodes on the slices of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ibis_agent.actions import Prompt
from ibis_agent.run.episode import Episode, Step, note_of_rejection
from ibis_agent.run.plan import steps_on
from ibis_agent.run.state import RunState
from ibis_agent.segmenter.contract import Prediction


def episode_on(
    run: RunState, index: int, standing: Prediction | None = None, steps: Sequence[Step] = ()
) -> Episode:
    """An episode on a slice, with the note on its step if the person took that back last.

    standing: the mask before `steps`; None if there was none.
    """

    def predict(clicks: Sequence[Prompt], previous_logits: np.ndarray | None) -> Prediction:
        made = run.memory.predict(index, clicks, previous_logits)
        return replace(made, mask=run.within(index, made.mask))

    if standing is not None:
        standing = replace(standing, mask=run.within(index, standing.mask))
    picture, rejected, note = run.slices.picture(index), run.rejected, ""
    if rejected is not None and rejected.index == index and rejected.steps:
        note = note_of_rejection(run.policy, rejected.steps[-1], picture.frame)
    return Episode(picture, run.question, run.policy, predict, run.limits, standing, steps, note)


def key_episode(run: RunState) -> Episode:
    """The episode on the key slice, after the run's steps there."""
    key = run.key
    assert key is not None
    return episode_on(run, key, run.base(key), steps_on(run.actions, key))


def clicks_of(steps: Sequence[Step]) -> tuple[Prompt, ...]:
    """The prompts of the steps, in order."""
    return tuple(step.action for step in steps if isinstance(step.action, Prompt))
