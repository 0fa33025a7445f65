"""Whole episodes of 5 and 20 turns, without history and with all of it: this policy's decoder against `generate`.

The turns are given: a phantom with the mask of the turn before, a disc that grows with every turn. Both answer the same
turns with the same weights, alternating in one process. Our decoder keeps what it keeps in a run, but nothing from the
episode before; `generate` computes each turn from scratch and writes each reply to its end token. The segmenter, which
is the same for both, is left out.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.qwen25.local import LocalPolicy

from training.bench.shown import QUESTIONS, phantom_picture, synchronize, tensors_for_generate

TURNS = (5, 20)
HISTORY = 1000


def masks_of(count: int, size: tuple[int, int]) -> list[np.ndarray | None]:
    """The (H, W) bool mask of each of `count` turns; None for the first."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    away = (rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2
    return [None, *(away <= (min(size) * 0.3 * number / count) ** 2 for number in range(1, count))]


def measure(policy: LocalPolicy, repeats: int) -> list[dict[str, Any]]:
    """Median seconds and passes of each kind of episode over the repeats, after one warm-up."""
    card, found = policy.card, []
    for history in (0, HISTORY):
        policy.card = dataclasses.replace(card, history=history)
        for count in TURNS:
            rgb = phantom_picture(0).rgb
            masks = masks_of(count, (rgb.shape[0], rgb.shape[1]))
            seconds: dict[str, list[float]] = {"ours": [], "generate": []}
            passes = tokens = 0
            for _ in range(repeats + 1):
                policy.forget()
                replies: list[str] = []
                turns, begun, passes, tokens = [], time.perf_counter(), 0, 0
                for _turn in range(count):
                    turn = observe(
                        policy.card, Situation(rgb, QUESTIONS[0], tuple(replies), masks.__getitem__)
                    )
                    replies.append(policy.reply(turn))
                    turns.append(turn)
                    assert policy.last is not None
                    passes, tokens = passes + policy.last.forwards + 1, tokens + len(policy.last.ids)
                synchronize(policy)
                seconds["ours"].append(time.perf_counter() - begun)
                begun = time.perf_counter()
                for turn in turns:
                    with torch.inference_mode():
                        policy.model.generate(
                            **tensors_for_generate(policy, turn, turn.picture),
                            max_new_tokens=card.max_new_tokens,
                            do_sample=False,
                        )
                synchronize(policy)
                seconds["generate"].append(time.perf_counter() - begun)
            medians = {kind: float(np.median(values[1:])) for kind, values in seconds.items()}
            found.append(
                {"history": bool(history), "turns": count, "passes": passes, "tokens": tokens, **medians}
            )
    policy.card = card
    return found


def table(found: list[dict[str, Any]]) -> str:
    """A table for the terminal: milliseconds per episode, and the ratio."""
    lines = [
        f"{'episode, milliseconds':32}{'ours':>10}{'generate':>10}{'ratio':>8}{'tokens':>8}{'passes':>8}"
    ]
    for row in found:
        name = f"{row['turns']} turns, {'all' if row['history'] else 'no'} history"
        lines.append(
            f"{name:32}{1000 * row['ours']:10.1f}{1000 * row['generate']:10.1f}"
            f"{row['generate'] / row['ours']:8.2f}{row['tokens']:8}{row['passes']:8}"
        )
    return "\n".join(lines)
