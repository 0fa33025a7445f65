"""An untrusted SAM2 configuration: plain YAML that may name only classes of sam2's network."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ibis_agent.errors import ModelError

_TARGETS = frozenset(
    "sam2.modeling." + name
    for name in (
        "sam2_base.SAM2Base",
        "backbones.hieradet.Hiera",
        "backbones.image_encoder.ImageEncoder",
        "backbones.image_encoder.FpnNeck",
        "position_encoding.PositionEmbeddingSine",
        "memory_attention.MemoryAttention",
        "memory_attention.MemoryAttentionLayer",
        "memory_encoder.MemoryEncoder",
        "memory_encoder.MaskDownSampler",
        "memory_encoder.Fuser",
        "memory_encoder.CXBlock",
        "sam.transformer.Attention",
        "sam.transformer.RoPEAttention",
    )
)
_BASE = "sam2.modeling.sam2_base.SAM2Base"
# Settings of sam2's video predictors, which may be in the same file but are not the network's.
_PREDICTOR_TARGETS = frozenset({"sam2.sam2_video_predictor.SAM2VideoPredictor"})
_PREDICTOR_SETTINGS = frozenset(
    {
        "fill_hole_area",
        "non_overlap_masks",
        "clear_non_cond_mem_around_input",
        "clear_non_cond_mem_for_multi_obj",
        "add_all_frames_to_correct_as_cond",
    }
)
_LARGEST_YAML = 64 * 1024
_LARGEST_NUMBER = 16384
_LARGEST_SIDE = 4096
_DEEPEST = 12
_PICTURE_STRIDE = 32  # of the encoder's last stage


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked `model` part of a YAML configuration. Raises ModelError."""
    file = Path(path)
    remedy = "Use the YAML file that belongs to the weights; it has a `model:` with _target_ " + _BASE + "."
    try:
        with open(file, "rb") as stream:
            text = stream.read(_LARGEST_YAML + 1)
    except OSError as error:
        raise ModelError(
            "the configuration cannot be read", file=file, value=error.strerror, remedy=remedy
        ) from error
    if len(text) > _LARGEST_YAML:
        raise ModelError("is too long for a segmenter configuration", file=file, remedy=remedy)
    content = _parse_yaml(text, file, remedy)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ModelError("has no `model:`", file=file, remedy=remedy)
    return checked_settings(model, file)


def checked_settings(model: Mapping[str, Any], file: str | os.PathLike[str]) -> dict[str, Any]:
    """A copy of the `model` part that names only known classes and has plausible numbers. Raises ModelError."""
    settings = copy.deepcopy(dict(model))
    if str(settings.get("_target_")) in _PREDICTOR_TARGETS:
        settings["_target_"] = _BASE
    for name in _PREDICTOR_SETTINGS & settings.keys():
        del settings[name]
    # Compiling takes minutes at the first picture, and needs a compiler.
    settings["compile_image_encoder"] = False
    if settings.get("_target_") != _BASE:
        raise ModelError(
            "is not the configuration of a SAM2 network",
            file=file,
            value=settings.get("_target_"),
            remedy=f"`model:` must have _target_: {_BASE}.",
        )
    _check_part(settings, file, _DEEPEST)
    size = settings.setdefault("image_size", 512)
    if not isinstance(size, int) or not _PICTURE_STRIDE <= size <= _LARGEST_SIDE or size % _PICTURE_STRIDE:
        raise ModelError(
            f"image_size must be a multiple of {_PICTURE_STRIDE} up to {_LARGEST_SIDE}", file=file, value=size
        )
    return settings


def _parse_yaml(text: bytes, file: Path, remedy: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """With YAML 1.2 floats (1e-6), without aliases, which can grow exponentially, and with limited depth."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases are not allowed here")
            self.depth += 1
            if self.depth > _DEEPEST:
                raise yaml.YAMLError("it is nested too deeply")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
        list("-+.0123456789"),
    )
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ModelError(
            "is not a YAML configuration", file=file, value=" ".join(str(error).split()), remedy=remedy
        ) from error


def _check_part(part: Any, file: str | os.PathLike[str], depth: int) -> None:
    if depth < 0:
        raise ModelError("is nested too deeply for a configuration", file=file)
    if isinstance(part, dict):
        target = part.get("_target_")
        if "_target_" in part and not (isinstance(target, str) and target in _TARGETS):
            raise ModelError(
                "contains something that is not part of a SAM2 network",
                file=file,
                value=target,
                remedy="Only classes of sam2.modeling are allowed; use a configuration that you trust.",
            )
        for key, value in part.items():
            if not isinstance(key, str) or (key.startswith("_") and key != "_target_"):
                raise ModelError("has a setting that is not allowed", file=file, value=key)
            # Hiera would open this path as a pickle, which may run code.
            if key == "weights_path" and value is not None:
                raise ModelError(
                    "refers to another weights file, which is not allowed", file=file, value=value
                )
            # Determines the size of a table: keep it small.
            if key == "feat_sizes" and not (isinstance(value, list) and all(_small(n, 256) for n in value)):
                raise ModelError("has invalid feat_sizes", file=file, value=value)
            _check_part(value, file, depth - 1)
    elif isinstance(part, list):
        for value in part:
            _check_part(value, file, depth - 1)
    elif isinstance(part, (int, float)) and not (
        math.isfinite(part) and abs(part) <= max(_LARGEST_NUMBER, 1e6)
    ):
        raise ModelError("has a number that is impossible for a SAM2 network", file=file, value=part)
    elif not (part is None or isinstance(part, (str, int, float))):
        raise ModelError("has a value that is not a number, text or list", file=file, value=part)


def _small(value: Any, most: int) -> bool:
    return isinstance(value, int) and 0 < value <= most
