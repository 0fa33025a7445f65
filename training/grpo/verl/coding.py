"""What a turn tells the advantage estimator through the only numbers that reach it: its token-level rewards.

verl hands an estimator the rewards of tokens, the mask of replies and the question's id, nothing else. So what the
turn earned from there on stands at its last token, and before it the state that it was in: a whole number times
2⁻⁶⁰, exact in float32 and far too small to be seen in a sum. Needs no verl.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.grpo.credit import band_of, compare, state_of
from training.rollouts.roller import Rollout

_UNIT = 2.0**-60
_BANDS = 16  # room for what band_of gives
_MOST = 2**24  # whole numbers below it are exact in float32


def state_code(rollout: Rollout, turn: int) -> int:
    """From 1 to 2²⁴: which state the turn was in (by a hash), and what it is alike (by its rest over 16)."""
    digest = hashlib.blake2b(repr(state_of(rollout, turn)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % (_MOST // _BANDS - 1) * _BANDS + band_of(rollout, turn) + 1


def encoded(earned: float, state: int, length: int) -> Tensor:
    """(length,) float32, what `decoded` reads. A reply of one token has no room for its state, and no credit."""
    values = torch.zeros(length, dtype=torch.float32)
    values[-1] = earned
    if length > 1:
        values[-2] = state * _UNIT
    return values


def decoded(rewards: Tensor, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """((B,) earned, (B,) state) of (B, L) token-level rewards; state 0 where there is none, as in padding."""
    lengths = mask.long().sum(-1)
    rows = torch.arange(len(rewards))
    earned = rewards[rows, (lengths - 1).clamp(min=0)].double()
    state = (rewards[rows, (lengths - 2).clamp(min=0)].double() / _UNIT).round().long()
    return earned.numpy(), torch.where(lengths > 1, state, torch.zeros_like(state)).numpy()


def advantages_of(
    rewards: Tensor, mask: Tensor, index: Any, least: int = 4, divisor: str = "batch"
) -> Tensor:
    """(B, L) the advantages of training.grpo.credit, "state", for a batch of turns. index: (B,) question ids."""
    earned, states = decoded(rewards.detach().cpu(), mask.cpu())
    there = np.flatnonzero(states > 0)
    values = np.zeros(len(states))
    values[there] = compare(
        earned[there],
        [(str(index[n]), int(states[n])) for n in there],
        [int(states[n] - 1) % _BANDS for n in there],
        least,
        divisor,
    )
    return torch.from_numpy(values).to(rewards)[:, None] * mask
