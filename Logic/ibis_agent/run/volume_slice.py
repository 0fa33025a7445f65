"""The policy at work on one slice of a volume run: an episode that knows what the other slices taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ibis_agent.actions import Click
from ibis_agent.run.episode import Episode, Step
from ibis_agent.segmenter.contract import Prediction

if TYPE_CHECKING:
    from ibis_agent.run.volume_run import VolumeRun


class SliceSegmenter:
    """The segmenter as an episode on one slice of a run sees it: features kept, other slices remembered."""

    def __init__(self, run: VolumeRun, index: int) -> None:
        self._run, self._index = run, index
        self.identity = run.segmenter.identity
        self.frame = run.slices.picture(index).frame  # the run's memory sees that alone

    def embed(self, rgb: np.ndarray) -> Any:
        """Nothing to do: the slice's features are kept by the run."""
        return None

    def predict(
        self, embedding: Any, clicks: Sequence[Click], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        made = self._run.memory.predict(self._index, clicks, previous_logits)
        mask = self._run.within(self._index, made.mask)
        return Prediction(mask, made.logits, made.score, made.scores)


def episode_on(run: VolumeRun, index: int, standing: Prediction | None = None) -> Episode:
    """A fresh episode on a slice; `standing`: the mask that is there."""
    picture, segmenter = run.slices.picture(index), SliceSegmenter(run, index)
    if standing is not None:
        standing = replace(standing, mask=run.within(index, standing.mask))
    episode = Episode(picture, run.question, run.policy, segmenter, run.limits.episode, standing)
    _resume(run, index, episode, [])
    return episode


def _resume(run: VolumeRun, index: int, episode: Episode, steps: Sequence[Step]) -> None:
    """Let the episode stand after `steps`, and know of the action there that the person took back."""
    rejected = run.rejected
    back = rejected is not None and rejected.index == index
    if rejected is not None and back:
        steps = [*steps, *rejected.steps[-1:]]
    ready: list[Step] = []
    for number, step in enumerate(steps, 1):
        step = replace(step, number=number)
        ready.append(episode.relive(ready, step) if step.logits is None else step)
    if ready:
        episode.restore(ready)
    if back:
        episode.reject()


def key_episode(run: VolumeRun) -> Episode:
    """The episode on the key slice as the run's actions there have left it."""
    key = run.key
    assert key is not None
    episode = episode_on(run, key, run.base(key))
    steps: list[Step] = []
    for action in run.actions:
        if action.index == key and action.kind == "click" and not action.look:
            # A click that was moved takes the place of an earlier one, and of all after that.
            steps = [*steps[: len(action.clicks) - 1], *action.steps[-1:]]
    _resume(run, key, episode, steps)
    return episode


def clicks_of(steps: Sequence[Step]) -> tuple[Click, ...]:
    """The clicks among steps, in their order."""
    return tuple(step.action for step in steps if isinstance(step.action, Click))
