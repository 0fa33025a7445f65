"""Masks in half precision compared with fp32: Dice of clicks on phantoms.

    python -m training.bench.halves [--segmenter F] [--device cuda] [--pictures 8]

On CUDA a segmenter runs in fp16, as published; bf16 would be acceptable with a Dice of 0.999. On a CPU, autocast rounds
as on a GPU, but is slower.
"""

from __future__ import annotations

from typing import Any

import ibis_agent.segmenter as segmenters
import numpy as np
import torch
from ibis_agent.actions import Click
from ibis_agent.mask.masks import dice

from training.bench.shown import phantom_picture
from training.common.commands import command_parser

CLICKS = 4
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def measure(segmenter: Any, pictures: int) -> dict[str, np.ndarray]:
    """Dice of every click's mask by precision. segmenter: in fp32."""
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for number in range(pictures):
        rgb = phantom_picture(number).rgb
        clicks = [Click(float(x), float(y)) for x, y in random.uniform(0.3, 0.7, (CLICKS, 2))]
        whole = masks_of(segmenter, rgb, clicks)
        for name, kind in PRECISIONS.items():
            with torch.autocast(segmenter.device.type, kind):
                half = masks_of(segmenter, rgb, clicks)
            found[name] += [dice(one, other) for one, other in zip(whole, half, strict=True)]
    return {name: np.array(values) for name, values in found.items()}


def masks_of(segmenter: Any, rgb: np.ndarray, clicks: list[Click]) -> list[np.ndarray]:
    """(H, W) bool masks of single clicks."""
    embedding = segmenter.encode(rgb)
    return [segmenter.predict(embedding, [click]).mask for click in clicks]


def table(found: dict[str, np.ndarray]) -> str:
    """A table for the terminal."""
    lines = [f"{'Dice against fp32':20}{'mean':>8}{'least':>8}{'0.999 and more':>16}"]
    lines += [
        f"{name:20}{values.mean():8.4f}{values.min():8.4f}{(values >= 0.999).mean():16.0%}"
        for name, values in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = command_parser("bench.halves", __doc__)
    parser.add_argument("--segmenter", default="demo")
    parser.add_argument("--segmenter-config")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=8)
    chosen = parser.parse_args()
    segmenter = segmenters.open(
        chosen.segmenter, chosen.segmenter_config, device=chosen.device, precision="fp32"
    )
    print(table(measure(segmenter, chosen.pictures)))


if __name__ == "__main__":
    main()
