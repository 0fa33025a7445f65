"""The results of runs: the last accepted segment, its measurements, and exported files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import slicer
from ibis_agent.mask.measurements import Measurements

from .Errors import PlainError
from .scene.Accept import accept
from .scene.Export import exportDicom, exportSegment
from .scene.Measures import measureSegment, writeRow
from .scene.SceneRun import SceneRun


class Results:
    """
    :ivar segmentation: the segmentation node that received the last accepted mask; None before the first.
    :ivar segmentId: the segment in it.
    :ivar measured: the Measurements of that segment; None if it could not be measured.
    :ivar table: the vtkMRMLTableNode with a row for each accepted segment.
    """

    def __init__(self) -> None:
        self.segmentation: Any = None
        self.segmentId = ""
        self.measured: Measurements | None = None
        self.table = None

    @property
    def hasSegment(self) -> bool:
        """Whether the last accepted mask is still in the scene."""
        if self.segmentation is None or not slicer.mrmlScene.IsNodePresent(self.segmentation):
            return False
        return self.segmentation.GetSegmentation().GetSegment(self.segmentId) is not None

    def accept(self, run: SceneRun, segmentationNode, segmentId: str, name: str, show3D: bool) -> str:
        """Add the displayed mask of a run to a segmentation, see scene.Accept. Returns the segment's ID."""
        run.show(run.shown)  # as recorded, without slices that were still being propagated
        self.segmentation, self.segmentId = accept(
            run.mask.node,
            run.mask.segmentId,
            run.record.question,
            run.record.answer or "",
            segmentationNode=segmentationNode,
            segmentId=segmentId,
            name=name,
            volumeNode=run.volumeNode,
            show3D=show3D,
        )
        run.record.back(run.shown)
        self._measure(run)
        return self.segmentId

    def export(self, run: SceneRun | None, path: str) -> Path:
        """Write a run's mask or, without a run, the last accepted one as .seg.nrrd, NIfTI or NRRD."""
        if run is not None:
            return _export(run.mask.node, run.mask.segmentId, path)
        self._check()
        return _export(self.segmentation, self.segmentId, path)

    def exportDicom(self, folder: str) -> None:
        """Write the segmentation with the accepted mask as DICOM SEG."""
        self._check()
        exportDicom(self.segmentation, folder)

    def _check(self) -> None:
        if not self.hasSegment:
            raise PlainError("There is no mask to export.")

    def _measure(self, run: SceneRun) -> None:
        """Add a row to the table of measurements. The mask is accepted even if it cannot be measured."""
        self.measured, self.table = None, None
        if run.volumeNode is None:
            return
        node, segmentId, alone = self.segmentation, self.segmentId, run.scope == "slice"
        try:
            self.measured = measureSegment(node, segmentId, run.volumeNode, run.place.axis, oneSlice=alone)
            self.table = writeRow(node, segmentId, self.measured, run.volumeNode)
        except Exception as error:  # the segment was added: the run must be closed in any case
            logging.warning("IBISSlicer: the segment was not measured: %s", error)


def _export(segmentationNode, segmentId: str, path: str) -> Path:
    role = segmentationNode.GetReferenceImageGeometryReferenceRole()
    return exportSegment(segmentationNode, segmentId, segmentationNode.GetNodeReference(role), path)
