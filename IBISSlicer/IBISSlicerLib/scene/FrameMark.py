"""Rectangles in the slice views: a thin one around the part of the slice that the models see, and the policy's last
box.

They are upright surfaces along the edges; a slice view shows their intersection with the slice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

from .OwnNodes import addOwnNode, removeNode

COLOUR = (0.61, 0.77, 1.0)


class FrameMark:
    """A rectangle on some slices of a run; created when there is a frame to show, deleted by `remove`."""

    def __init__(self, name: str = "IBIS frame", colour=COLOUR, thickness: int = 1) -> None:
        self.node: Any = None
        self._looks = name, colour, thickness

    def show(self, frame, geometry, slices: tuple[int, int], toRas: np.ndarray, transformID) -> None:
        """:param frame: an ibis_agent Frame; None shows nothing.
        :param geometry: the PictureGeometry of one of the slices; slices: the first and the last one.
        :param toRas: (4, 4) voxel index → RAS mm in the node's own coordinates.
        """
        if frame is None:
            self.remove()
            return
        if self.node is None:
            self.node = _create(transformID, *self._looks)
        self.node.SetAndObservePolyData(_walls(cornersOf(frame, geometry, slices, toRas)))

    def setVisible(self, visible: bool) -> None:
        if self.node is not None:
            self.node.GetDisplayNode().SetVisibility(visible)

    def remove(self) -> None:
        if self.node is not None:
            removeNode(self.node)
        self.node = None


def cornersOf(frame, geometry, slices: tuple[int, int], toRas: np.ndarray) -> np.ndarray:
    """(2, 4, 3) RAS mm: the frame's corners at the outer edges of its pixels, on both sides of the slices."""
    corners = []
    for index in (min(slices) - 0.49, max(slices) + 0.49):
        for row, column in (
            (frame.top, frame.left),
            (frame.top, frame.right),
            (frame.bottom, frame.right),
            (frame.bottom, frame.left),
        ):
            ijk = [0.0, 0.0, 0.0]
            ijk[geometry.axis] = index
            ijk[geometry.row_axis] = (geometry.height - row if geometry.flip_rows else row) - 0.5
            ijk[geometry.col_axis] = (geometry.width - column if geometry.flip_cols else column) - 0.5
            corners.append((toRas @ [*ijk, 1.0])[:3])
    return np.array(corners).reshape(2, 4, 3)


def _walls(corners: np.ndarray) -> vtk.vtkPolyData:
    points, cells = vtk.vtkPoints(), vtk.vtkCellArray()
    numbers = [[points.InsertNextPoint(*corner) for corner in ring] for ring in corners]
    for n in range(4):
        m = (n + 1) % 4
        cells.InsertNextCell(4)
        for corner in (numbers[0][n], numbers[0][m], numbers[1][m], numbers[1][n]):
            cells.InsertCellPoint(corner)
    surface = vtk.vtkPolyData()
    surface.SetPoints(points)
    surface.SetPolys(cells)
    return surface


def _create(transformID, name: str, colour, thickness: int):
    node = addOwnNode("vtkMRMLModelNode", name, saved=False)  # drawn again from the record
    node.SetSelectable(False)
    node.SetAndObserveTransformNodeID(transformID)
    display = node.GetDisplayNode()
    display.SetColor(*colour)
    display.SetVisibility2D(True)
    display.SetVisibility3D(False)
    display.SetSliceIntersectionThickness(thickness)
    return node
