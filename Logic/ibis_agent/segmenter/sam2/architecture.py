"""The SAM2 architecture of a checkpoint, and the network with its weights.

Checkpoints and configurations are untrusted: weights are read without running code (checkpoint), configurations are
checked (config).

The architecture is found from, in this order:
1. the caller's `config`: a YAML file, or one of `NAMES`;
2. a YAML file beside the checkpoint with the same stem (`segmenter.pt`, `segmenter.yaml`);
3. the shapes of the weights, for the eight architectures of the sam2 package. MedSAM2's weights have the same shapes as
   `sam2.1_hiera_t` and differ only in the picture size. They are told apart by the file name, and by the name in
   PyTorch's archive. If these are missing or contradictory, the caller has to give `config`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect as signatures
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibis_agent.errors import ModelError
from ibis_agent.segmenter.sam2 import HOW_TO_INSTALL
from ibis_agent.segmenter.sam2.checkpoint import read_weights, saved_as
from ibis_agent.segmenter.sam2.config import checked_settings, read_settings

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGED = {
    f"{generation}_hiera_{size}": f"configs/{generation}/{generation}_hiera_{size}.yaml"
    for generation in ("sam2", "sam2.1")
    for size in ("t", "s", "b+", "l")
}
MEDSAM2 = "sam2.1_hiera_t512"
NAMES = (*_PACKAGED, MEDSAM2)
_MEDSAM2 = re.compile(r"medsam2|t(?:iny)?_?512", re.IGNORECASE)
_TINY = re.compile(r"sam2[._]1_hiera_t(?:iny)?(?![a-z])", re.IGNORECASE)
# Width of the first stage and number of blocks of the image encoder.
_SIZES = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}

_GET_SAM2 = f"Install it: {HOW_TO_INSTALL}"


@dataclass(frozen=True)
class Architecture:
    """A network to build.

    Attributes:
        name: one of NAMES, or the stem of the YAML file.
        image_size: side of the square picture that the network sees, in pixels.
        parameters: number of parameters.
        settings: the `model` part of the configuration, as plain values.
    """

    name: str
    image_size: int
    parameters: int
    settings: dict[str, Any]


def inspect(checkpoint: str | os.PathLike[str], config: str | os.PathLike[str] | None = None) -> Architecture:
    """The architecture that `load` would build, checked against the weights. Raises ModelError."""
    file = Path(checkpoint)
    weights = read_weights(file)
    architecture = _choose(file, weights, config)
    _check_against_weights(architecture, weights, file)
    return architecture


def load(
    checkpoint: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
) -> tuple[Any, Architecture]:
    """The SAM2Base of a checkpoint on the CPU, in float32 and evaluation mode, with its memory parts.

    Args:
        checkpoint: see checkpoint.read_weights.
        config: one of NAMES, or a YAML file; None to find the architecture as above.

    Raises ModelError.
    """
    file = Path(checkpoint)
    weights = read_weights(file)
    architecture = _choose(file, weights, config)
    _check_against_weights(architecture, weights, file)
    model = build(architecture.settings, architecture.name)
    _check_same_shapes(model.state_dict(), weights, architecture.name, file)
    _check_finite(weights, file)
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False), architecture


def build(settings: Mapping[str, Any], name: str = "the configuration") -> Any:
    """A SAM2Base with random weights from the `model` part of a configuration. Raises ModelError."""
    settings = checked_settings(settings, name)
    try:
        return _instantiate(settings)
    except ImportError as error:
        raise ModelError(
            "the sam2 package cannot be imported",
            value=str(error),
            remedy=_GET_SAM2,
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, LookupError) as error:
        # The constructors of sam2 raise many kinds of exceptions.
        raise ModelError(
            "describes a network that cannot be built",
            file=name,
            value=f"{type(error).__name__}: {error}",
            remedy="Use the configuration that belongs to the weights.",
        ) from error


def named_settings(name: str) -> dict[str, Any]:
    """The `model` part of one of NAMES, which may also be given as a path such as `sam2.1_hiera_t.yaml`.

    Raises ModelError.
    """
    plain = re.sub(r"\.yaml$", "", os.path.basename(name.replace("\\", "/")))
    if plain not in NAMES:
        raise ModelError(
            "there is no such segmenter configuration",
            value=name,
            remedy=f"Give a YAML file that exists, or one of {', '.join(NAMES)}.",
        )
    package = importlib.util.find_spec("sam2")
    if package is None or package.origin is None:
        raise ModelError("the sam2 package is not installed", remedy=_GET_SAM2)
    settings = read_settings(
        Path(package.origin).parent / _PACKAGED["sam2.1_hiera_t" if plain == MEDSAM2 else plain]
    )
    if plain == MEDSAM2:
        settings["image_size"] = 512
        for attention in ("self_attention", "cross_attention"):
            settings["memory_attention"]["layer"][attention]["feat_sizes"] = [32, 32]
    return settings


def _choose(file: Path, weights: Mapping[str, Tensor], config: str | os.PathLike[str] | None) -> Architecture:
    beside = file.with_suffix(".yaml")
    if config is not None:
        given = os.fspath(config)
        if os.path.isfile(given):
            name, settings = Path(given).stem, read_settings(given)
        else:
            name, settings = re.sub(r"\.yaml$", "", os.path.basename(given)), named_settings(given)
    elif beside.is_file():
        name, settings = beside.stem, read_settings(beside)
    else:
        name = _recognise(file, weights)
        settings = named_settings(name)
    parameters = sum(tensor.numel() for tensor in weights.values())
    return Architecture(name, int(settings["image_size"]), parameters, settings)


def _recognise(file: Path, weights: Mapping[str, Tensor]) -> str:
    patch = weights.get("image_encoder.trunk.patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        raise _other_architecture(weights, file)
    width, depth = patch.shape[0], _count(weights, "image_encoder.trunk.blocks.")
    size = _SIZES.get((width, depth))
    if size is None:
        raise ModelError(
            "is a SAM2 model of a size that is not in the sam2 package",
            file=file,
            value=f"first stage with width {width}, {depth} blocks",
            remedy=f"Put its configuration beside it as {file.stem}.yaml, or give the YAML file.",
        )
    generation = "sam2.1" if "no_obj_embed_spatial" in weights else "sam2"
    if (generation, size) == ("sam2.1", "t"):
        return _tiny_or_medsam2(file)
    return f"{generation}_hiera_{size}"


def _tiny_or_medsam2(file: Path) -> str:
    names = (file.name, saved_as(file))
    told = {MEDSAM2 for name in names if _MEDSAM2.search(name)}
    told |= {"sam2.1_hiera_t" for name in names if _TINY.search(name) and not _MEDSAM2.search(name)}
    if len(told) != 1:
        raise ModelError(
            "may be SAM2.1 tiny, which uses 1024-pixel images, or MedSAM2, which uses 512: their weights have the "
            "same names and shapes, and "
            + ("the names in the path contradict each other" if told else "the file name does not tell"),
            file=file,
            value=", ".join(filter(None, names)) if told else None,
            remedy="Rename the file so that its name contains MedSAM2 or sam2.1_hiera_tiny. In the terminal, "
            f"--segmenter-config {MEDSAM2} or sam2.1_hiera_t does the same.",
        )
    return told.pop()


def _other_architecture(weights: Mapping[str, Tensor], file: Path) -> ModelError:
    remedy = "Use a SAM2, SAM2.1 or MedSAM2 checkpoint."
    if any(key.startswith("vision_encoder.backbone.") for key in weights):
        remedy = "This is SAM2 in the format of the transformers library; use the .pt file of the same model."
    elif "image_encoder.pos_embed" in weights or "image_encoder.patch_embed.proj.weight" in weights:
        remedy = "This looks like the original SAM or MedSAM; " + remedy[0].lower() + remedy[1:]
    elif any(key.startswith("model.layers.") or "lm_head" in key for key in weights):
        remedy = "This looks like a language model: enter the policy in the other field. " + remedy
    keys = ", ".join(list(weights)[:3])
    return ModelError(
        "is not a SAM2 checkpoint: it has no image encoder", file=file, value=keys, remedy=remedy
    )


def _check_against_weights(architecture: Architecture, weights: Mapping[str, Tensor], file: Path) -> None:
    """Compare the sizes that determine the network's memory with the weights, before it is built."""
    settings = architecture.settings

    def setting(*path: str) -> Any:
        value: Any = settings
        for part in path:
            value = _value_of(value, part)
        return value

    def side(key: str, axis: int) -> int | None:
        tensor = weights.get(key)
        return None if tensor is None or tensor.ndim <= axis else int(tensor.shape[axis])

    stages = setting("image_encoder", "trunk", "stages")
    encoder, memory = ("image_encoder", "trunk"), ("memory_attention",)
    pairs = {
        "embed_dim": (setting(*encoder, "embed_dim"), side("image_encoder.trunk.patch_embed.proj.weight", 0)),
        "stages": (
            sum(stages) if isinstance(stages, (list, tuple)) else None,
            _count(weights, "image_encoder.trunk.blocks.") or None,
        ),
        "d_model": (setting("image_encoder", "neck", "d_model"), side("no_mem_embed", 2)),
        "num_maskmem": (setting("num_maskmem"), side("maskmem_tpos_enc", 0)),
        "memory_attention.num_layers": (
            setting(*memory, "num_layers"),
            _count(weights, "memory_attention.layers.") or None,
        ),
        "dim_feedforward": (
            setting(*memory, "layer", "dim_feedforward"),
            side("memory_attention.layers.0.linear1.weight", 0),
        ),
        "memory_encoder.out_dim": (setting("memory_encoder", "out_dim"), side("maskmem_tpos_enc", 3)),
        "fuser.num_layers": (
            setting("memory_encoder", "fuser", "num_layers"),
            _count(weights, "memory_encoder.fuser.layers.") or None,
        ),
    }
    if pairs["embed_dim"][1] is None:
        raise _other_architecture(weights, file)
    wrong = [f"{name} {want} instead of {have}" for name, (want, have) in pairs.items() if want != have]
    if wrong:
        raise ModelError(
            f"does not match the configuration {architecture.name}",
            file=file,
            value="; ".join(wrong[:4]),
            remedy="Use the configuration that belongs to these weights.",
        )


def _value_of(part: Any, key: str) -> Any:
    """A setting, or sam2's default if the configuration leaves it out (as base_plus does its stages)."""
    if not isinstance(part, dict):
        return None
    if key in part or "_target_" not in part:
        return part.get(key)
    module, _, name = part["_target_"].rpartition(".")
    try:
        default = signatures.signature(getattr(importlib.import_module(module), name)).parameters[key].default
    except (ImportError, AttributeError, KeyError):
        return None
    return None if default is signatures.Parameter.empty else default


def _check_same_shapes(
    have: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str, file: Path
) -> None:
    missing = [f"{key} is missing" for key in have if key not in weights]
    surplus = [f"{key} is unknown" for key in weights if key not in have]
    other = [
        f"{key} is {_shape(weights[key])} instead of {_shape(have[key])}"
        for key in have
        if key in weights and weights[key].shape != have[key].shape
    ]
    differences = [*other[:2], *missing[:2], *surplus[:2]]
    if differences:
        count = len(missing) + len(surplus) + len(other)
        raise ModelError(
            f"does not match the architecture {name} in {count} of its {len(have)} weights",
            file=file,
            value="; ".join(differences),
            remedy="Use the configuration that belongs to these weights.",
        )


def _check_finite(weights: Mapping[str, Tensor], file: Path) -> None:
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(
                "contains weights that are not numbers (NaN or infinite)",
                file=file,
                value=key,
                remedy="The file is damaged or its training failed; download it again.",
            )


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _instantiate(part: Any) -> Any:
    """Plain values → objects of sam2, innermost first. `checked_settings` has checked `_target_`."""
    if isinstance(part, dict):
        values = {key: _instantiate(value) for key, value in part.items() if key != "_target_"}
        if "_target_" not in part:
            return values
        module, _, name = part["_target_"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**values)
    return [_instantiate(value) for value in part] if isinstance(part, list) else part
