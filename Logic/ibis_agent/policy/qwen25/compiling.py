"""torch.compile for a layer of a block, where it was asked for, is there and wins.

IBIS_COMPILE=1 asks for it: the first reply then waits for the compiler. It is for CUDA with triton, which torch brings
on Linux and not on Windows. One layer is compiled, for all of them, and rounds where the plain way rounds.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ibis_agent.policy.qwen25.network import Network, Step, layer_of_block
from ibis_agent.policy.qwen25.packing import FourBit

ASKED = "IBIS_COMPILE"
_REPEATS = 10
# It has to be this much faster, since a time is never measured exactly.
_WINS = 0.97


def compiled_layer(network: Network, backend: str = "inductor") -> Step | None:
    """The compiled layer where it was asked for and can be had; None otherwise, with one line of the reason."""
    if os.environ.get(ASKED, "") not in ("1", "true", "yes"):
        return None
    why = ""
    if network.device.type != "cuda":
        why = "is for CUDA"
    elif not importlib.util.find_spec("triton"):
        why = "needs triton, which is not installed"
    elif isinstance(network.language.layers[0].qkv, FourBit):
        why = "does not go with int4"
    if not why:
        return compile_layer(backend)
    _not_used(why)
    return None


def compile_layer(backend: str = "inductor") -> Step:
    """Compiled at its first call, for the shapes that it is then given."""
    options: dict[str, Any] | None = {"emulate_precision_casts": True} if backend == "inductor" else None
    made: Step = torch.compile(
        layer_of_block, fullgraph=True, dynamic=False, backend=backend, options=options
    )
    return made


def is_faster(
    make: Callable[[], Callable[[], Tensor]], plain: Callable[[], Tensor], device: torch.device
) -> bool:
    """Whether the way to logits (n, V) that `make` gives is faster than the plain one, and chooses the same tokens.

    Where it fails, differs or loses, one line says so.
    """
    try:
        other = make()
        wanted, found = plain().argmax(-1), other().argmax(-1)
        if not torch.equal(wanted, found):
            _not_used("chose other tokens")
            return False
        times = _seconds(plain, device), _seconds(other, device)
    except Exception as error:  # the compiler raises all kinds
        _not_used(f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}")
        return False
    if times[1] > times[0] * _WINS:
        _not_used(f"wins nothing ({1000 * times[1]:.2f} ms a block, {1000 * times[0]:.2f} without)")
        return False
    return True


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """The shortest of several."""
    found = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return min(found)


def _not_used(why: str) -> None:
    warnings.warn(f"torch.compile {why}; the policy runs without it", UserWarning, stacklevel=3)
