"""Write a segment atomically to files for other programs.

Putting a mask into a segmentation of the scene is Accept.py; the review page comes from ibis_agent.record.review.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import slicer

from ..Errors import PlainError
from .OwnNodes import addOwnNode, removeNode

SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd")


class ExportError(PlainError):
    """A file that could not be written; the message says why and what to do."""


def exportSegment(segmentationNode, segmentId: str, volumeNode, path: str) -> Path:
    """Write one segment as `.seg.nrrd` (name, colour and terminology included), NIfTI or NRRD.

    NIfTI and NRRD have the grid of the volume. An existing file is replaced when the new one is complete.

    :raises ExportError: for an unknown extension, or if it cannot be written.
    """
    target = Path(path)
    suffix = next((each for each in SUFFIXES if target.name.lower().endswith(each)), None)
    if suffix is None:
        raise ExportError(f"{target.name}: the file name must end in {', '.join(SUFFIXES)}.")
    make = _temporarySegmentation if suffix == ".seg.nrrd" else _temporaryLabelmap
    node = make(segmentationNode, segmentId, volumeNode)
    try:
        with tempfile.TemporaryDirectory(prefix=".ibis-", dir=target.parent) as folder:
            written = Path(folder) / f"segment{suffix}"
            if not slicer.util.saveNode(node, str(written)) or not written.is_file():
                raise ExportError(f"Failed to write {target}. The error log has the details.")
            os.replace(written, target)
    except OSError as error:
        raise ExportError(f"Failed to write {target}: {error.strerror}. Select another folder.") from error
    finally:
        removeNode(node)
    return target


def canExportDicom() -> bool:
    """Whether this Slicer can write DICOM SEG: since 5.12, or with the extension QuantitativeReporting."""
    return importlib.util.find_spec("DICOMSegmentationPlugin") is not None


def exportDicom(segmentationNode, folder: str) -> None:
    """Write a segmentation as DICOM SEG into a folder.

    :raises ExportError: if this Slicer cannot, or the volume did not come from DICOM.
    """
    if not canExportDicom():
        raise ExportError(
            "This version of Slicer cannot write DICOM SEG. Install the QuantitativeReporting extension."
        )
    volumeNode = segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())
    if volumeNode is None or not volumeNode.GetAttribute("DICOM.instanceUIDs"):
        raise ExportError(
            f"DICOM SEG export needs the DICOM files of the volume, and the volume of {segmentationNode.GetName()} was "
            "not loaded from the DICOM database. Import the files in the DICOM module and load it from there."
        )
    import DICOMSegmentationPlugin

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    exporter = DICOMSegmentationPlugin.DICOMSegmentationPluginClass()
    exportables = exporter.examineForExport(hierarchy.GetItemByDataNode(segmentationNode))
    if not exportables:
        raise ExportError("DICOM SEG export needs the volume of this segmentation in the DICOM database.")
    for exportable in exportables:
        exportable.directory = folder
    problem = exporter.export(exportables)
    if problem:
        raise ExportError(f"Failed to write DICOM SEG: {problem}")


def _temporarySegmentation(segmentationNode, segmentId: str, volumeNode):
    node = addOwnNode("vtkMRMLSegmentationNode", "IBIS export", saved=False, displayed=False)
    node.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID())
    if volumeNode is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    node.GetSegmentation().CopySegmentFromSegmentation(segmentationNode.GetSegmentation(), segmentId)
    return node


def _temporaryLabelmap(segmentationNode, segmentId: str, volumeNode):
    if volumeNode is None:
        raise ExportError("The volume is no longer in the scene, and this file format needs its geometry.")
    node = addOwnNode("vtkMRMLLabelMapVolumeNode", "IBIS export", saved=False, displayed=False)
    logic = slicer.modules.segmentations.logic()
    if not logic.ExportSegmentsToLabelmapNode(segmentationNode, [segmentId], node, volumeNode):
        removeNode(node)
        raise ExportError("Failed to resample the mask to the geometry of the volume.")
    return node
