"""The contract of a trainable policy: its files, its tokens, and its network. See policy.trainable."""

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
    """A conversation as input of the network: L tokens, P patches of n pictures.

    Attributes:
        ids: (L,) int64.
        learn: (L,) bool, True for the reply and its end token, which training learns. All False without a reply.
        pixels: (P, 3·2·14·14) float32, normalised patches in the model's order.
        grid: (n, 3) int64, number of patches of each picture in time, height and width.
        types: (L,) int64, 1 for picture tokens (`mm_token_type_ids`).
        positions: (3, L) int64, time, row and column for the rotary embedding (`position_ids`).
        parts: rising token positions, ending with L, that cut the conversation into parts which stay the same in
            later turns: after the system message, and where the assistant starts to write.
    """

    ids: np.ndarray
    learn: np.ndarray
    pixels: np.ndarray
    grid: np.ndarray
    types: np.ndarray
    positions: np.ndarray
    parts: tuple[int, ...]


class Chat(Protocol):
    """Conversations → tokens and pixels, and tokens → text, for inference and training."""

    tokenizer: Any
    pictures: Any
    stops: frozenset[int]

    def encode(
        self, messages: Sequence[Message], pictures: Sequence[np.ndarray], reply: str | None = None
    ) -> Encoded:
        """A conversation up to the start of the reply, or with the reply. Raises InputError."""
        ...

    def length(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> int:
        """The number of tokens that `encode` gives for pictures of these (height, width)."""
        ...

    def as_seen(self, picture: np.ndarray) -> np.ndarray:
        """An (H, W, 3) uint8 picture in the size that the policy sees: (h, w, 3) uint8."""
        ...

    def reply_tokens(self, reply: str) -> list[int]:
        """The tokens of a reply, with its end token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens → text, without control tokens."""
        ...


class Trainable(Protocol):
    """A policy in a folder, for training."""

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
