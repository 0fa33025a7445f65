"""Whole episodes of the policy, of 5 and of 20 turns, without history and with all of it: ours against `generate`.

The turns are given: a phantom with the mask of the turn before painted over it, growing by a disc at every turn.
Both ways answer the same turns with the same weights in the same process, in alternation. Ours keeps within an
episode what it keeps in a run and nothing from the episode before; the published manner computes each turn anew
and writes each reply to its end token. The segmenter, which is the same for both, is left out.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.qwen25.local import LocalPolicy
from ibis_agent.scan.picture import overlay

from training.bench.shown import QUESTIONS, phantom_picture, synchronize, tensors_for_generate

TURNS = (5, 20)
HISTORY = 1000


def episode(count: int, rgb: np.ndarray, colour: tuple[int, int, int], alpha: float) -> list[np.ndarray]:
    """The pictures of so many turns, each (H, W, 3) uint8."""
    height, width = rgb.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    pictures = [rgb]
    for number in range(1, count):
        radius = min(height, width) * 0.3 * number / count
        disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 <= radius**2
        pictures.append(overlay(rgb, disc, colour, alpha))
    return pictures


def measure(policy: LocalPolicy, repeats: int) -> list[dict[str, Any]]:
    """Seconds and passes of every kind of episode: the median over the repeats, after one to warm up."""
    card, found = policy.card, []
    for history in (0, HISTORY):
        policy.card = dataclasses.replace(card, history=history)
        for count in TURNS:
            pictures = episode(count, phantom_picture(0).rgb, card.overlay_colour, card.overlay_alpha)
            seconds: dict[str, list[float]] = {"ours": [], "generate": []}
            passes = tokens = 0
            for _ in range(repeats + 1):
                policy.forget()
                past: tuple[tuple[np.ndarray, str], ...] = ()
                turns, begun, passes, tokens = [], time.perf_counter(), 0, 0
                for number, picture in enumerate(pictures, 1):
                    turn = Turn(picture, QUESTIONS[0], number, number > 1, past if history else ())
                    past = (*past, (picture, policy.reply(turn)))
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
    """For people: milliseconds an episode, and how many times `generate` takes as long."""
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
