"""Opening a run that was recorded elsewhere: a trajectory.json of the terminal, or the example that comes
along.

The picture travels in the record, so no scan is needed: the slice becomes a volume one voxel thick.
"""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path

import numpy as np
import slicer
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.record.forms import is_volume_record
from ibis_agent.record.pictures import picture_to_json
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.geometry import PictureGeometry

from .Geometry import SlicePlace, vtkMatrix
from .SceneRun import SceneRun


def openRecordedRun(path: str) -> SceneRun:
    """Put the recorded slice and its run into the scene, ready to be stepped through.

    :raises InputError: naming the file and what is wrong with it.
    """
    record = read_json(path)
    if is_volume_record(record):
        remedy = "Open the review.html beside it in a browser."
        raise InputError(
            "is the record of a whole volume; only those of a slice can be opened here",
            file=path,
            remedy=remedy,
        )
    run = Trajectory.from_json(record, path)
    geometry = _alone(run.picture.geometry)
    volumeNode = _createVolume(run, geometry, Path(path).stem)
    place = SlicePlace(geometry.axis, 0, 1)
    sceneRun = SceneRun.create(volumeNode, place, run.question, run.picture.window)
    head = run.head()
    picture = dataclasses.replace(run.picture, geometry=geometry)
    head["picture"] = picture_to_json(picture, run.source, run.orientation)
    record = sceneRun.record
    record.open(head)
    for step in run.to_json()["steps"]:
        record.extend(record.after, {**step, "uid": uuid.uuid4().hex[:12]}, {"status": "ready"})
    record.settle({"status": run.status, "reason": run.reason, "answer": run.answer})
    sceneRun.showLast()
    sceneRun.save()
    return sceneRun


def examplePath(resources: Path) -> Path | None:
    """The example that comes with the module, if this installation has it."""
    path = resources / "Example" / "trajectory.json"
    return path if path.is_file() else None


def _alone(geometry: PictureGeometry) -> PictureGeometry:
    """The geometry of the slice as a volume of its own, at the same place in the patient."""
    shape = tuple(1 if axis == geometry.axis else count for axis, count in enumerate(geometry.shape))
    affine = np.array(geometry.affine)
    affine[:3, 3] += affine[:3, geometry.axis] * geometry.index
    return dataclasses.replace(geometry, shape=shape, affine=affine, index=0)


def _createVolume(run: Trajectory, geometry: PictureGeometry, name: str):
    grey = run.picture.rgb.mean(axis=2)
    low, high = run.picture.window or (0.0, 255.0)
    values = np.zeros(geometry.shape, np.float32)
    geometry.extract(values)[...] = low + grey * (high - low) / 255
    volumeNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", run.source or name)
    volumeNode.SetIJKToRASMatrix(vtkMatrix(geometry.affine))
    slicer.util.updateVolumeFromArray(volumeNode, np.ascontiguousarray(values.transpose()))
    volumeNode.CreateDefaultDisplayNodes()
    display = volumeNode.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevel(high - low, (high + low) / 2)
    return volumeNode
