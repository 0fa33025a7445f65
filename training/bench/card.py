"""Time and memory of a 7B policy and MedSAM2 on a GPU, with random weights of their full shapes.

    python -m training.bench.card [--precision bf16|fp16|fp8|int4] [--compile] [--no-generate] [--write BENCHMARKS.md]

First it measures the GPU's copy rate, because a token takes at least the time to read all weights once. Then a block of
tokens through the language model (a captured graph), the prompt, the picture and the segmenter; then transformers'
plain `generate` with the same shape. It needs no downloads. Without a GPU it says so and measures nothing;
`--device cpu --tiny` runs the whole script with narrow layers.
"""

from __future__ import annotations

import argparse
import gc
import re
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
from ibis_agent.policy.qwen25.compiling import compile_layer
from ibis_agent.policy.qwen25.network import Memory, Network

from training.bench.shapes import SEVEN_B, narrow, plain_model, shape_of
from training.common.commands import command_parser

PROMPT, SIDE, SLICES = 700, 504, 3
BEGIN, END = "<!-- a card -->", "<!-- the card's end -->"


def measure(
    config: dict[str, Any], device: str, precision: str, repeats: int = 30, compiled: bool = False
) -> dict[str, float]:
    """Milliseconds of a block, a prompt of 700 tokens and a picture of 504 pixels, and the limit set by memory."""
    rate = copy_rate(device)
    shape = shape_of(config)
    network = random_network(shape, device, precision)
    language = network.language
    memory = Memory(shape.text, 2048, language.embeddings)
    rows = SIDE // shape.vision.patch // shape.vision.merge * shape.vision.merge
    pixels = torch.randn(rows**2, shape.vision.patch_numbers, device=device)
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
            "block": _of_a_block(network, Blocks(network), memory, repeats),
        }
        if compiled:
            blocks = Blocks(network, fixed=True, layer=compile_layer())
            found["block, where torch.compile wins"] = _of_a_block(network, blocks, memory, repeats)
    products = [
        part for layer in language.layers for part in (layer.qkv, layer.out, layer.gate_up, layer.down)
    ]
    read = sum(_bytes(each) for each in [*products, language.head])
    found |= {
        "tokens a block": Blocks(network).size,
        "floor": 1000 * read / rate,
        "copy rate, GB/s": rate / 1e9,
    }
    if device.startswith("cuda"):
        found["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def _of_a_block(network: Network, blocks: Blocks, memory: Memory, repeats: int) -> float:
    memory.length = PROMPT
    ids = list(range(blocks.size))
    return _milliseconds(
        lambda: blocks.run(memory, ids, 0, PROMPT + 200, _nothing), repeats, str(network.device)
    )


def copy_rate(device: str, size: int = 2**28) -> float:
    """Bytes per second read and written by a copy."""
    one, other = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2000 * size / _milliseconds(lambda: other.copy_(one), 10, device)


def open_segmenter(device: str, tiny: bool) -> Any:
    """MedSAM2 with random weights; tiny: the demo segmenter."""
    import ibis_agent.segmenter as segmenters
    from ibis_agent.segmenter.sam2 import architecture

    if tiny:
        return segmenters.open("demo", device=device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.pt"
        network = architecture.build(architecture.named_settings(architecture.MEDSAM2))
        torch.save({"model": network.state_dict()}, file)
        return segmenters.open(file, architecture.MEDSAM2, device)


def measure_segmenter(segmenter: Any, device: str, repeats: int = 10) -> dict[str, float]:
    """Milliseconds to embed a picture, for a click, and for a click propagated through SLICES slices."""
    rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    embedding = segmenter.encode(rgb)

    def follow() -> None:
        segmenter.kept.forget()
        follower = segmenter.follower(lambda _index: rgb, SLICES + 1, rgb.shape[:2], "memory")
        follower.anchor(0, [Click(0.5, 0.5)])
        for _ in follower.follow(0, 1, SLICES):
            pass

    return {
        "embed": _milliseconds(lambda: segmenter.encode(rgb), repeats, device),
        "click": _milliseconds(lambda: segmenter.predict(embedding, [Click(0.5, 0.5)]), repeats, device),
        f"a click propagated through {SLICES} slices": _milliseconds(follow, max(1, repeats // 5), device),
    }


def measure_generate(config: dict[str, Any], device: str, tokens: int) -> float:
    """Milliseconds per token of transformers' `generate`, in bf16."""
    model = plain_model(config, device, torch.bfloat16)
    ids = torch.randint(3, int(config["vocab_size"]) // 2, (1, PROMPT), device=device)

    def write(count: int) -> float:
        given = {"attention_mask": torch.ones_like(ids), "min_new_tokens": count, "max_new_tokens": count}
        with torch.inference_mode():
            return _milliseconds(lambda: model.generate(ids, do_sample=False, **given), 2, device)

    return (write(tokens + 1) - write(1)) / tokens


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown, for the terminal and BENCHMARKS.md."""
    policy, block, floor = found["policy"], found["policy"]["block"], found["policy"]["floor"]
    lines = [found["card"], "", "| milliseconds | |", "| --- | ---: |"]
    lines += [f"| {name} | {value:.2f} |" for name, value in policy.items()]
    lines += [f"| segmenter: {name} | {value:.2f} |" for name, value in found["segmenter"].items()]
    lines.append(f"| a block, relative to the limit | {block / floor:.2f} |")
    if "generate" in found:
        lines.append(f"| generate, per token | {found['generate']:.2f} |")
        lines.append(
            f"| generate relative to a block, if one of its tokens is right | {found['generate'] / block:.2f} |"
        )
        lines.append(f"| the same, if three are | {3 * found['generate'] / block:.2f} |")
    return "\n".join(lines)


def write_table(file: Path, text: str) -> None:
    """Put the table between its two marks in a Markdown file. Raises SystemExit if they are missing."""
    before = file.read_text("utf-8")
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise SystemExit(f"error: {file} needs a place for the table: {BEGIN} and {END}, once each.")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    file.write_text(between.sub(lambda _: f"{BEGIN}\n{text}\n{END}", before), "utf-8")


def _bytes(product: Any) -> int:
    weight = getattr(product, "packed", None)
    weight = product.weight if weight is None else weight
    return int(weight.numel() * weight.element_size())


def _milliseconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """The median time, after two warm-up calls."""
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
    parser = command_parser("bench.card", __doc__)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16", "fp8", "int4"), default="bf16")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that generate writes")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="also measure a block with torch.compile")
    parser.add_argument("--generate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="use narrow layers, to try the script")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device, or torch was installed without CUDA: nothing was measured.")
    name = torch.cuda.get_device_name(0) if chosen.device == "cuda" else "CPU"
    shape = narrow(SEVEN_B, layers=2) if chosen.tiny else SEVEN_B
    what = "narrow layers, not comparable to 7B" if chosen.tiny else "7B"
    found: dict[str, Any] = {"card": f"{name}, torch {torch.__version__}, {chosen.precision}, {what}"}
    segmenter = open_segmenter(chosen.device, chosen.tiny)  # stays loaded, so that the memory is that of both
    found["segmenter"] = measure_segmenter(segmenter, chosen.device, max(1, chosen.repeats // 3))
    found["policy"] = measure(shape, chosen.device, chosen.precision, chosen.repeats, chosen.compile)
    gc.collect()
    if chosen.device == "cuda":
        torch.cuda.empty_cache()
    if chosen.generate:
        found["generate"] = measure_generate(shape, chosen.device, chosen.tokens)
    print(table(found))
    if chosen.json:
        write_json(chosen.json, found)
    if chosen.write:
        write_table(chosen.write, table(found))


if __name__ == "__main__":
    main()
