"""A few small trajectories of phantoms in the form that training reads, made without a segmenter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.actions import Click, parse_reply
from ibis_agent.mask.masks import encode_rle, iou
from PIL import Image

from training.common import questions
from training.phantoms.phantom import STRUCTURES, random_slice
from training.trajectories.clicks import next_click
from training.trajectories.mistakes import good_mask, incomplete_mask

SMALLEST = 60


def make_trajectories(folder: Path, pictures: int = 2, seed: int = 90) -> Path:
    """Every structure of so many phantom slices: a first click, a wrong one, its recovery, the end."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for number in range(pictures):
        found = random_slice(seed + number, spacing=3.0)
        grey = np.clip((found.hu + 160) / 400 * 255, 0, 255).astype(np.uint8)
        name = f"pictures/{number}.png"
        Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).save(folder / name)
        for structure in STRUCTURES:
            truth = found.masks[structure]
            if truth.sum() < SMALLEST and truth.any():
                continue
            rng = np.random.default_rng([seed, number, len(lines)])
            lines.append(_record(f"phantom-{number}-{structure}", name, structure, truth, rng))
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


def _record(
    name: str, picture: str, structure: str, truth: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    empty = np.zeros_like(truth)
    turns: list[dict[str, Any]] = []

    def add(reply: str, before: np.ndarray, after: np.ndarray, learn: bool = True) -> None:
        parsed = parse_reply(reply)
        click = parsed.action if isinstance(parsed.action, Click) else None
        turns.append(
            {
                "number": len(turns) + 1,
                "mask_before_rle": encode_rle(before),
                "iou_before": iou(before, truth),
                "kind": "click" if click else "terminate",
                "x": click.x if click else None,
                "y": click.y if click else None,
                "positive": click.positive if click else None,
                "answer": "" if click else parsed.action.answer,
                "thinking": parsed.thinking,
                "reply": reply,
                "learn": learn,
                "mistake": "" if learn else "beside",
                "iou_after": iou(after, truth),
            }
        )

    if not truth.any():
        add(questions.absent_reply(structure), empty, empty)
    else:
        part, whole = incomplete_mask(truth, rng), good_mask(truth, rng)
        first, second = next_click(None, truth), next_click(part, truth)
        assert first is not None
        add(questions.first_reply(structure, first), empty, part)
        add(questions.correction_reply(structure, Click(0.02, 0.03)), part, part, learn=False)
        if second is not None:
            add(questions.correction_reply(structure, second), part, whole)
        add(questions.done_reply(structure), whole, whole)
    return {
        "id": name,
        "image": picture,
        "height": truth.shape[0],
        "width": truth.shape[1],
        "structure": structure,
        "question": questions.question(structure, rng),
        "target_rle": encode_rle(truth),
        "turns": turns,
    }
