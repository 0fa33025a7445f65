"""One episode, reply by reply. The agent loop, the tool and the reward function use it; it does not need verl."""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Prompt
from ibis_agent.policy.language import IBIS, Language
from ibis_agent.run.episode import Limits
from ibis_agent.segmenter.contract import PictureSegmenter

from training.rollouts.roller import Question, Rollout, read_action
from training.rollouts.sampling import Sample


class Player:
    """The rollout of one episode so far, and the segmenter that does its clicks and boxes."""

    def __init__(
        self, question: Question, segmenter: PictureSegmenter, limits: Limits, language: Language = IBIS
    ) -> None:
        self.rollout = Rollout(question, language=language)
        self.segmenter, self.limits = segmenter, limits

    def take(self, said: Sample) -> bool:
        """Do a reply's action and return whether the episode is over. Slow: runs the segmenter."""
        rollout, found = self.rollout, None
        action = read_action(said.text, rollout.language)
        if isinstance(action, Prompt) and not rollout.repeats(action, self.limits):
            embedding = self.segmenter.embed(rollout.question.rgb)
            found = self.segmenter.predict(embedding, [*rollout.prompts, action], rollout.logits)
        rollout.take(None, said, action, found, self.limits)
        return bool(rollout.reason)

    def take_text(self, text: str) -> bool:
        """`take` for a reply whose tokens are not needed."""
        return self.take(Sample(text, (), np.zeros(0, np.float32)))
