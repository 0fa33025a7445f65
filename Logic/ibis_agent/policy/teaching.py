"""What training needs of a family of policies: its files, how it reads a conversation, and the network that learns.

`policy.trainable(folder)` tells the families apart; those that training does not know are refused there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from ibis_agent.policy.card import ModelCard
    from ibis_agent.policy.folder import PolicyFolder
    from ibis_agent.policy.messages import Message


@dataclass(frozen=True, eq=False)
class Encoded:
    """One conversation as the network takes it; L tokens, P patches of n pictures.

    Attributes:
        ids: (L,) int64.
        learn: (L,) bool, the tokens of the reply and its end: what training learns. All False if no reply.
        pixels: (P, 3·2·14·14) float32, normalised patches in the model's order.
        grid: (n, 3) int64, every picture's patches in time, height and width.
        types: (L,) int64, 1 where a token stands for a part of a picture (`mm_token_type_ids`).
        positions: (3, L) int64, time, row and column for the rotary embedding (`position_ids`).
        parts: where the conversation can be cut so that the parts before stay the same in later turns: after
            the system message, and where the assistant begins to write. Rising, ends with L.
    """

    ids: np.ndarray
    learn: np.ndarray
    pixels: np.ndarray
    grid: np.ndarray
    types: np.ndarray
    positions: np.ndarray
    parts: tuple[int, ...]


class Chat(Protocol):
    """Conversations → tokens and pixels, and tokens → text: the same for inference and training."""

    tokenizer: Any
    pictures: Any
    stops: frozenset[int]

    def encode(
        self, messages: Sequence[Message], pictures: Sequence[np.ndarray], reply: str | None = None
    ) -> Encoded:
        """A conversation up to where the assistant begins to write, or with its reply. Raises InputError."""
        ...

    def length(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> int:
        """How many tokens `encode` would give for pictures of these (height, width)."""
        ...

    def as_seen(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8: an (H, W, 3) uint8 picture in the size in which the policy sees it."""
        ...

    def reply_tokens(self, reply: str) -> list[int]:
        """A reply as the assistant writes it, with the token that ends it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens → text without control tokens."""
        ...


class Trainable(Protocol):
    """The policy of a folder, as training takes it."""

    def inspect(self, weights_only: bool = False) -> PolicyFolder:
        """See folder.look_into. Raises ModelError."""
        ...

    def chat(self, card: ModelCard) -> Chat:
        """Raises ModelError."""
        ...

    def network(self, found: PolicyFolder, device: str, precision: str) -> Any:
        """The transformers model of what `inspect` found, frozen and in evaluation mode.

        precision: "fp32", "bf16" or "fp16". Raises ModelError.
        """
        ...
