"""Reading the tensors of a policy's folder one at a time, from exactly the files that were checked and hashed.

Files are memory-mapped, so that main memory never contains all weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import PolicyFolder

if TYPE_CHECKING:
    import torch


def read_tensors(found: PolicyFolder, device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every tensor, file by file, on the CPU as stored.

    device: where quantised weights are unpacked. Raises ModelError if a file has changed since it was hashed, or a
    tensor contains NaN or infinite values.
    """
    from safetensors import SafetensorError, safe_open

    found.check_unchanged()
    if found.quantised:
        from ibis_agent.policy.qwen25.compressed_tensors import Unpacker

        unpacker = Unpacker(found)
    for path in found.files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 - it is not a mapping
                    tensor = file.get_tensor(name)
                    if not found.quantised:
                        check_finite(tensor, name, found)
                        yield name, tensor
                        continue
                    for whole_name, whole in unpacker.take(name, tensor.to(device)):
                        check_finite(whole, whole_name, found)
                        yield whole_name, whole
        except (SafetensorError, OSError) as error:
            raise ModelError(
                "cannot be read", file=path, value=str(error), remedy="Download the folder again."
            ) from error
    found.check_unchanged()


def check_finite(tensor: torch.Tensor, name: str, found: PolicyFolder, precision: str = "") -> None:
    """Raise ModelError for a tensor with NaN or infinite values. precision: what it was converted to."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = torch.aminmax(tensor)
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return
    if precision:
        raise ModelError(
            f"has weights too large for the precision {precision}",
            file=found.folder,
            value=name,
            remedy="Choose the precision bf16 or fp32.",
        )
    raise ModelError(
        "contains weights that are not numbers (NaN or infinite)",
        file=found.folder,
        value=name,
        remedy="Its training failed or the file is damaged: use an earlier checkpoint, or download it again.",
    )
