"""Add the agent's mask to the user's segmentation, as a new segment or to an existing one.

Nothing else in that segmentation is changed. Displaying the mask while the agent works is in MaskDisplay.py.
"""

from __future__ import annotations

import slicer
import vtk

from ..Errors import PlainError
from .Naming import nameSegment
from .SubjectHierarchy import putBeside

_LABELMAP = "Binary labelmap"


class AcceptError(PlainError):
    """The mask cannot be added there; the message says why and what to do."""


def accept(
    source,
    sourceSegmentId: str,
    question: str,
    answer: str = "",
    *,
    segmentationNode=None,
    segmentId: str = "",
    name: str = "",
    volumeNode=None,
    show3D: bool = False,
):
    """Copy a segment to where the user wants it.

    :param source: the vtkMRMLSegmentationNode with the mask, which is its segment `sourceSegmentId`.
    :param question, answer: determine the segment's name, and its terminology and colour if the structure is known.
    :param segmentationNode: the target; None creates a new one beside the volume.
    :param segmentId: the segment to add the mask to; empty creates a new segment.
    :param name: of a new segment, instead of the one from question and answer.
    :returns: (segmentation node, segment ID).
    :raises AcceptError: if there is nothing to accept, or the segmentation cannot take it.
    """
    image = _labelmapFor(source, sourceSegmentId, segmentationNode)
    if image is None:
        raise AcceptError("There is no mask to accept yet. Press Step first.")
    if segmentationNode is None:
        segmentationNode = _newSegmentation(source, volumeNode)
    segmentation = segmentationNode.GetSegmentation()
    if segmentation.GetNumberOfSegments() and segmentation.GetSourceRepresentationName() != _LABELMAP:
        raise AcceptError(
            f"The source representation of {segmentationNode.GetName()} is "
            f"{segmentation.GetSourceRepresentationName().lower()}. Select a segmentation with binary labelmaps, or "
            "create a new one."
        )
    if segmentId:
        _addTo(segmentationNode, segmentId, image)
    else:
        segmentId = _newSegment(segmentationNode, image, question, answer, name)
    segment = segmentation.GetSegment(segmentId)
    slicer.vtkSlicerSegmentationsModuleLogic.SetSegmentStatus(
        segment, slicer.vtkSlicerSegmentationsModuleLogic.Completed
    )
    if show3D:
        segmentationNode.CreateDefaultDisplayNodes()  # a segmentation created by a script may have none
        segmentationNode.CreateClosedSurfaceRepresentation()
        segmentationNode.GetDisplayNode().SetVisibility3D(True)
        segmentationNode.GetDisplayNode().SetSegmentVisibility3D(segmentId, True)
    return segmentationNode, segmentId


def _labelmapFor(source, segmentId: str, target):
    """The mask in the coordinates of the target node, or None if it is empty."""
    representation = source.GetSegmentation().GetSegment(segmentId).GetRepresentation(_LABELMAP)
    if representation is None or representation.GetPointData().GetScalars() is None:
        return None
    image = slicer.vtkOrientedImageData()
    image.DeepCopy(representation)
    if image.GetPointData().GetScalars().GetRange()[1] == 0:
        return None
    here = source.GetParentTransformNode()
    there = target.GetParentTransformNode() if target else here
    if here is not there:
        transform = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(here, there, transform)
        slicer.vtkOrientedImageDataResample.TransformOrientedImage(image, transform)
    return image


def _newSegmentation(source, volumeNode):
    name = f"{volumeNode.GetName()} segmentation" if volumeNode else "Segmentation"
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
    if volumeNode is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        putBeside(node, volumeNode)
    return node


def _addTo(segmentationNode, segmentId: str, image) -> None:
    if segmentationNode.GetSegmentation().GetSegment(segmentId) is None:
        raise AcceptError(f"{segmentationNode.GetName()} no longer has this segment. Select another one.")
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not logic.SetBinaryLabelmapToSegment(image, segmentationNode, segmentId, logic.MODE_MERGE_MAX):
        raise AcceptError(f"The mask could not be added to {segmentationNode.GetName()}.")


def _newSegment(segmentationNode, image, question: str, answer: str, name: str) -> str:
    segment = slicer.vtkSegment()
    nameSegment(segment, question, answer, name)
    segment.AddRepresentation(_LABELMAP, image)
    segmentation = segmentationNode.GetSegmentation()
    segmentId = segmentation.GenerateUniqueSegmentID(segment.GetName())
    if not segmentation.AddSegment(segment, segmentId):
        raise AcceptError(f"The segment could not be added to {segmentationNode.GetName()}.")
    return segmentId
