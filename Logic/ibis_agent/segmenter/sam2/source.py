"""A file of SAM2 weights before it is loaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ibis_agent.errors import ModelError
from ibis_agent.segmenter.sam2 import architecture
from ibis_agent.segmenter.sam2.architecture import Architecture
from ibis_agent.segmenter.sam2.required_memory import memory_estimate

if TYPE_CHECKING:
    from ibis_agent.segmenter.sam2.segmenter import Sam2Segmenter

_DEMO = Path(__file__).parents[2] / "demo" / "segmenter" / "model.safetensors"


class Sam2File:
    """Weights of SAM2, SAM2.1 or MedSAM2 in a file; see segmenter.find."""

    kind = "SAM2"

    def __init__(
        self,
        file: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
    ) -> None:
        """file: None for the demonstration segmenter. Raises ModelError if that is not installed."""
        if file is None and not _DEMO.is_file():
            raise ModelError(
                "the demonstration segmenter is not in this installation",
                file=_DEMO,
                remedy="Give the weights of a segmenter, or train one: python -m training.demo.train_segmenter.",
            )
        self.file = _DEMO if file is None else Path(file)
        self.config = config

    def inspect(self) -> Architecture:
        """The architecture that `open` would load. Raises ModelError if it would refuse the file."""
        return architecture.inspect(self.file, self.config)

    def run_bytes(self) -> int:
        """See required_memory.memory_estimate."""
        return memory_estimate(self.inspect())

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file's bytes."""
        digest = hashlib.sha256()
        with open(self.file, "rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def open(self, device: str = "auto", precision: str = "auto", first_box: bool = False) -> Sam2Segmenter:
        """Load the segmenter, see segmenter.open. Device and precision are checked before the weights are read."""
        from ibis_agent.segmenter.sam2.segmenter import Sam2Segmenter, device_of, precision_on

        where = device_of(device)
        precision_on(precision, where)
        model, found = architecture.load(self.file, self.config)
        identity = {"name": self.file.name, "sha256": self.sha256(), "architecture": found.name}
        return Sam2Segmenter(model, found, identity, where, precision, first_box)
