"""Questions and replies of the demo policy as token ids with loss weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from ibis_agent.policy.card import card_from_json
from ibis_agent.policy.messages import build_messages
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.qwen25.chat import Chat, rotary_positions
from ibis_agent.policy.qwen25.pictures import PictureProcessor
from tokenizers import Tokenizer

from training.demo.empty_policy import DEMO_CARD, PATCH, token_id
from training.demo.policy_clicks import STEPS, digit_worth

CARD = card_from_json(DEMO_CARD)
_POINT = re.compile(r"Point \(([\d.]+), ([\d.]+)\)")


@dataclass
class Asked:
    """The prompt and reply of one question as token ids and loss weights.

    goal: the reply's click (x, y), 0 to 1. worth: (index in ids, (10,) worth of each digit) for the click's digits.
    """

    ids: list[int]
    weights: list[float]
    goal: tuple[float, float] | None = None
    worth: list[tuple[int, np.ndarray]] = field(default_factory=list)


class Writer:
    """Turns questions and replies into token ids with loss weights.

    Requests are built as in inference (observe, build_messages, Chat), but with only a placeholder for the picture,
    so that several questions can share its tokens.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer, PictureProcessor(PATCH), frozenset({token_id(tokenizer, "<|im_end|>")}))
        self.prefix, _ = self._around("liver")
        self.digits = [token_id(tokenizer, str(digit)) for digit in range(10)]

    def text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _around(self, question: str, masked: bool = False, note: str = "") -> tuple[list[int], list[int]]:
        """(tokens before the picture, which are the same for every question; tokens after it)."""
        nothing = np.zeros((1, 1, 3), np.uint8)
        before = Situation(nothing, question, note=note)
        if masked:
            mask = np.zeros((1, 1), bool)
            before = Situation(nothing, question, [""], lambda done: mask, note=note)
        ids, _ = self.chat.conversation(build_messages(CARD, observe(CARD, before)), [1])
        at = ids.index(self.chat.picture_token)
        return ids[:at], ids[at + 1 :]

    def start(self, grid: tuple[int, int]) -> tuple[list[int], np.ndarray]:
        """The L tokens up to and including a picture of (rows, columns) tokens, and their (3, L) rotary positions."""
        visual = grid[0] * grid[1]
        types = np.repeat([0, 1], [len(self.prefix), visual])
        ids = self.prefix + [self.chat.picture_token] * visual
        return ids, rotary_positions(types, np.array([[1, *grid]]), 1)

    def ask(
        self,
        question: str,
        reply: str,
        worth: np.ndarray | None = None,
        *,
        masked: bool = False,
        note: str = "",
    ) -> Asked:
        """One question and its reply.

        Args:
            worth: (STEPS, STEPS) [x, y] of clicks at other points than the reply's.
            masked: whether a mask is over the picture.
            note: see prompts.rejection_note and prompts.retry_note.
        """
        _, before = self._around(question, masked, note)
        said = self.chat.reply_tokens(reply)
        weights = [1.0] * len(said)
        run = 0
        for i, token in enumerate(said):
            run = run + 1 if token in self.digits else 0
            # "0.dd00": only the second and third digit of each number matter.
            if token in self.digits:
                dotted = i >= 1 and self.tokenizer.id_to_token(said[i - 1]) == "."
                weights[i] = 8.0 if dotted else 4.0 if run == 2 else 0.3
        asked = Asked(before + said, [0.0] * len(before) + weights)
        found = _POINT.search(reply)
        if found:
            asked.goal = float(found[1]), float(found[2])
        if asked.goal and worth is not None:
            places = [len(before) + i for i, w in enumerate(weights) if w >= 4.0]
            x, y = (round(v * STEPS) for v in asked.goal)
            asked.worth = list(zip(places, digit_worth(worth, x, y), strict=True))
        return asked
