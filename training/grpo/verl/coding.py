"""A turn's return and state, encoded in its token-level rewards.

verl passes an advantage estimator only token-level rewards, the response mask and the question's id. So the turn's
return is put at its last token, and its state at the token before: an integer times 2⁻⁶⁰, exact in float32 and too
small to matter in a sum. Does not need verl.
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
_BANDS = 16  # at least as many as band_of has
LEAST = 4
"""The smallest number of turns to compare."""
_MOST = 2**24  # integers up to it are exact in float32


def state_code(rollout: Rollout, turn: int) -> int:
    """1 to 2²⁴: a hash of the turn's state in the upper bits, its quality band as (code − 1) modulo 16."""
    digest = hashlib.blake2b(repr(state_of(rollout, turn)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % (_MOST // _BANDS - 1) * _BANDS + band_of(rollout, turn) + 1


def encoded(earned: float, state: int, length: int) -> Tensor:
    """(length,) float32, read by `decoded`. A reply of one token has no room for its state and gets no advantage."""
    values = torch.zeros(length, dtype=torch.float32)
    values[-1] = earned
    if length > 1:
        values[-2] = state * _UNIT
    return values


def decoded(rewards: Tensor, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """((B,) returns, (B,) states) of (B, L) token-level rewards; state 0 if there is none, as for padding."""
    lengths = mask.long().sum(-1)
    rows = torch.arange(len(rewards))
    earned = rewards[rows, (lengths - 1).clamp(min=0)].double()
    state = (rewards[rows, (lengths - 2).clamp(min=0)].double() / _UNIT).round().long()
    return earned.numpy(), torch.where(lengths > 1, state, torch.zeros_like(state)).numpy()


def advantages_of(
    rewards: Tensor, mask: Tensor, index: Any, least: int = LEAST, divisor: str = "batch"
) -> Tensor:
    """(B, L) "state" advantages of training.grpo.credit for a batch of turns. index: (B,) ids of the questions."""
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
