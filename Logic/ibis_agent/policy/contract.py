"""What a run needs to know of a policy: it is asked a Turn and replies with text.

`ScriptedPolicy` plays given replies. The kinds of policies that there are lie beside this file, a package each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ibis_agent.errors import Cancelled, ModelError
from ibis_agent.policy.card import ModelCard

OnText = Callable[[str], object]
IsCancelled = Callable[[], bool]


@dataclass(frozen=True)
class Turn:
    """What a policy is asked; built by observation.observe alone.

    Attributes:
        picture: (H, W, 3) uint8 as the policy sees it, the mask already painted over it.
        question: the person's question.
        number: of the turn, from 1.
        has_mask: a mask is painted over the picture.
        past: earlier pictures and replies, oldest first; used if the card has a history.
        note: added to the text, see prompts.rejection_note and prompts.retry_note.
    """

    picture: np.ndarray
    question: str
    number: int = 1
    has_mask: bool = False
    past: tuple[tuple[np.ndarray, str], ...] = ()
    note: str = ""


class Policy(Protocol):
    """Answers turns with text. `identity` holds "name" and "sha256"."""

    card: ModelCard
    identity: dict[str, str]

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The reply to one turn; `on_text` gets it in pieces as they come.

        `cancelled` is asked at least once a token. Raises Cancelled, InputError, ModelError.
        """
        ...


class PolicySource(Protocol):
    """Where a policy comes from, known without loading it. `kind` is for people, such as "Qwen2.5-VL"; `str` names
    the place, the same for the same one."""

    kind: str

    @property
    def card(self) -> ModelCard:
        """Raises ModelError."""
        ...

    def check(self) -> None:
        """Raises ModelError, before slow work, for what `open` would refuse."""
        ...

    def run_bytes(self, precision: str, device: str) -> int:
        """Memory of this machine that it needs, in bytes; 0 for a policy that runs elsewhere. Raises ModelError."""
        ...

    def facts(self) -> dict[str, str]:
        """What there is to know of it, by short terms, for people. Raises ModelError."""
        ...

    def open(self, device: str = "auto", precision: str = "auto") -> Policy: ...


class ScriptedPolicy:
    """Plays given replies in their order, in pieces of a few letters. Keeps the turns that it was asked."""

    def __init__(self, replies: Sequence[str], card: ModelCard | None = None, name: str = "scripted") -> None:
        self.card = card or ModelCard(name=name)
        self.identity = {"name": name, "sha256": ""}
        self.turns: list[Turn] = []
        self._replies = list(replies)

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The next reply. Raises ModelError when none is left, Cancelled between pieces."""
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
