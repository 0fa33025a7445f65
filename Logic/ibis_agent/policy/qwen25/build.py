"""Building the network from a policy's folder, tensor by tensor, straight to the device.

Only one tensor at a time is in main memory. Merged layers (query, key and value; gate and up) are filled part by part.
In int4 and fp8 the language model's layers are packed as soon as they are complete, so that only a few are unpacked at
a time; the vision tower stays at 16 bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import PolicyFolder, wrong_tensors
from ibis_agent.policy.qwen25.network import Block, Dense, Language, Network, Vision
from ibis_agent.policy.qwen25.packed_layers import packer_for
from ibis_agent.policy.qwen25.shape import Shape, read_shape
from ibis_agent.policy.qwen25.weights import check_finite, read_tensors

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Tables stored in older files, which are computed here.
_COMPUTED = re.compile(r"rotary_(?:pos_)?emb\.(?:original_)?inv_freq$")
_HEAD, _EMBEDDINGS = "lm_head.weight", "text.embed_tokens.weight"


@dataclass(frozen=True)
class _Place:
    """Where a stored tensor belongs: the first row within a part of the network, and the required shape."""

    part: str
    start: int
    shape: tuple[int, ...]


def build(found: PolicyFolder, device: str, precision: str) -> Network:
    """The network on "cpu", "cuda" or "cuda:1" in "fp32", "bf16", "fp16", "fp8" or "int4".

    Raises ModelError naming a tensor that is missing, unexpected, of another size, or not finite.
    """
    shape = read_shape(found.config, found.folder / "config.json")
    packer = packer_for(precision, device)
    dtype = packer.dtype if packer else TYPES[precision]
    places = dict(_places(shape))
    _check_names(found, shape, places)
    rows: dict[str, int] = {}
    for place in places.values():
        rows[place.part] = max(rows.get(place.part, 0), place.start + place.shape[0])
    parts: dict[str, Any] = {}
    left = dict(rows)
    head: Tensor | None = None
    for stored, tensor in read_tensors(found, device):
        name = _plain_name(stored)
        if shape.text.tied and name == _HEAD:
            head = tensor
        if name not in places:
            continue
        place = places[name]
        if place.part not in parts:
            size = (rows[place.part], *place.shape[1:])
            parts[place.part] = torch.empty(size, dtype=dtype, device=device)
        target = parts[place.part][place.start : place.start + place.shape[0]]
        if tensor.numel() != target.numel():  # headers of packed weights do not tell every shape
            raise wrong_tensors(found.folder, [stored])
        target.copy_(tensor.reshape(place.shape))
        if dtype == torch.float16:
            check_finite(target, stored, found, "fp16")
        left[place.part] -= place.shape[0]
        if packer and not left[place.part] and _is_packed(place.part):
            parts[place.part] = packer.pack(parts[place.part])
    if head is not None and not torch.equal(head.to(dtype).to(device), parts[_EMBEDDINGS]):
        raise ModelError(
            "says that input and output embeddings are tied, but the weights differ",
            file=found.folder / "config.json",
            value="tie_word_embeddings true",
            remedy="Set it to the value used in training.",
        )
    return _assembled(shape, parts)


def random_network(shape: Shape, device: str, precision: str) -> Network:
    """A network with random weights, for benchmarks."""
    packer = packer_for(precision, device)
    dtype = packer.dtype if packer else TYPES[precision]
    sizes: dict[str, tuple[int, ...]] = {}
    for _, place in _places(shape):
        rows = max(sizes.get(place.part, (0,))[0], place.start + place.shape[0])
        sizes[place.part] = (rows, *place.shape[1:])
    parts: dict[str, Any] = {}
    for part, size in sizes.items():
        weight = torch.empty(size, dtype=dtype, device=device).normal_(0.0, 0.02)
        parts[part] = packer.pack(weight) if packer and _is_packed(part) else weight
    return _assembled(shape, parts)


def _plain_name(name: str) -> str:
    """A name independent of the transformers version that wrote it: "text.…", "visual.…" or "lm_head.…"."""
    for prefix, plain in (
        ("model.language_model.", "text."),
        ("model.visual.", "visual."),
        ("language_model.model.", "text."),
        ("visual.", "visual."),
        ("model.", "text."),
    ):
        if name.startswith(prefix):
            return plain + name[len(prefix) :]
    return name


def _places(shape: Shape) -> Iterator[tuple[str, _Place]]:
    """(plain name, place) of every tensor."""
    text, vision = shape.text, shape.vision
    yield _EMBEDDINGS, _Place(_EMBEDDINGS, 0, (text.vocabulary, text.hidden))
    yield "text.norm.weight", _Place("text.norm.weight", 0, (text.hidden,))
    if not text.tied:
        yield _HEAD, _Place(_HEAD, 0, (text.vocabulary, text.hidden))
    kept = text.kept_heads * text.head
    for n in range(text.layers):
        at = f"text.layers.{n}."
        start = 0
        for name, rows in (("q_proj", text.hidden), ("k_proj", kept), ("v_proj", kept)):
            yield f"{at}self_attn.{name}.weight", _Place(at + "qkv.weight", start, (rows, text.hidden))
            yield f"{at}self_attn.{name}.bias", _Place(at + "qkv.bias", start, (rows,))
            start += rows
        for name, start in (("gate_proj", 0), ("up_proj", text.inner)):
            yield f"{at}mlp.{name}.weight", _Place(at + "gate_up.weight", start, (text.inner, text.hidden))
        yield f"{at}self_attn.o_proj.weight", _Place(at + "out.weight", 0, (text.hidden, text.hidden))
        yield f"{at}mlp.down_proj.weight", _Place(at + "down.weight", 0, (text.hidden, text.inner))
        for name, part in (("input_layernorm", "norm_in"), ("post_attention_layernorm", "norm_mid")):
            yield f"{at}{name}.weight", _Place(at + part, 0, (text.hidden,))
    for n in range(vision.depth):
        at = f"visual.blocks.{n}."
        for name, part, size in (
            ("attn.qkv", "qkv", (3 * vision.hidden, vision.hidden)),
            ("attn.proj", "out", (vision.hidden, vision.hidden)),
            ("mlp.down_proj", "down", (vision.hidden, vision.inner)),
        ):
            yield f"{at}{name}.weight", _Place(f"{at}{part}.weight", 0, size)
            yield f"{at}{name}.bias", _Place(f"{at}{part}.bias", 0, size[:1])
        for name, start in (("gate_proj", 0), ("up_proj", vision.inner)):
            yield (
                f"{at}mlp.{name}.weight",
                _Place(at + "gate_up.weight", start, (vision.inner, vision.hidden)),
            )
            yield f"{at}mlp.{name}.bias", _Place(at + "gate_up.bias", start, (vision.inner,))
        for name, part in (("norm1", "norm_in"), ("norm2", "norm_mid")):
            yield f"{at}{name}.weight", _Place(at + part, 0, (vision.hidden,))
    unit = vision.hidden * vision.merge**2
    others: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("patch_embed.proj.weight", (vision.hidden, vision.patch_numbers)),
        ("merger.ln_q.weight", (vision.hidden,)),
        ("merger.mlp.0.weight", (unit, unit)),
        ("merger.mlp.0.bias", (unit,)),
        ("merger.mlp.2.weight", (vision.out, unit)),
        ("merger.mlp.2.bias", (vision.out,)),
    )
    for name, whole in others:
        yield f"visual.{name}", _Place(f"visual.{name}", 0, whole)


def _check_names(found: PolicyFolder, shape: Shape, places: dict[str, _Place]) -> None:
    """Compare the stored tensors with the configuration, from the headers alone."""
    stored = {_plain_name(name): (name, tensor) for name, tensor in found.tensors.items()}
    wrong = []
    for name, place in places.items():
        if name not in stored:
            wrong.append(name)
            continue
        size = stored[name][1].shape
        if name == "visual.patch_embed.proj.weight":  # a convolution without overlap is a matrix product
            size = (size[0], stored[name][1].count // max(size[0], 1)) if size else size
        if size != place.shape:
            wrong.append(name)
    if wrong:
        raise wrong_tensors(found.folder, wrong)
    known = {*places, _HEAD} if shape.text.tied else set(places)
    surplus = [
        name for plain, (name, _) in stored.items() if plain not in known and not _COMPUTED.search(plain)
    ]
    if surplus:
        raise ModelError(
            f"contains {len(surplus)} tensors that do not belong to a Qwen2.5-VL with this configuration",
            file=found.folder,
            value=surplus[0],
            remedy="Take config.json and the weights from the same model; merge an adapter first.",
        )


def _assembled(shape: Shape, parts: dict[str, Any]) -> Network:
    def product(name: str) -> Any:
        weight, bias = parts[name + ".weight"], parts.get(name + ".bias")
        return Dense(weight, bias) if isinstance(weight, Tensor) else weight.with_bias(bias)

    def block(at: str) -> Block:
        return Block(
            parts[at + "norm_in"],
            product(at + "qkv"),
            product(at + "out"),
            parts[at + "norm_mid"],
            product(at + "gate_up"),
            product(at + "down"),
        )

    vision = Vision(
        shape.vision,
        product("visual.patch_embed.proj"),
        [block(f"visual.blocks.{n}.") for n in range(shape.vision.depth)],
        parts["visual.merger.ln_q.weight"],
        product("visual.merger.mlp.0"),
        product("visual.merger.mlp.2"),
    )
    embeddings = parts[_EMBEDDINGS]
    language = Language(
        shape.text,
        embeddings,
        [block(f"text.layers.{n}.") for n in range(shape.text.layers)],
        parts["text.norm.weight"],
        Dense(embeddings if shape.text.tied else parts[_HEAD]),
    )
    return Network(shape, vision, language)


def _is_packed(part: str) -> bool:
    return bool(re.match(r"text\.layers\.\d+\.(?:qkv|out|gate_up|down)\.weight$", part))
