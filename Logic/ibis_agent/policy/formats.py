"""Model formats: which quantised folders can be run, by which library, and which are refused.

A quantised folder is recognised from its configuration, or from the names and data types of its tensors; GGUF and ONNX
from the file names. Reads headers only.
"""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibis_agent.errors import ModelError
from ibis_agent.policy.headers import Tensor

UNPACKED = "compressed-tensors"
# Formats that transformers runs through their own libraries, and the packages these need.
COMPUTED = {
    "awq": ("gptqmodel", "accelerate"),
    "gptq": ("gptqmodel", "optimum", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "fp8": ("accelerate",),
}
_KINDS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "mlx": "MLX",
}
_UNQUANTISED = frozenset({"F16", "BF16", "F32", "F64"})
_PACKED = re.compile(r"\.(?:qweight|qzeros|weight_packed|g_idx)$")
_SCALED = re.compile(r"\.weight_scale(?:_inv)?$")
_BITSANDBYTES = re.compile(r"\.(?:absmax|quant_state\..*|SCB)$")
# What compressed-tensors stores in addition to a weight.
_BESIDE = re.compile(
    r"\.(?:weight_(?:scale|shape|zero_point|g_idx|global_scale)|[a-z]+_(?:scale|zero_point|global_scale))$"
)
_INSTEAD = (
    "Use the original model in BF16 safetensors, with the precision int4 to save memory; or run this one on a server "
    "and give the server's address as the policy"
)


@dataclass(frozen=True)
class Quantised:
    """How weights are quantised: `method` as in the configuration, and `words` for people, such as "GPTQ, 4 bits"."""

    method: str
    words: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The packages it needs, by their pip names."""
        return COMPUTED.get(self.method, (self.method,))

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of `needs` that are not installed."""
        return tuple(each for each in self.needs if not importlib.util.find_spec(each.replace("-", "_")))

    def check(self, folder: Path) -> None:
        """Raise ModelError if a needed package is missing."""
        if self.missing:
            raise ModelError(
                f"is quantised ({self.words}), and the packages for this are not installed: "
                + ", ".join(self.missing),
                file=folder,
                remedy=f"pip install {' '.join(self.missing)}. Or: {_INSTEAD[0].lower()}{_INSTEAD[1:]}.",
            )


def refuse_other_formats(folder: Path) -> None:
    """Raise ModelError for a folder with GGUF or ONNX weights and no safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    for end, kind, server in (
        (".gguf", "GGUF", "llama.cpp, LM Studio or Ollama"),
        (".onnx", "ONNX", "its own"),
    ):
        files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == end)
        if files:
            raise ModelError(
                f"is a {kind} model, which is not supported",
                file=folder,
                value=files[0],
                remedy=f"{_INSTEAD} ({server}).",
            )


def quantised_as(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], allowed: Collection[str]
) -> Quantised | None:
    """How the folder's weights are quantised; None if they are not.

    allowed: the methods that the caller can run. Raises ModelError for any other.
    """
    method, words = _by_configuration(config)
    if method in allowed:
        return Quantised(method, words)
    kind = words or _by_files(folder) or _by_tensors(tensors)
    if kind:
        raise ModelError(
            f"is quantised ({kind}), which is not supported",
            file=folder,
            value=kind,
            remedy=f"{_INSTEAD} (vLLM or SGLang).",
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in _UNQUANTISED:
            raise ModelError(
                f"is stored in an unsupported data type: {tensor.dtype}",
                file=folder,
                value=name,
                remedy=f"{_INSTEAD}.",
            )
    return None


def method_of(config: Mapping[str, Any]) -> str:
    """The quantisation method in a configuration, such as "gptq"; empty if there is none."""
    return _by_configuration(config)[0]


def as_unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors after compressed-tensors has unpacked them, from the headers and the stored shapes."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight_packed"):
            module = name.removesuffix("_packed")
            shape = _stored_shape(tensors.get(f"{module}_shape"), tensor)
            found[module] = Tensor(shape, "BF16", tensor.file)
        elif not _BESIDE.search(name):
            whole = tensor.dtype in _UNQUANTISED
            found[name] = tensor if whole else Tensor(tensor.shape, "BF16", tensor.file)
    return found


def _stored_shape(shape: Tensor | None, packed: Tensor) -> tuple[int, ...]:
    if shape is None or shape.file is None:  # 4 bits: two values per byte
        return (*packed.shape[:-1], 2 * packed.shape[-1])
    kind = {"I64": "q", "I32": "i"}.get(shape.dtype, "q")
    with open(shape.file, "rb") as stream:
        stream.seek(shape.start)
        return struct.unpack(f"<{shape.count}{kind}", stream.read(struct.calcsize(kind) * shape.count))


def _by_configuration(config: Mapping[str, Any]) -> tuple[str, str]:
    """(method, words); both empty if not quantised."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            settings = place.get(key)
            if not isinstance(settings, dict):
                continue
            method = str(
                settings.get("quant_method") or ("mlx" if key == "quantization" else "of its own kind")
            ).lower()
            bits = settings.get("bits") or settings.get("w_bit")
            if method == "bitsandbytes":
                bits = 4 if settings.get("load_in_4bit") else 8
            name = _KINDS.get(method, method)
            if method == UNPACKED:
                name = _compressed(settings)
            return method, f"{name}, {bits} bits" if bits else name
    return "", ""


def _compressed(settings: Mapping[str, Any]) -> str:
    """The number format within compressed-tensors: FP8, or integers of 8 or 4 bits."""
    groups = settings.get("config_groups")
    first: Any = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = (first.get("weights") if isinstance(first, dict) else None) or {}
    kind = {"float": "FP", "int": "INT"}.get(str(weights.get("type")), "")
    return f"{kind}{weights.get('num_bits', '')} of compressed-tensors" if kind else "compressed-tensors"


def _by_files(folder: Path) -> str:
    for name, kind in (("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")):
        if (folder / name).is_file():
            return kind
    return ""


def _by_tensors(tensors: Mapping[str, Tensor]) -> str:
    if any(_BITSANDBYTES.search(name) for name in tensors):
        return "bitsandbytes"
    if any(_PACKED.search(name) for name in tensors):
        return "AWQ or GPTQ"
    if any(tensor.dtype.startswith("F8_") for tensor in tensors.values()):
        return "FP8"
    if any(_SCALED.search(name) for name in tensors):
        return "scaled weights"
    return ""
