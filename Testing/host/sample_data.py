"""`SampleData`: registering a module's samples, and loading one from a local file.

Nothing is downloaded; the test says which file stands for a sample.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import slicer.util

from .refuse import NotSimulatedError


class Samples:
    """What modules registered, and the files that stand for samples."""

    def __init__(self) -> None:
        #: keyword arguments of every registerCustomSampleDataSource call
        self.registered: list[dict[str, Any]] = []
        #: sample name → file
        self.files: dict[str, Path] = {}

    def reset(self) -> None:
        self.registered.clear()
        self.files.clear()


def install(samples: Samples) -> None:
    """`import SampleData`."""
    module = types.ModuleType("SampleData", __doc__)

    class SampleDataLogic:
        """The calls that other modules make."""

        @staticmethod
        def registerCustomSampleDataCategory(category: str, title: str) -> None:
            """Slicer 5.12; only accepted."""

        @staticmethod
        def registerCustomSampleDataSource(
            category: str = "Custom",
            sampleName: Any = None,
            uris: Any = None,
            fileNames: Any = None,
            nodeNames: Any = None,
            customDownloader: Any = None,
            thumbnailFileName: Any = None,
            loadFileTypes: Any = None,
            loadFiles: Any = None,
            loadFileProperties: Any = None,
            checksums: Any = None,
            loadFileType: Any = None,
        ) -> None:
            samples.registered.append(dict(locals()))

        def downloadSample(self, sampleName: str) -> Any:
            if sampleName not in samples.files:
                raise NotSimulatedError(f"Downloading the sample '{sampleName}'")
            return slicer.util.loadVolume(str(samples.files[sampleName]))

    module.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    module.downloadSample = lambda name: SampleDataLogic().downloadSample(name)  # type: ignore[attr-defined]
    sys.modules["SampleData"] = module
