"""The dimensions of a Qwen2.5-VL, from the older (flat) or newer (nested) form of config.json. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibis_agent.errors import ModelError

_REMEDY = "Use the config.json of the model that the weights belong to."


@dataclass(frozen=True)
class VisionShape:
    """The vision tower. window, merge: in patches. full: the blocks that attend to the whole picture."""

    depth: int
    hidden: int
    inner: int
    heads: int
    out: int
    patch: int
    merge: int
    temporal: int
    channels: int
    window: int
    full: frozenset[int]
    theta: float

    @property
    def patch_numbers(self) -> int:
        return self.channels * self.temporal * self.patch**2


@dataclass(frozen=True)
class TextShape:
    """The language model. sections: the number of rotary frequencies for time, row and column."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kept_heads: int
    epsilon: float
    theta: float
    sections: tuple[int, int, int]
    longest: int
    tied: bool

    @property
    def head(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Shape:
    vision: VisionShape
    text: TextShape


def read_shape(config: Mapping[str, Any], file: Path) -> Shape:
    """Read the dimensions. Raises ModelError, naming the key, for an invalid or unsupported value."""
    text = config.get("text_config") or config
    vision = config.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ModelError("has no vision_config", file=file, remedy=_REMEDY)
    read = _Reader(file)
    patch, merge = read.whole(vision, "patch_size", 14), read.whole(vision, "spatial_merge_size", 2)
    blocks = vision.get("fullatt_block_indexes", [7, 15, 23, 31])
    if not isinstance(blocks, list) or not all(isinstance(n, int) for n in blocks):
        raise read.wrong("fullatt_block_indexes", blocks)
    eyes = VisionShape(
        read.whole(vision, "depth", 32),
        read.whole(vision, "hidden_size", 3584),
        read.whole(vision, "intermediate_size", 3420),
        read.whole(vision, "num_heads", 16),
        read.whole(vision, "out_hidden_size", 3584),
        patch,
        merge,
        read.whole(vision, "temporal_patch_size", 2),
        read.whole(vision, "in_channels", vision.get("in_chans", 3)),
        read.whole(vision, "window_size", 112) // patch // merge * merge,
        frozenset(blocks),
        float((vision.get("rope_parameters") or {}).get("rope_theta", 10_000.0)),
    )
    heads = read.whole(text, "num_attention_heads", 64)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "mrope"):
        raise read.unsupported("rope_type", kind)
    if text.get("use_sliding_window") and read.whole(text, "max_window_layers", 80) < read.whole(
        text, "num_hidden_layers", 80
    ):
        raise read.unsupported("use_sliding_window", True)
    for part in (text, vision):
        if part.get("hidden_act", "silu") != "silu":
            raise read.unsupported("hidden_act", part["hidden_act"])
    hidden = read.whole(text, "hidden_size", 8192)
    language = TextShape(
        read.whole(text, "vocab_size", 152_064),
        hidden,
        read.whole(text, "intermediate_size", 29_568),
        read.whole(text, "num_hidden_layers", 80),
        heads,
        read.whole(text, "num_key_value_heads", heads),
        float(text.get("rms_norm_eps", 1e-5)),
        float(rope.get("rope_theta") or text.get("rope_theta") or 1e6),
        _sections(rope.get("mrope_section") or [16, 24, 24], read),
        read.whole(text, "max_position_embeddings", 32_768),
        bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
    )
    if hidden % heads or heads % language.kept_heads or sum(language.sections) * 2 != language.head:
        raise read.wrong("num_attention_heads and mrope_section", f"{heads}, {language.sections}")
    if eyes.hidden % (4 * eyes.heads) or eyes.out != hidden or eyes.window < merge:
        raise read.wrong("vision_config", f"{eyes.hidden}, {eyes.heads}, {eyes.out}, {eyes.window}")
    return Shape(eyes, language)


def _sections(values: Any, read: _Reader) -> tuple[int, int, int]:
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(n, int) for n in values):
        raise read.wrong("mrope_section", values)
    return values[0], values[1], values[2]


class _Reader:
    def __init__(self, file: Path) -> None:
        self._file = file

    def whole(self, values: Mapping[str, Any], key: str, default: int) -> int:
        value = values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise self.wrong(key, value)
        return value

    def wrong(self, key: str, value: Any) -> ModelError:
        return ModelError(f"{key} is invalid", file=self._file, value=value, remedy=_REMEDY)

    def unsupported(self, key: str, value: Any) -> ModelError:
        remedy = "Run this model on a server instead."
        return ModelError(f"{key} of this kind is not supported", file=self._file, value=value, remedy=remedy)
