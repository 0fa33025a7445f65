"""Storing weights at half the size: rows of large tensors as 8-bit integers with one scale per row.

    save_file(packed(state), file)
    unpacked(load_file(file))       # a state that was never packed stays unchanged

Only for storage: the network computes in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SCALE = ".scale"
_SMALLEST = 2048  # values; smaller tensors are not packed


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each large tensor `name` with two or more dimensions as int8, with `name.scale`, (rows,); others as float16."""
    import torch

    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if not value.dtype.is_floating_point:
            out[name] = value.contiguous()
        elif value.ndim < 2 or value.numel() < _SMALLEST:
            out[name] = value.half().contiguous()
        else:
            rows = value.float().flatten(1)
            scale = (rows.abs().amax(1) / 127).clamp_min(1e-12)
            whole = (rows / scale[:, None]).round().clamp(-127, 127)
            out[name], out[name + SCALE] = whole.to(torch.int8).view(value.shape).contiguous(), scale
    return out


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `packed`, up to half a quantisation step per row."""
    import torch

    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(SCALE) and state.get(name[: -len(SCALE)], value).dtype == torch.int8:
            continue
        scale = state.get(name + SCALE)
        if value.dtype == torch.int8 and scale is not None:
            shape = (-1, *[1] * (value.ndim - 1))
            value = (value.float() * scale.view(shape)).half()
        out[name] = value
    return out
