"""Products whose weights are packed: 4 bits by bitsandbytes, 8 bits (FP8) by torch itself.

Each kind has `pack(weight)`, (rows, columns) → the product, and is tried out before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ibis_agent.errors import ModelError

# The largest number of float8_e4m3fn.
_LARGEST = 448.0


@dataclass
class FourBit:
    """A product whose weight is packed as NF4 by bitsandbytes."""

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
class Eight:
    """A product in FP8: weights with a scale for each row, what comes in with one for each token."""

    packed: Tensor
    scale: Tensor
    bias: Tensor | None = None

    def with_bias(self, bias: Tensor | None) -> Eight:
        return Eight(self.packed, self.scale, bias)

    def __call__(self, x: Tensor) -> Tensor:
        given, scale = in_eight_bits(x)
        found = torch._scaled_mm(given, self.packed.t(), scale, self.scale, out_dtype=torch.bfloat16)
        return found if self.bias is None else found.add_(self.bias)

    def onto(self, rest: Tensor, x: Tensor) -> Tensor:
        return rest + self(x)


def in_eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """(L, n) → the same in float8_e4m3fn, and (L, 1) float32 that it has to be multiplied by."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min_(1e-12).div_(_LARGEST)
    return (x / scale).to(torch.float8_e4m3fn), scale


class _FourBits:
    def __init__(self, device: str) -> None:
        plain = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
        self.dtype = torch.bfloat16 if plain else torch.float16

    def pack(self, weight: Tensor) -> FourBit:
        import bitsandbytes.functional

        packed, state = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        return FourBit(packed, state)


class _EightBits:
    dtype = torch.bfloat16

    def pack(self, weight: Tensor) -> Eight:
        packed, scale = in_eight_bits(weight)
        return Eight(packed, scale.t().contiguous())


def packer_for(precision: str, device: str) -> Any:
    """What packs the weights of a precision, None for those that are not packed. Raises ModelError."""
    if precision not in ("int4", "fp8"):
        return None
    packer: Any = _FourBits(device) if precision == "int4" else _EightBits()
    try:
        tried = packer.pack(torch.eye(128, dtype=packer.dtype, device=device))
        seen = tried(torch.ones(2, 128, dtype=packer.dtype, device=device))
        works = bool(torch.isclose(seen.float(), torch.ones_like(seen.float()), atol=0.2).all())
        problem = "" if works else "its products are wrong"
    except Exception as error:  # a missing library, operator or instruction: all kinds
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if problem:
        by = "bitsandbytes" if precision == "int4" else "torch"
        where = "processor" if device == "cpu" else "card"
        raise ModelError(
            f"{by} cannot serve the precision {precision} on this {where}",
            value=problem,
            remedy=f"Choose the precision bf16, or install another version of {by}.",
        )
    return packer
