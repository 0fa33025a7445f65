"""The shape of Qwen2.5-VL-7B, and the same with narrow layers for machines without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ibis_agent.policy.qwen25.shape import Shape, read_shape

# The shapes in config.json of Qwen2.5-VL-7B.
SEVEN_B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}


def narrow(config: dict[str, Any], layers: int | None = None) -> dict[str, Any]:
    """The configuration with narrow layers, fast on any CPU. layers: number of them in both parts."""
    eyes = config["vision_config"]
    depth = layers or eyes["depth"]
    small_eyes = {
        "depth": depth,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [n for n in eyes["fullatt_block_indexes"] if n < depth] or [depth - 1],
    }
    return {
        **config,
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers or config["num_hidden_layers"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vision_config": {**eyes, **small_eyes},
    }


def shape_of(config: dict[str, Any]) -> Shape:
    return read_shape(config, Path("config.json"))


def plain_model(config: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """transformers' model of this shape, with random weights made on the device."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(config))).eval()
    finally:
        torch.set_default_dtype(before)
