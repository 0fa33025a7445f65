"""The module's self-test, for a real Slicer: a whole session as a user would do it.

Each function takes the test case of IBISSlicer.py.

Uses the demonstration models if they are installed, and a scripted worker (real process, no models) if not.
Needs no downloads: the scan is created here. Unit tests are in the checkout's Testing/Python.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import slicer

_REPLIES = [
    "<think>The bright disc is the organ.</think>\n<action>Positive Point (0.3000, 0.5000)</action>",
    "<think>It reaches further up.</think>\n<action>Positive Point (0.3500, 0.3800)</action>",
    "<think>The outline is right.</think>\n<action>Terminate</action>\n<answer>Liver</answer>",
]


def _makeLogic(folder: str):
    """A separate logic, with the worker that this Slicer can run."""
    import IBISSlicer
    from IBISSlicerLib.worker import Settings
    from IBISSlicerLib.worker.Install import Installer

    logic = IBISSlicer.IBISSlicerLogic()
    requirements = Path(IBISSlicer.__file__).parent / "Resources" / "requirements.txt"
    if os.environ.get("IBIS_TEST_SCRIPTED") or (
        Installer(str(requirements)).missing() and not Settings.python()
    ):
        script = Path(folder) / "script.json"
        script.write_text(json.dumps({"replies": _REPLIES, "radius": 0.5}), encoding="utf-8")
        logic.worker.arguments = ["--script", str(script)]
    return logic


def _makeVolume():
    """A computed volume: a body with one bright organ, 96 × 80 × 9 voxels of 3 mm."""
    k, j, i = np.ogrid[:9, :80, :96]
    voxels = np.where(np.hypot((i - 48) / 44, (j - 40) / 34) < 1, 20, -1000) + 0 * k
    voxels[np.broadcast_to(np.hypot((i - 30) / 16, (j - 36) / 18) < 1, voxels.shape)] = 120
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Phantom")
    volume.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    volume.SetOrigin(144, 120, -12)
    volume.SetSpacing(3, 3, 3)
    slicer.util.updateVolumeFromArray(volume, voxels.astype(np.int16))
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(400, 40)
    return volume


def testSession(test) -> None:
    """Load, ask, step, back, correct, accept, save and reopen."""
    with tempfile.TemporaryDirectory(prefix="IBISSlicerTest-") as folder:
        _session(test, folder)
    test.delayDisplay("Test passed")


def _session(test, folder: str) -> None:
    test.delayDisplay("Asking")
    logic, volume = _makeLogic(folder), _makeVolume()
    try:
        logic.ask(volume, "Segment the liver.", axis=2, index=4)
        first = logic.step()
        test.assertEqual(first["number"], 1)
        test.assertEqual(first["by"], "policy")
        while len(logic.steps) < 2 and logic.current.record.status == "ready":
            logic.step()

        test.delayDisplay("Correcting")
        logic.back(1)
        test.assertEqual(len(logic.steps), 1)
        mine = logic.addClick(logic.current.places.worldOf(0.35, 0.4), positive=True)
        test.assertEqual((mine["number"], mine["by"]), (2, "person"))
        test.assertGreater(mine["area_px"], 0)
        logic.undo()
        logic.redo()
        test.assertEqual(len(logic.steps), 2)

        test.delayDisplay("Saving and reopening")
        path = str(Path(folder) / "scene.mrb")
        test.assertTrue(slicer.util.saveScene(path))
        slicer.mrmlScene.Clear(0)
        test.assertIsNone(logic.current)
        slicer.util.loadScene(path)
        test.assertTrue(logic.reopen(takeOver=True))  # the panel, if there is one, owns it
        test.assertEqual([step["by"] for step in logic.steps], ["policy", "person"])
        area = logic.steps[-1]["area_px"]
        test.assertEqual(int(logic.current.record.mask().sum()), area)

        test.delayDisplay("Accepting")
        segmentId = logic.accept()
        node = logic.results.segmentation
        test.assertEqual(node.GetSegmentation().GetSegment(segmentId).GetName(), "Liver")
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, slicer.util.getNode("Phantom"))
        test.assertEqual(int((mask != 0).sum()), area)
        test.assertEqual(int((mask[4] != 0).sum()), area)
    finally:
        logic.shutdown()


def testPanel(test) -> None:
    """The panel opens, disables buttons that cannot be used, and shows what the logic does."""
    widget = slicer.util.getModuleWidget("IBISSlicer")  # also works without a main window
    test.assertFalse(widget.ui.acceptButton.enabled)
    test.assertFalse(widget.ui.stopButton.enabled)
    test.assertIn("Research use only", widget.ui.footerLabel.text)
    _makeVolume()
    widget.questionPanel.setQuestion("Segment the liver.")
    test.assertIsNotNone(widget.ui.volumeSelector.currentNode())
