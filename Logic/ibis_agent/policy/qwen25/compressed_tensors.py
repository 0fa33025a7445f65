"""Unpacking of compressed-tensors weights by that library, module by module while the files are read.

transformers does the same before it computes. The unpacked weights run in any precision, including fp8 and int4.
Quantisation of activations is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import PolicyFolder
from ibis_agent.policy.headers import read_header

if TYPE_CHECKING:
    import torch

_WEIGHTS = ("weight_packed", "weight")


class Unpacker:
    """Collects the stored tensors of each module, and unpacks its weight when they are complete."""

    def __init__(self, found: PolicyFolder) -> None:
        """Raises ModelError if the library is missing or does not know the folder's format."""
        assert found.quantised is not None
        found.quantised.check(found.folder)
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationConfig

        self._found = found
        settings = dict(found.config.get("quantization_config") or found.config["compression_config"])
        if settings.get("transform_config"):
            raise self._wrong("its weights are rotated as well (transform_config)")
        try:
            self._config = QuantizationConfig.model_validate(settings)
            self._compressor_of = BaseCompressor.get_value_from_registry
            for group in self._config.config_groups.values():
                self._compressor_of(str(group.format or self._config.format))
        except Exception as error:  # the library raises many kinds of exceptions
            raise self._wrong(error) from error
        names = {name for path in found.files for name in read_header(path)}
        scaled = {name.rpartition(".")[0] for name in names if name.endswith(".weight_scale")}
        self._parts = {module: {n for n in names if n.rpartition(".")[0] == module} for module in scaled}
        self._gathered: dict[str, dict[str, Any]] = {}

    def take(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of what one stored tensor completes: itself, nothing yet, or a module's bias and weight."""
        module = name.rpartition(".")[0]
        if module not in self._parts:
            yield name, tensor
            return
        gathered = self._gathered.setdefault(module, {})
        gathered[name.rpartition(".")[2]] = tensor
        if len(gathered) < len(self._parts[module]):
            return
        del self._gathered[module]
        if "bias" in gathered:
            yield f"{module}.bias", gathered.pop("bias")
        group = self._group_of(module)
        try:
            kind: Any = self._compressor_of(str(group.format or self._config.format))
            yield f"{module}.weight", kind.decompress(gathered, group)["weight"]
        except Exception as error:
            raise self._wrong(f"{module}: {error}") from error

    def _group_of(self, module: str) -> Any:
        groups = list(self._config.config_groups.values())
        for group in groups:
            if any(t.startswith("re:") and re.match(t[3:], module) for t in group.targets):
                return group
        plain = [each for each in groups if any(not t.startswith("re:") for t in each.targets)]
        return (plain or groups)[0]

    def _wrong(self, problem: object) -> ModelError:
        return ModelError(
            "cannot be unpacked by compressed-tensors",
            file=self._found.folder,
            value=" ".join(str(problem).split())[:200],
            remedy="Try a newer compressed-tensors, or run the model on a server and give its address as the policy.",
        )
