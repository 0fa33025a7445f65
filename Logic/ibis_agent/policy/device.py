"""Device and precision for a policy on this machine, and torch's errors in words."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy.folder import PolicyFolder
from ibis_agent.policy.required_memory import PRECISIONS, NotEnoughMemoryError, check_memory, has_fp8


def device_of(device: str) -> str:
    """Resolve "auto" to "cpu" or "cuda"; check other names. Raises InputError, and ModelError without torch."""
    torch = _torch()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise InputError("unknown device", value=device, remedy='Choose "auto", "cpu" or "cuda".')
    if kind == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        raise InputError(
            "this machine has no such CUDA device, or torch was installed without CUDA",
            value=device,
            remedy='Choose "cpu", or install a CUDA build of torch.',
        )
    return device


def precision_for(found: PolicyFolder, device: str, precision: str, max_new_tokens: int) -> str:
    """Resolve "auto" for a folder on a device; check other names. Raises InputError, ModelError."""
    if precision != "auto":
        if precision not in PRECISIONS:
            raise InputError(
                "unknown precision", value=precision, remedy=f"Choose auto, {', '.join(PRECISIONS)}."
            )
        if precision == "int4" and not importlib.util.find_spec("bitsandbytes"):
            raise ModelError(
                "the precision int4 needs bitsandbytes",
                remedy="pip install bitsandbytes, or choose another precision.",
            )
        if precision == "fp8" and not has_fp8(device):
            raise ModelError(
                "the precision fp8 needs a CUDA card of compute capability 8.9 or above (RTX 40, L4, H100 and newer)",
                value=device,
                remedy="Choose bf16, or int4 to save memory.",
            )
        return precision
    if device.startswith("cuda"):
        return "bf16" if _torch().cuda.is_bf16_supported(including_emulation=False) else "fp16"
    try:
        check_memory(found, "fp32", device, max_new_tokens)
    except NotEnoughMemoryError:
        return "bf16"
    return "fp32"


def run_error(error: Exception, folder: object) -> ModelError:
    """An error of torch as a ModelError: NotEnoughMemoryError if memory ran out."""
    text = _first_line(error)
    low = text.lower()
    if isinstance(error, MemoryError) or "out of memory" in low or "can't allocate memory" in low:
        return NotEnoughMemoryError(
            "there was not enough memory",
            value=text,
            remedy='Choose a lower precision such as "int4", a smaller picture, or a shorter history.',
        )
    return ModelError(f"the model failed: {text}", file=None if folder is None else str(folder))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ModelError(
            "torch is not installed",
            remedy="Install the packages for the models: make venv in the checkout, or Install in Slicer's panel.",
        ) from error
    return torch


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar on stderr."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
