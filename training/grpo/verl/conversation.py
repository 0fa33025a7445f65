"""One episode as one growing conversation: tokens in, tokens out, which of them the policy wrote, what came of it.

verl trains on a whole episode as one sequence: earlier pictures and replies stay before the later ones. That is
what a policy sees whose model card keeps a history (`history: 20`); one trained without should be fine-tuned
with it first. The tokens are those of the agent's own requests. Needs no verl: loop, tool and reward drive it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from ibis_agent.actions import Click
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.messages import pictures_of
from ibis_agent.policy.qwen25.chat import Chat
from ibis_agent.run.episode import Limits
from ibis_agent.segmenter.contract import PictureSegmenter

from training.rollouts.roller import Question, Rollout, read_action
from training.rollouts.samples import build_request
from training.rollouts.sampling import Sample

_ALL = 1000  # turns kept in the conversation: all of them


class Player:
    """Plays one episode's replies: the rollout so far, and the segmenter that does its clicks."""

    def __init__(self, question: Question, segmenter: PictureSegmenter, limits: Limits) -> None:
        self.rollout = Rollout(question)
        self.segmenter, self.limits = segmenter, limits

    def take(self, said: Sample) -> bool:
        """Do what a reply asks for; whether the episode is over. Slow: the segmenter runs."""
        rollout, found = self.rollout, None
        action = read_action(said.text)
        if isinstance(action, Click) and not rollout.repeats(action, self.limits):
            embedding = self.segmenter.embed(rollout.question.rgb)
            found = self.segmenter.predict(embedding, [*rollout.clicks, action], rollout.logits)
        rollout.take(None, said, action, found, self.limits)
        return bool(rollout.reason)

    def take_text(self, text: str) -> bool:
        """`take` for a reply whose tokens nobody needs."""
        return self.take(Sample(text, (), np.zeros(0, np.float32)))


class Conversation:
    """The tokens of one episode.

        talk = Conversation(chat, card, player)
        while True:
            said = talk.add_reply(ids, logprobs)     # what the policy wrote after talk.tokens
            if player.take(said):
                break
            talk.add_turn()

    Attributes:
        prompt: tokens up to the first reply.
        ids, mask, logprobs: of everything after it, equally long; 1 in `mask` where the policy wrote.
        pictures: (H, W, 3) uint8, in the order of their tokens.
    """

    def __init__(self, chat: Chat, card: ModelCard, player: Player) -> None:
        self.chat, self.player = chat, player
        self.card = dataclasses.replace(card, history=_ALL)
        self.pictures: list[np.ndarray] = []
        self.prompt = self._encoded()[0]
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []

    @property
    def tokens(self) -> list[int]:
        """The whole sequence so far."""
        return [*self.prompt, *self.ids]

    def add_reply(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> Sample:
        """What the policy wrote; its tokens are kept as they are."""
        chances = np.zeros(len(ids), np.float32) if logprobs is None else np.asarray(logprobs, np.float32)
        self.ids += ids
        self.mask += [1] * len(ids)
        self.logprobs += chances.tolist()
        return Sample(self.chat.decode(ids), tuple(ids), chances)

    def add_turn(self) -> None:
        """The picture and the text of the next turn, after the player has taken the last reply."""
        last = self.player.rollout.turns[-1].said
        ids, start = self._encoded()
        # Behind the last reply stand its end and a line break; a reply that ended by itself has its end.
        ended = bool(last.ids) and last.ids[-1] in self.chat.stops
        more = ids[start + len(self.chat.reply_tokens(last.text)) - 1 + ended :]
        self.ids += more
        self.mask += [0] * len(more)
        self.logprobs += [0.0] * len(more)

    def _encoded(self) -> tuple[list[int], int]:
        """(tokens up to where the assistant is to write, where the last reply among them begins)."""
        turn = self.player.rollout.observed(self.card)
        self.pictures = pictures_of(self.card, turn)
        encoded = build_request(self.chat, self.card, turn)
        return encoded.ids.tolist(), encoded.parts[-2] if len(encoded.parts) > 1 else 0
