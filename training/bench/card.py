"""What a graphics card makes of a 7B policy and MedSAM2, with random weights of their full shapes.

    python -m training.bench.card [--precision bf16|fp16|int4] [--tokens 64] [--no-generate] [--json F]

First the card's copy rate is measured: a token cannot come faster than the weights can be read once. Then a block of
tokens through the language model (a captured graph), the prompt, the picture and the segmenter; then transformers'
plain `generate` with the same shape. No download, no picture, no knowledge: only time and memory. Where there is no
card it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ibis_agent.actions import Click
from ibis_agent.files import write_json
from ibis_agent.policy.qwen25.block import Blocks
from ibis_agent.policy.qwen25.build import random_network
from ibis_agent.policy.qwen25.network import Memory
from ibis_agent.policy.qwen25.shape import read_shape

# config.json of Qwen2.5-VL-7B, as far as shapes go.
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
PROMPT, SIDE, PATCH = 700, 504, 14


def measure(config: dict[str, Any], device: str, precision: str, repeats: int = 30) -> dict[str, float]:
    """Milliseconds of a block, a prompt of 700 tokens and a picture of 504 pixels, and the floor of the memory."""
    shape = read_shape(config, Path("config.json"))
    network = random_network(shape, device, precision)
    blocks, language = Blocks(network), network.language
    memory = Memory(shape.text, 1024, language.embeddings)
    patches = (SIDE // shape.vision.patch // shape.vision.merge * shape.vision.merge) ** 2
    pixels = torch.randn(patches, shape.vision.patch_numbers, device=device)
    rows = int(patches**0.5)
    embedded = torch.randn(PROMPT, shape.text.hidden, dtype=network.dtype, device=device)
    positions = torch.arange(PROMPT, device=device).expand(3, -1)

    def prompt() -> None:
        memory.length = 0
        language.read(embedded, positions, memory, _nothing)

    with torch.inference_mode():
        found = {
            "picture": _milliseconds(
                lambda: network.vision.look(pixels, rows, rows, _nothing), repeats, device
            ),
            "prompt": _milliseconds(prompt, repeats, device),
            "block": _milliseconds(
                lambda: blocks.run(memory, list(range(blocks.size)), 0, PROMPT + 200, _nothing),
                repeats,
                device,
            ),
        }
        rate = copy_rate(device)
    read = sum(
        _bytes(part)
        for layer in language.layers
        for part in (layer.qkv, layer.out, layer.gate_up, layer.down)
    )
    read += _bytes(language.head)
    found |= {"tokens a block": blocks.size, "floor": 1000 * read / rate, "copy rate, GB/s": rate / 1e9}
    if device.startswith("cuda"):
        found["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def copy_rate(device: str, size: int = 2**28) -> float:
    """Bytes a second that a copy reads and writes."""
    one, other = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2000 * size / _milliseconds(lambda: other.copy_(one), 10, device)


def measure_segmenter(device: str, repeats: int = 10) -> dict[str, float]:
    """Milliseconds of MedSAM2's embedding of a picture and of a click."""
    import ibis_agent.segmenter as segmenters
    from ibis_agent.segmenter.sam2 import architecture

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.pt"
        network = architecture.build(architecture.named_settings(architecture.MEDSAM2))
        torch.save({"model": network.state_dict()}, file)
        segmenter: Any = segmenters.open(file, architecture.MEDSAM2, device)
    rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    embedding = segmenter.encode(rgb)
    return {
        "embed": _milliseconds(lambda: segmenter.encode(rgb), repeats, device),
        "click": _milliseconds(lambda: segmenter.predict(embedding, [Click(0.5, 0.5)]), repeats, device),
    }


def measure_generate(config: dict[str, Any], device: str, tokens: int) -> float:
    """Milliseconds a token of transformers' `generate`, in bf16."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(config))).eval()
    finally:
        torch.set_default_dtype(before)
    ids = torch.randint(3, int(config["vocab_size"]) // 2, (1, PROMPT), device=device)

    def write(count: int) -> float:
        given = {"attention_mask": torch.ones_like(ids), "min_new_tokens": count, "max_new_tokens": count}
        with torch.inference_mode():
            return _milliseconds(lambda: model.generate(ids, do_sample=False, **given), 2, device)

    return (write(tokens + 1) - write(1)) / tokens


def table(found: dict[str, Any]) -> str:
    """For people, and for BENCHMARKS.md."""
    policy, block, floor = found["policy"], found["policy"]["block"], found["policy"]["floor"]
    lines = [found["card"], "", "| milliseconds | |", "| --- | ---: |"]
    lines += [f"| {name} | {value:.2f} |" for name, value in policy.items()]
    lines += [f"| segmenter: {name} | {value:.2f} |" for name, value in found["segmenter"].items()]
    lines.append(f"| a block over the memory's floor | {block / floor:.2f} |")
    if "generate" in found:
        lines.append(f"| generate, a token | {found['generate']:.2f} |")
        lines.append(
            f"| generate over a block, where one token of it is right | {found['generate'] / block:.2f} |"
        )
        lines.append(f"| the same, where three are | {3 * found['generate'] / block:.2f} |")
    return "\n".join(lines)


def _bytes(product: Any) -> int:
    weight = getattr(product, "packed", None)
    weight = product.weight if weight is None else weight
    return int(weight.numel() * weight.element_size())


def _milliseconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """The median, after two to warm up."""
    seconds = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 1000 * float(np.median(seconds[2:]))


def _nothing() -> None:
    pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=("bf16", "fp16", "int4"), default="bf16")
    parser.add_argument("--tokens", type=int, default=64, help="that generate writes")
    parser.add_argument("--generate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA card here, or torch was installed without CUDA: nothing was measured.")
    found: dict[str, Any] = {
        "card": f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, {chosen.precision}"
    }
    found["segmenter"] = measure_segmenter("cuda")
    found["policy"] = measure(SEVEN_B, "cuda", chosen.precision)
    gc.collect()
    torch.cuda.empty_cache()
    if chosen.generate:
        found["generate"] = measure_generate(SEVEN_B, "cuda", chosen.tokens)
    print(table(found))
    if chosen.json:
        write_json(chosen.json, found)


if __name__ == "__main__":
    main()
