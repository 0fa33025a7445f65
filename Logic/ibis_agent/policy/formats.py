"""Forms of a model that this program does not run, told by name before anything is loaded, with what can be done.

Quantised folders (AWQ, GPTQ, bitsandbytes, FP8 and others) say so in their configuration, or only by what their
tensors are called and stored as; GGUF, ONNX and MLX by their files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ibis_agent.errors import ModelError
from ibis_agent.policy.headers import Tensor

_KINDS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "compressed-tensors": "compressed-tensors",
    "mlx": "MLX",
}
_WHOLE_NUMBERS = frozenset({"F16", "BF16", "F32", "F64"})
_PACKED = re.compile(r"\.(?:qweight|qzeros|weight_packed|g_idx)$")
_SCALED = re.compile(r"\.weight_scale(?:_inv)?$")
_BITSANDBYTES = re.compile(r"\.(?:absmax|quant_state\..*|SCB)$")
_INSTEAD = (
    "Take the model that it was made from, in BF16 safetensors, and choose the precision int4 to save memory; "
    "or serve this one and give the server's address as the policy"
)


def refuse_other_formats(folder: Path) -> None:
    """Raises ModelError for a folder whose weights are GGUF or ONNX and that contains no safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    for end, kind, server in (
        (".gguf", "GGUF", "llama.cpp, LM Studio or Ollama"),
        (".onnx", "ONNX", "its own"),
    ):
        files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == end)
        if files:
            raise ModelError(
                f"is a {kind} model, which this program does not read",
                file=folder,
                value=files[0],
                remedy=f"{_INSTEAD} ({server}).",
            )


def refuse_quantised(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises ModelError, with the kind's name, for weights that are stored quantised."""
    kind = _by_configuration(config) or _by_files(folder) or _by_tensors(tensors)
    if kind:
        raise ModelError(
            f"is quantised ({kind}); this program reads whole weights only",
            file=folder,
            value=kind,
            remedy=f"{_INSTEAD} (vLLM or SGLang).",
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in _WHOLE_NUMBERS:
            raise ModelError(
                f"is stored in numbers that this program does not read: {tensor.dtype}",
                file=folder,
                value=name,
                remedy=f"{_INSTEAD}.",
            )


def _by_configuration(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            settings = place.get(key)
            if not isinstance(settings, dict):
                continue
            method = str(
                settings.get("quant_method") or ("mlx" if key == "quantization" else "of its own kind")
            )
            bits = settings.get("bits") or settings.get("w_bit")
            if method == "bitsandbytes":
                bits = 4 if settings.get("load_in_4bit") else 8
            name = _KINDS.get(method.lower(), method)
            if method == "compressed-tensors":
                name = _compressed(settings)
            return f"{name}, {bits} bits" if bits else name
    return ""


def _compressed(settings: Mapping[str, Any]) -> str:
    """compressed-tensors holds several kinds: FP8, and whole numbers of 8 or 4 bits."""
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
