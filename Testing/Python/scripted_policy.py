"""A policy that plays given replies, for the tests of everything that asks a policy."""

from __future__ import annotations

from collections.abc import Sequence

from ibis_agent.errors import Cancelled, ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import IsCancelled, OnText, Turn


class ScriptedPolicy:
    """Gives the replies in order, streamed in pieces of four letters. `turns`: those it was asked."""

    def __init__(self, replies: Sequence[str], card: ModelCard | None = None, name: str = "scripted") -> None:
        self.card = card or ModelCard(name=name)
        self.identity = {"name": name, "sha256": ""}
        self.turns: list[Turn] = []
        self._replies = list(replies)

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The next reply. Raises ModelError if none is left, and Cancelled between pieces."""
        if len(self.turns) >= len(self._replies):
            raise ModelError(
                "the scripted policy has no reply left",
                value=f"turn {turn.number}",
                remedy="Add more replies to the script.",
            )
        text = self._replies[len(self.turns)]
        for start in range(0, len(text), 4):
            if cancelled is not None and cancelled():
                raise Cancelled()
            if on_text is not None:
                on_text(text[start : start + 4])
        self.turns.append(turn)
        return text
