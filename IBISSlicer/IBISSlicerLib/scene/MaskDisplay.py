"""The agent's mask in the views: a separate segmentation node, updated in place.

It never changes the user's segmentations; that is done in Accept.py. Marks of clicks are in ClickMarks.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import slicer
import vtk
from ibis_agent.mask.structures import name_for
from vtk.util.numpy_support import vtk_to_numpy

from .Geometry import ijkToRas, vtkMatrix
from .Naming import nameSegment
from .OwnNodes import addOwnNode, removeNode

_SEGMENT = "agent"
_FILL, _OUTLINE, _THICKNESS = 0.35, 1.0, 2


class MaskDisplay:
    """Shows masks in their slices.

    The labelmap covers only the slices shown so far: a step in one slice of 512 × 512 × 300 voxels writes one slice in
    place and does not touch the others. (Slicer's own call with MODE_REPLACE and an extent would erase the segment
    outside the extent.)
    """

    def __init__(self, node, toRas: np.ndarray) -> None:
        """
        :param node: the vtkMRMLSegmentationNode, from `create` or from a saved scene.
        :param toRas: (4, 4) voxel index → RAS mm in the node's own coordinates, which are also the volume's.
        """
        self.node = node
        self._toRas = toRas
        self._view: np.ndarray | None = None  # (I, J, K) uint8 array on the labelmap's own memory
        self._extent: list[int] = []

    @classmethod
    def create(cls, volumeNode, question: str) -> MaskDisplay:
        """A new node with one empty segment, named after the question, in the coordinates of the volume."""
        node = addOwnNode("vtkMRMLSegmentationNode", f"IBIS: {name_for(question)}")
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        display = node.GetDisplayNode()
        display.SetOpacity2DFill(_FILL)
        display.SetOpacity2DOutline(_OUTLINE)
        display.SetSliceIntersectionThickness(_THICKNESS)
        display.SetVisibility3D(False)
        node.GetSegmentation().AddEmptySegment(_SEGMENT)
        nameSegment(node.GetSegmentation().GetSegment(_SEGMENT), question)
        return cls(node, ijkToRas(volumeNode))

    @property
    def segmentId(self) -> str:
        return _SEGMENT

    def show(self, mask: np.ndarray, geometry) -> None:
        """Show `mask` ((H, W) bool) in the slice of `geometry` (an ibis_agent PictureGeometry of the volume)."""
        self._span(geometry)
        first = self._extent[2 * geometry.axis]
        shape = self._view.shape
        inSlab = dataclasses.replace(geometry, shape=shape, index=geometry.index - first)
        inSlab.extract(self._view)[...] = mask * self._segment().GetLabelValue()
        self._representation().GetPointData().GetScalars().Modified()
        self._representation().Modified()

    def reserve(self, geometry, first: int, last: int) -> None:
        """Allocate these slices at once, so that propagation does not copy the labelmap for every slice."""
        self._span(dataclasses.replace(geometry, index=first), last)

    def clear(self) -> None:
        """Clear the mask in all slices."""
        self._adopt(self._representation())
        if self._view is not None:
            self._view[...] = 0
            self._representation().GetPointData().GetScalars().Modified()

    def setVisible(self, visible: bool) -> None:
        self.node.GetDisplayNode().SetVisibility(visible)

    def remove(self) -> None:
        removeNode(self.node)

    def _segment(self):
        return self.node.GetSegmentation().GetSegment(_SEGMENT)

    def _representation(self):
        return self._segment().GetRepresentation(_labelmapName())

    def _span(self, geometry, last: int | None = None) -> None:
        """Extend the labelmap to include these slices, keeping its contents."""
        axis, index = geometry.axis, geometry.index
        last = index if last is None else last
        image = self._representation()
        if self._view is None or image is None or list(image.GetExtent()) != self._extent:
            self._adopt(image)
        wanted = [0, geometry.shape[0] - 1, 0, geometry.shape[1] - 1, 0, geometry.shape[2] - 1]
        inside = [index, last]
        if self._extent:
            inside = [min(index, self._extent[2 * axis]), max(last, self._extent[2 * axis + 1])]
        wanted[2 * axis : 2 * axis + 2] = inside
        if wanted == self._extent:
            return
        larger = slicer.vtkOrientedImageData()
        larger.SetExtent(wanted)
        larger.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        larger.GetPointData().GetScalars().Fill(0)
        larger.SetImageToWorldMatrix(vtkMatrix(self._toRas))
        previous, previousExtent = self._view, self._extent
        view = _arrayOf(larger)
        if previous is not None and previous.size:
            # A labelmap from a file is cropped to its contents, so it may have any extent inside.
            where = tuple(
                slice(previousExtent[2 * a] - wanted[2 * a], previousExtent[2 * a + 1] - wanted[2 * a] + 1)
                for a in range(3)
            )
            view[where] = previous
        self._segment().AddRepresentation(_labelmapName(), larger)
        self._view, self._extent = view, wanted

    def _adopt(self, image) -> None:
        """Use a labelmap created by Slicer, after reading a scene."""
        self._view, self._extent = None, []
        if image is not None and image.GetPointData().GetScalars() is not None:
            extent = list(image.GetExtent())
            if all(extent[2 * axis] <= extent[2 * axis + 1] for axis in range(3)):
                self._view, self._extent = _arrayOf(image), extent


def _labelmapName() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _arrayOf(image) -> np.ndarray:
    """(I, J, K) view on the image's memory."""
    first, last = image.GetExtent()[::2], image.GetExtent()[1::2]
    shape = [b - a + 1 for a, b in zip(first, last)]
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape[::-1]).transpose(2, 1, 0)
