"""The pictures and questions of the benchmarks, and the inputs of `generate` for them."""

from __future__ import annotations

import numpy as np
import torch
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.messages import build_messages, pictures_of
from ibis_agent.policy.qwen25.local import LocalPolicy
from ibis_agent.scan.picture import Picture, PictureGeometry, apply_window

from training.phantoms.phantom import random_slice

QUESTIONS = ("Segment the liver", "Segment the spleen", "Segment the spine")


def phantom_picture(seed: int) -> Picture:
    """A phantom slice in a soft-tissue window."""
    grey = apply_window(random_slice(seed, mirrored=False).hu, (-160.0, 240.0))
    return Picture(np.repeat(grey[:, :, None], 3, axis=2), PictureGeometry.of_picture(*grey.shape), None)


def tensors_for_generate(policy: LocalPolicy, turn: Turn, shown: np.ndarray) -> dict[str, torch.Tensor]:
    """The inputs of `generate` for a turn with the picture `shown`, (H, W, 3) uint8."""
    pictures = [*pictures_of(policy.card, turn)[:-1], shown]
    request = policy.chat.encode(build_messages(policy.card, turn), pictures)
    given = {
        "input_ids": request.ids[None],
        "attention_mask": np.ones_like(request.ids)[None],
        "mm_token_type_ids": request.types[None],
        "pixel_values": request.pixels,
        "image_grid_thw": request.grid,
    }
    return {name: torch.from_numpy(value).to(policy.model.device) for name, value in given.items()}


def synchronize(policy: LocalPolicy) -> None:
    """Wait for CUDA, which works asynchronously, before reading the clock."""
    if policy.device.startswith("cuda"):
        torch.cuda.synchronize()
