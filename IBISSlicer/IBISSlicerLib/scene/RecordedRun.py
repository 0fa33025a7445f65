"""Open a run that was recorded elsewhere: a trajectory.json from the terminal, or the included example.

The record contains the pictures, so no scan is needed: a slice becomes a volume one voxel thick; several slices become
a volume in which slices that the run did not visit are black. If the scan itself is in the scene, it is used instead.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
from ibis_agent.record.recorded_run import run_record_of
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.picture import cut

from .Geometry import SlicePlace, ijkToWorld, isColour, scanOf, shapeOf, vtkMatrix
from .SceneRun import SceneRun


def openRecordedRun(path: str) -> SceneRun:
    """Add the recorded slices and their run to the scene, ready for review.

    :raises InputError: naming the file and what is wrong with it.
    """
    run = Trajectory.load(path)
    volumeNode = _scanInScene(run)
    record = run_record_of(run, whole_scan=volumeNode is not None)
    if volumeNode is None:
        volumeNode = _createVolume(run, Path(path).stem)
    geometry, window = record.geometry, run.picture.window
    index = geometry.index if run.alone or run.key is None else run.key
    place = SlicePlace(geometry.axis, index, geometry.shape[geometry.axis])
    slices = None if run.alone else record.range
    sceneRun = SceneRun.create(volumeNode, place, run.question, window, slices, record)
    sceneRun.showLast()
    sceneRun.save()
    return sceneRun


def examplePath(resources: Path) -> Path | None:
    """The example of the module, if it is installed."""
    path = resources / "Example" / "trajectory.json"
    return path if path.is_file() else None


def _scanInScene(run: Trajectory):
    """The volume in the scene whose slices equal the recorded ones, pixel for pixel; None if there is none."""
    geometry = run.picture.geometry
    for volumeNode in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        if volumeNode.GetImageData() is None or shapeOf(volumeNode) != geometry.shape:
            continue
        if isColour(volumeNode) or not np.allclose(ijkToWorld(volumeNode), geometry.affine, atol=1e-3):
            continue
        if all(
            _isOf(scanOf(volumeNode), run.slices.picture(index), run.orientation) for index in run.visited
        ):
            return volumeNode
    return None


def _isOf(scan, picture, orientation: str | None) -> bool:
    if orientation is None or picture.window is None:
        return False
    plane = "xyz"[picture.geometry.axis]
    own = cut(scan, plane, picture.geometry.index, picture.window, orientation)
    return np.array_equal(own.rgb, picture.rgb)


def _createVolume(run: Trajectory, name: str):
    whole = run.picture.geometry
    geometry = whole.slab() if run.alone else whole
    low, high = run.picture.window or (0.0, 255.0)
    values = np.full(geometry.shape, low, np.float32)
    for index in run.visited:
        at = geometry if run.alone else run.slices.geometry(index)
        # In the middle of a grey level, so that the same window gives the same picture.
        grey = np.minimum(run.slices.picture(index).rgb.mean(axis=2) + 0.5, 255)
        at.extract(values)[...] = low + grey * (high - low) / 255
    volumeNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", run.source or name)
    volumeNode.SetIJKToRASMatrix(vtkMatrix(geometry.affine))
    slicer.util.updateVolumeFromArray(volumeNode, np.ascontiguousarray(values.transpose()))
    volumeNode.CreateDefaultDisplayNodes()
    display = volumeNode.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevel(high - low, (high + low) / 2)
    return volumeNode
