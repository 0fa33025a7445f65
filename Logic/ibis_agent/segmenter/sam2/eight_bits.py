"""Weights in half the room: the rows of large tensors as whole numbers of 8 bits, with a scale for each row.

    save_file(packed(state), file)
    unpacked(load_file(file))       # what a network takes; a state that was never packed comes back as it is

Only storage: the network computes with floating-point numbers, and the file's SHA-256 stays its identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SCALE = ".scale"
_SMALLEST = 2048  # numbers: smaller tensors stay as they are


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each large tensor `name` of two dimensions or more as int8, and beside it `name.scale`, (rows,).

    The rest in half precision.
    """
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
    """The reverse of `packed`, up to rounding: no value is off by more than half a step of its row."""
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
