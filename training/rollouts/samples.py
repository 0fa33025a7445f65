"""Training samples: the request that inference sends in a state, and the reply to it, as tokens.

    turn = turn_of(card, rgb, question, turns, n)                # the state before turn n of the trajectory
    request = build_request(chat, card, turn)                    # token by token what inference sends
    sample = add_reply(chat, request, reply_of(card, turns[n]))  # loss on the reply and its end token
    batch = collate([sample, …])                                 # padded on the right

Supervised fine-tuning and GRPO both build their tokens here, with the prompt builder, the overlay and the image
processor of ibis_agent. The states of fine-tuning come from training.sft.turn_data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.messages import build_messages, pictures_of
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.training_contract import Chat, Encoded
from torch import Tensor

from training.trajectories.turns import reply_in

IGNORED = -100
"""The label of a token that carries no loss."""


def turn_of(
    card: ModelCard, rgb: np.ndarray, question: str, turns: Sequence[Mapping[str, Any]], n: int
) -> Turn:
    """What the policy sees before its reply `turns[n]`, the same as in inference.

    Args:
        rgb: (H, W, 3) uint8, the picture without a mask.
        turns: of one trajectory from the first: "kind", "reply", "mask_before_rle", optionally "note".
    """

    def mask_after(done: int) -> np.ndarray | None:
        if all(turn["kind"] == "terminate" for turn in turns[:done]):
            return None
        return decode_rle(str(turns[done]["mask_before_rle"]), (rgb.shape[0], rgb.shape[1]))

    said = [reply_of(card, turn) for turn in turns[:n]]
    note = str(turns[n].get("note") or "")
    return observe(card, Situation(rgb, question, said, mask_after, note=note))


def reply_of(card: ModelCard, turn: Mapping[str, Any]) -> str:
    """The reply of a turn in the card's action language."""
    return reply_in(card.speech, str(turn["reply"]))


def build_request(chat: Chat, card: ModelCard, turn: Turn) -> Encoded:
    """The request that inference sends for this turn. Raises InputError if the question is refused."""
    return chat.encode(build_messages(card, turn), pictures_of(card, turn))


def add_reply(chat: Chat, request: Encoded, reply: str | Sequence[int]) -> Encoded:
    """The request followed by a reply; `learn` marks the reply's tokens.

    A text is tokenized and gets the end-of-reply token. The tokens of a rollout are used as sampled, even if the
    same text would be tokenized differently.
    """
    said = chat.reply_tokens(reply) if isinstance(reply, str) else list(reply)
    start = int(request.positions.max()) + 1 if request.ids.size else 0
    positions = np.broadcast_to(np.arange(start, start + len(said), dtype=np.int64), (3, len(said)))
    length = len(request.ids) + len(said)
    return dataclasses.replace(
        request,
        ids=np.concatenate([request.ids, np.asarray(said, dtype=np.int64)]),
        learn=np.concatenate([np.zeros(len(request.ids), bool), np.ones(len(said), bool)]),
        types=np.concatenate([request.types, np.zeros(len(said), np.int64)]),
        positions=np.concatenate([request.positions, positions], axis=1),
        parts=(*request.parts, length),
    )


def labels_of(sample: Encoded) -> np.ndarray:
    """(L,) int64: the tokens that are learned, IGNORED elsewhere. Not shifted."""
    return np.where(sample.learn, sample.ids, IGNORED)


def collate(samples: Sequence[Encoded], pad: int = 0) -> dict[str, Tensor]:
    """Samples of different lengths as one batch, padded on the right with the token `pad`.

    Returns what a Qwen2.5-VL takes: "input_ids", "attention_mask" (B, L), "position_ids" (3, B, L),
    "pixel_values" (all patches), "image_grid_thw" (all pictures), and "labels" (B, L).
    Padding does not change the outputs before it: attention is causal and positions are given.

    Raises InputError for no samples.
    """
    if not samples:
        raise InputError("a batch needs at least one sample")
    count, length = len(samples), max(len(sample.ids) for sample in samples)
    ids = torch.full((count, length), pad, dtype=torch.long)
    there = torch.zeros(count, length, dtype=torch.long)
    labels = torch.full((count, length), IGNORED, dtype=torch.long)
    positions = torch.zeros(3, count, length, dtype=torch.long)
    for row, sample in enumerate(samples):
        end = len(sample.ids)
        ids[row, :end] = torch.from_numpy(sample.ids)
        there[row, :end] = 1
        labels[row, :end] = torch.from_numpy(labels_of(sample))
        positions[:, row, :end] = torch.from_numpy(np.ascontiguousarray(sample.positions))
    return {
        "input_ids": ids,
        "attention_mask": there,
        "position_ids": positions,
        "pixel_values": torch.from_numpy(np.concatenate([sample.pixels for sample in samples])),
        "image_grid_thw": torch.from_numpy(np.concatenate([sample.grid for sample in samples])),
        "labels": labels,
    }


def where_said(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) positions whose logits predict a learned token in any row, and the (B, K) labels they predict.

    A large model's logits take more memory than all its layers. With `logits_to_keep` set to these positions, only
    those of the replies are computed.
    """
    following = labels[:, 1:]
    keep = (following != IGNORED).any(0).nonzero()[:, 0]
    return keep, following[:, keep]
