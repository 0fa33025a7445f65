"""torch.compile for the layers of a block, if it was requested, is available and is faster.

IBIS_COMPILE=1 requests it; the first reply then waits for the compiler. It needs CUDA and triton, which torch brings
on Linux but not on Windows. One compiled layer serves for all, with the same rounding as without compilation.
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
from ibis_agent.policy.qwen25.packed_layers import FourBit

ASKED = "IBIS_COMPILE"
_REPEATS = 10
# Required gain, larger than the error of timing.
_WINS = 0.97


def compiled_layer(network: Network, backend: str = "inductor") -> Step | None:
    """The compiled layer if it was requested and is possible; otherwise None, with a warning of one line."""
    if os.environ.get(ASKED, "") not in ("1", "true", "yes"):
        return None
    why = ""
    if network.device.type != "cuda":
        why = "needs CUDA"
    elif not importlib.util.find_spec("triton"):
        why = "needs triton, which is not installed"
    elif isinstance(network.language.layers[0].qkv, FourBit):
        why = "does not work with int4"
    if not why:
        return compile_layer(backend)
    _not_used(why)
    return None


def compile_layer(backend: str = "inductor") -> Step:
    """Compile layer_of_block; compilation happens at the first call, for its shapes."""
    options: dict[str, Any] | None = {"emulate_precision_casts": True} if backend == "inductor" else None
    made: Step = torch.compile(
        layer_of_block, fullgraph=True, dynamic=False, backend=backend, options=options
    )
    return made


def is_faster(
    make: Callable[[], Callable[[], Tensor]], plain: Callable[[], Tensor], device: torch.device
) -> bool:
    """Whether the function from `make` gives (n, V) logits faster than `plain`, with the same most likely tokens.

    Warns in one line if not.
    """
    try:
        other = make()
        wanted, found = plain().argmax(-1), other().argmax(-1)
        if not torch.equal(wanted, found):
            _not_used("chose other tokens")
            return False
        times = _seconds(plain, device), _seconds(other, device)
    except Exception as error:  # the compiler raises many kinds of exceptions
        _not_used(f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}")
        return False
    if times[1] > times[0] * _WINS:
        _not_used(f"is not faster ({1000 * times[1]:.2f} ms per block, {1000 * times[0]:.2f} without)")
        return False
    return True


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """The shortest of several timings, in seconds."""
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
