"""The phantom in Slicer's Sample Data module: an upper abdomen computed by training.phantoms, not a patient.

It is included in the extension and needs no download.
"""

from __future__ import annotations

from pathlib import Path

import slicer

NAME = "IBISPhantom"
_WINDOW, _LEVEL = 400, 40  # soft tissue, HU


def registerPhantom(resources: Path) -> None:
    """Offer the phantom in the category IBISSlicer, if its file is installed."""
    import SampleData

    path = resources / "SampleData" / f"{NAME}.nrrd"
    if path.is_file():
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="IBISSlicer",
            sampleName=NAME,
            thumbnailFileName=str(resources / "Icons" / f"{NAME}.png"),
            customDownloader=lambda source: [loadPhantom(path)],
        )


def loadPhantom(path: Path):
    """Load the phantom and show it with a soft-tissue window. Returns its volume node."""
    volumeNode = slicer.util.loadVolume(str(path), {"name": NAME})
    display = volumeNode.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevel(_WINDOW, _LEVEL)
    return volumeNode
