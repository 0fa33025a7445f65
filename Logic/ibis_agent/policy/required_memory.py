"""The memory a policy needs and the free memory, checked before loading.

Estimates use the shapes in the weights' headers, without torch.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import PolicyFolder
from ibis_agent.policy.formats import UNPACKED

PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int4")
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# NF4: half a byte per weight, a one-byte scale per 64 weights, and a float32 per 256 scales.
# FP8: one byte per weight and four per row.
_PACKED = {"int4": 0.5 + (1 + 4 / 256) / 64, "fp8": 1.002}
_QUANTIZED = re.compile(r"layers\..*\.weight$")
# Memory of torch, its kernels and fragmentation beyond tensors; a CUDA context alone takes about 0.5 GB.
_OVERHEAD = {"cpu": 0.3e9, "cuda": 1.0e9}
_PROMPT_TOKENS = 2048


class NotEnoughMemoryError(ModelError):
    """The model does not fit into memory."""


def weight_bytes(folder: PolicyFolder, precision: str) -> int:
    """Memory of the weights in bytes. In int4 and fp8 the vision tower, embeddings and output stay at 16 bits."""
    if folder.quantised and folder.quantised.method != UNPACKED:
        return folder.stored_bytes
    if precision not in _PACKED:
        return folder.parameters * _BYTES[precision]
    total = 0.0
    for name, tensor in folder.tensors.items():
        quantized = len(tensor.shape) == 2 and _QUANTIZED.search(name)
        total += tensor.count * (_PACKED[precision] if quantized else 2)
    return math.ceil(total)


def run_bytes(
    folder: PolicyFolder,
    precision: str,
    device: str = "cpu",
    max_new_tokens: int = 512,
    prompt_tokens: int = _PROMPT_TOKENS,
) -> int:
    """Memory for loading and running, in bytes: weights, keys and values, and the largest intermediate results.

    The default of 2048 prompt tokens is a picture of about a megapixel.
    """
    text, vision = folder.text_config, folder.config.get("vision_config") or {}
    each = 4 if precision == "fp32" else 2
    heads = int(text.get("num_attention_heads") or 1)
    hidden = int(text.get("hidden_size") or 0)
    keys_and_values = (
        2
        * int(text.get("num_hidden_layers") or 0)
        * int(text.get("num_key_value_heads") or heads)
        * hidden
        // heads
    )
    merge = int(vision.get("spatial_merge_size") or 2) ** 2
    patch = 3 * int(vision.get("patch_size") or 14) ** 2 * int(vision.get("temporal_patch_size") or 2)
    of_a_patch = patch * 4 + 8 * int(vision.get("hidden_size") or 0) * each
    of_a_patch += 3 * int(vision.get("intermediate_size") or 0) * each
    of_a_token = (8 * hidden + 3 * int(text.get("intermediate_size") or 0)) * each
    tokens = prompt_tokens + max_new_tokens
    passing = max(prompt_tokens * merge * of_a_patch, min(prompt_tokens, _PROMPT_TOKENS) * of_a_token)
    total = weight_bytes(folder, precision) + tokens * keys_and_values * each + passing
    return math.ceil(total + _OVERHEAD["cuda" if device.startswith("cuda") else "cpu"])


def free_bytes(device: str = "cpu") -> int | None:
    """Free memory of a device in bytes; None if unknown."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        import psutil  # missing in Slicer before the installation
    except ImportError:
        return None
    free = int(psutil.virtual_memory().available)
    container = _free_in_cgroup()
    return free if container is None else min(free, container)


def offered(device: str) -> tuple[str, ...]:
    """The precisions available on a device."""
    return tuple(each for each in PRECISIONS if each != "fp8" or has_fp8(device))


def has_fp8(device: str) -> bool:
    """Whether a device supports FP8: compute capability 8.9 or above (Ada, Hopper, Blackwell)."""
    if not device.startswith("cuda"):
        return False
    import torch

    return tuple(torch.cuda.get_device_capability(torch.device(device))) >= (8, 9)


def check_memory(folder: PolicyFolder, precision: str, device: str, max_new_tokens: int = 512) -> None:
    """Raise NotEnoughMemoryError, with a precision that would fit, before anything is loaded."""
    needed, free = run_bytes(folder, precision, device, max_new_tokens), free_bytes(device)
    if free is None or needed <= free:
        if device.startswith("cuda"):
            _check_main_memory(folder)
        return
    where = "on the GPU" if device.startswith("cuda") else "in memory"
    fits = [
        other
        for other in offered(device)
        if other != precision and run_bytes(folder, other, device, max_new_tokens) <= free
    ]
    remedy = (
        f'Choose the precision "{fits[0]}", which fits.'
        if fits
        else "Close other programs, or use a smaller model."
    )
    raise NotEnoughMemoryError(
        f"needs about {gigabytes(needed)} {where} in {precision}, and {gigabytes(free)} are free",
        file=folder.folder,
        remedy=remedy,
    )


def check_request(
    folder: PolicyFolder, precision: str, device: str, max_new_tokens: int, tokens: int
) -> None:
    """Raise NotEnoughMemoryError for a request that is longer than `check_memory` assumed and does not fit."""
    if tokens <= _PROMPT_TOKENS:
        return
    assumed = run_bytes(folder, precision, device, max_new_tokens)
    more, free = run_bytes(folder, precision, device, max_new_tokens, tokens) - assumed, free_bytes(device)
    if free is not None and more > free:
        raise NotEnoughMemoryError(
            f"a request of {tokens} tokens needs about {gigabytes(more)} more, and {gigabytes(free)} are free",
            file=folder.folder,
            remedy="Set a smaller max_pixels in the folder's ibis_model.json, or use a shorter history.",
        )


def _check_main_memory(folder: PolicyFolder) -> None:
    """While loading onto a GPU, one tensor at a time is in main memory, as stored and converted."""
    largest = max((tensor.count for tensor in folder.tensors.values()), default=0)
    needed, free = largest * 8 + _OVERHEAD["cpu"], free_bytes("cpu")
    if free is not None and needed > free:
        raise NotEnoughMemoryError(
            f"needs about {gigabytes(needed)} of memory while loading onto the GPU, but {gigabytes(free)} are free",
            file=folder.folder,
            remedy="Close other programs.",
        )


def count_words(number: int) -> str:
    """A number of parameters for people: 8.29 billion."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.2f} {word}"
    return str(number)


def gigabytes(number: float) -> str:
    """Bytes for people: 16.6 GB, or MB below 1 GB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _free_in_cgroup() -> int | None:
    """Free memory of a container, which psutil does not know; page cache counts as free."""
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cache = 0
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith(("inactive_file ", "active_file ")):
                cache += int(line.split()[1])
        return max(0, int(limit) - used + cache)
    except (OSError, ValueError, IndexError):
        return None
