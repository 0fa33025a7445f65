"""Linear layers with packed weights: 4 bits by bitsandbytes, FP8 by torch.

Each packer has `pack(weight)`, (rows, columns) → layer, and is tested before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ibis_agent.errors import ModelError

# The largest value of float8_e4m3fn.
_LARGEST = 448.0


@dataclass
class FourBit:
    """A linear layer with NF4 weights of bitsandbytes."""

    packed: Tensor
    state: Any
    bias: Tensor | None = None

    def with_bias(self, bias: Tensor | None) -> FourBit:
        return FourBit(self.packed, self.state, bias)

    def __call__(self, x: Tensor) -> Tensor:
        import bitsandbytes

        return bitsandbytes.matmul_4bit(x, self.packed.t(), quant_state=self.state, bias=self.bias)

    def onto(self, rest: Tensor, x: Tensor) -> Tensor:
        return rest + self(x)


@dataclass
class EightBit:
    """A linear layer in FP8: one scale per weight row, and one per token of the input."""

    packed: Tensor
    scale: Tensor
    bias: Tensor | None = None

    def with_bias(self, bias: Tensor | None) -> EightBit:
        return EightBit(self.packed, self.scale, bias)

    def __call__(self, x: Tensor) -> Tensor:
        given, scale = in_eight_bits(x)
        found = torch._scaled_mm(given, self.packed.t(), scale, self.scale, out_dtype=torch.bfloat16)
        return found if self.bias is None else found.add_(self.bias)

    def onto(self, rest: Tensor, x: Tensor) -> Tensor:
        return rest + self(x)


def in_eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """(L, n) → (L, n) float8_e4m3fn, and the (L, 1) float32 scale to multiply it by."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min_(1e-12).div_(_LARGEST)
    return (x / scale).to(torch.float8_e4m3fn), scale


class _Int4Packer:
    def __init__(self, device: str) -> None:
        plain = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
        self.dtype = torch.bfloat16 if plain else torch.float16

    def pack(self, weight: Tensor) -> FourBit:
        import bitsandbytes.functional

        packed, state = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        return FourBit(packed, state)


class _Fp8Packer:
    dtype = torch.bfloat16

    def pack(self, weight: Tensor) -> EightBit:
        packed, scale = in_eight_bits(weight)
        return EightBit(packed, scale.t().contiguous())


def packer_for(precision: str, device: str) -> Any:
    """The packer of a precision; None if it has none. Raises ModelError if it does not work on the device."""
    if precision not in ("int4", "fp8"):
        return None
    packer: Any = _Int4Packer(device) if precision == "int4" else _Fp8Packer()
    try:
        tried = packer.pack(torch.eye(128, dtype=packer.dtype, device=device))
        seen = tried(torch.ones(2, 128, dtype=packer.dtype, device=device))
        works = bool(torch.isclose(seen.float(), torch.ones_like(seen.float()), atol=0.2).all())
        problem = "" if works else "it gives wrong results"
    except Exception as error:  # missing libraries, operators and instructions raise many kinds
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if problem:
        by = "bitsandbytes" if precision == "int4" else "torch"
        where = "processor" if device == "cpu" else "card"
        raise ModelError(
            f"{by} does not support the precision {precision} on this {where}",
            value=problem,
            remedy=f"Choose the precision bf16, or install another version of {by}.",
        )
    return packer
