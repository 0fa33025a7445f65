"""The contract of a policy: it is asked a Turn and replies with text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ibis_agent.policy.card import ModelCard

OnText = Callable[[str], object]
IsCancelled = Callable[[], bool]


@dataclass(frozen=True)
class Turn:
    """What a policy is asked. Only observation.observe builds it.

    Attributes:
        picture: (H, W, 3) uint8 as the policy sees it, with the mask painted over it.
        question: the user's question.
        number: of the turn, from 1.
        has_mask: whether a mask is painted over the picture.
        past: earlier (picture, reply) pairs, oldest first; used if the card has a history.
        note: appended to the text, see prompts.rejection_note and prompts.retry_note.
    """

    picture: np.ndarray
    question: str
    number: int = 1
    has_mask: bool = False
    past: tuple[tuple[np.ndarray, str], ...] = ()
    note: str = ""


class Policy(Protocol):
    """Answers turns with text. `identity` has at least "name" and "sha256"."""

    card: ModelCard
    identity: dict[str, str]

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The reply to one turn.

        on_text: called with the reply in pieces. cancelled: polled at least once per token.

        Raises Cancelled, InputError, ModelError.
        """
        ...


class PolicySource(Protocol):
    """Where a policy comes from, before it is loaded.

    `kind` is for people, such as "Qwen2.5-VL". `str()` identifies the source.
    """

    kind: str

    @property
    def card(self) -> ModelCard:
        """Raises ModelError."""
        ...

    def check(self) -> None:
        """Raise ModelError, before slow work, for whatever `open` would refuse."""
        ...

    def run_bytes(self, precision: str, device: str) -> int:
        """Memory it needs on this machine, in bytes; 0 if it runs elsewhere. Raises ModelError."""
        ...

    def facts(self) -> dict[str, str]:
        """Facts for people, by term. Raises ModelError."""
        ...

    def open(self, device: str = "auto", precision: str = "auto") -> Policy: ...
