"""The clicks in the slice views: a green ring for a positive click and a red cross for a negative one, with the number
of the step. They can be dragged with the mouse.

Markups can draw filled discs and upright crosses only, so the shapes are small upright surfaces, whose
intersection with the slice is a ring or a cross. The control points of two point lists are
the handles. Placing new clicks is in ClickPlacement.py; listeners decide what a dragged mark means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import qt
import slicer
import vtk

from ..Signal import Signal
from .OwnNodes import addOwnNode, removeNode

POSITIVE_COLOUR = (0.10, 0.95, 0.35)
NEGATIVE_COLOUR = (1.0, 0.22, 0.20)
_PALE = 0.8  # brightness of the marks of other steps than the selected one
_SIZE = 0.018  # radius of a mark as a fraction of the shorter side of the slice
_CORNERS = 24  # of a ring
_HAIR = 1e-4  # parts of a slice


@dataclass(frozen=True)
class Mark:
    """A click to show: the number of its step, its voxel (i, j, k), its sign, and its index within the slice."""

    number: int
    ijk: tuple[int, int, int]
    positive: bool
    which: int = 1


class ClickMarks:
    """Shows marks and reports when the user has dragged one.

    moved: Signal(number, ras) at the end of a drag; ras is the new position in world coordinates. The mark stays there
        until `show` is called again.
    dragged: the mark that was dragged last.
    """

    ROLES = ("positivePoints", "negativePoints")

    def __init__(self, points: dict) -> None:
        """points: a point list for each of ROLES, from `create` or from a saved scene."""
        self.nodes = dict(points)
        self.moved = Signal()
        self.dragged: Mark | None = None
        self._marks: tuple[Mark, ...] = ()
        self._frame: tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]] | None = None
        self._observers: list[tuple[Any, int]] = []
        self._showing = False
        for positive in (True, False):
            node = self._points(positive)
            self._observe(node, node.PointEndInteractionEvent, self._onDragEnd)
            self._observe(node, node.PointModifiedEvent, self._onPointModified)
            self.nodes[f"shapes {positive}"] = _createShapes(node, positive)

    @classmethod
    def create(cls, volumeNode) -> ClickMarks:
        """New empty point lists that move along with the volume."""
        points = {}
        for role, positive in zip(cls.ROLES, (True, False)):
            name = f"IBIS {'positive' if positive else 'negative'} clicks"
            node = addOwnNode("vtkMRMLMarkupsFiducialNode", name)
            node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
            _styleHandles(node, POSITIVE_COLOUR if positive else NEGATIVE_COLOUR)
            points[role] = node
        return cls(points)

    def show(self, marks: list[Mark], current: int, toRas: np.ndarray, geometry) -> None:
        """Show exactly these marks.

        :param current: number of the step to highlight.
        :param toRas: (4, 4) voxel index → RAS mm in the nodes' own coordinates.
        :param geometry: the ibis_agent PictureGeometry of the slice.
        """
        self._marks = tuple(marks)
        self._frame = _frameOf(toRas, geometry.axis, geometry.shape)
        self._showing = True
        try:
            for positive in (True, False):
                self._fill(positive, current, toRas)
        finally:
            self._showing = False
        self._drawShapes()

    def setMovable(self, movable: bool) -> None:
        for positive in (True, False):
            self._points(positive).SetLocked(not movable)

    def setVisible(self, visible: bool) -> None:
        for node in self.nodes.values():
            node.GetDisplayNode().SetVisibility(visible)

    def remove(self) -> None:
        """Remove the nodes from the scene, with their displays."""
        self.stopObserving()
        for node in self.nodes.values():
            removeNode(node)

    def letGo(self) -> None:
        """Release the points for the next owner; remove the rings and crosses, which the next owner draws again."""
        self.stopObserving()
        if not slicer.mrmlScene.IsClosing():
            for positive in (True, False):
                removeNode(self.nodes[f"shapes {positive}"])

    def stopObserving(self) -> None:
        for node, tag in self._observers:
            node.RemoveObserver(tag)
        self._observers.clear()
        self.moved.disconnectAll()

    def _points(self, positive: bool):
        return self.nodes["positivePoints" if positive else "negativePoints"]

    def _observe(self, node, event, handler) -> None:
        self._observers.append((node, node.AddObserver(event, handler)))

    def _fill(self, positive: bool, current: int, toRas: np.ndarray) -> None:
        node = self._points(positive)
        marks = [mark for mark in self._marks if mark.positive == positive]
        with slicer.util.NodeModify(node):
            # At other times the number of points is fixed, so that no mark can be deleted or added behind our
            # back.
            node.SetFixedNumberOfControlPoints(False)
            node.RemoveAllControlPoints()
            for mark in marks:
                ras = toRas @ [*mark.ijk, 1.0]
                # Spaces keep the number clear of the ring.
                index = node.AddControlPoint(ras[0], ras[1], ras[2], f"  {mark.number} ")
                node.SetNthControlPointSelected(index, mark.number == current)
            node.SetFixedNumberOfControlPoints(True)

    def _drawShapes(self) -> None:
        for positive in (True, False):
            node = self._points(positive)
            centres = [node.GetNthControlPointPosition(n) for n in range(node.GetNumberOfControlPoints())]
            outline = _ring if positive else _cross
            self.nodes[f"shapes {positive}"].SetAndObservePolyData(_surfaces(centres, outline, self._frame))

    def _onPointModified(self, caller, event) -> None:
        if not self._showing and self._frame is not None:
            self._drawShapes()

    def _onDragEnd(self, caller, event) -> None:
        positive = caller is self._points(True)
        marks = [mark for mark in self._marks if mark.positive == positive]
        for index, mark in enumerate(marks):
            local = [0.0, 0.0, 0.0]
            caller.GetNthControlPointPosition(index, local)
            if np.linalg.norm(np.subtract(local, self._startOf(mark))) > 1e-3:
                world = [0.0, 0.0, 0.0]
                caller.GetNthControlPointPositionWorld(index, world)
                self.dragged = mark
                self._tellMoved(mark.number, tuple(world))
                return

    def _tellMoved(self, number: int, ras: tuple[float, ...]) -> None:
        # Slicer is still using the point, and listeners may remove it.
        qt.QTimer.singleShot(0, lambda: self.moved.emit(number, ras))

    def _startOf(self, mark: Mark) -> np.ndarray:
        volumeRas, _, _ = self._frame
        return (volumeRas @ [*mark.ijk, 1.0])[:3]


def _styleHandles(node, colour: tuple[float, float, float]) -> None:
    display = node.GetDisplayNode()
    display.SetSelectedColor(*colour)
    display.SetColor(*(part * _PALE for part in colour))
    display.SetActiveColor(1.0, 1.0, 0.3)
    display.SetGlyphType(display.Circle2D)
    display.SetGlyphScale(0.9)
    display.SetTextScale(4.5)
    # On a dark background: letters alone cannot be read on all grey values and mask colours.
    text = display.GetTextProperty()
    text.SetBold(True)
    text.SetShadow(False)
    text.SetBackgroundColor(0.0, 0.0, 0.0)
    text.SetBackgroundOpacity(0.65)
    display.SetPointLabelsVisibility(True)
    display.SetSliceProjection(False)
    display.SetVisibility3D(False)


def _createShapes(points, positive: bool):
    """The node for the rings or crosses around the points of a list; it moves along with them."""
    name = f"IBIS {'rings' if positive else 'crosses'}"
    node = addOwnNode("vtkMRMLModelNode", name, saved=False)  # drawn again from the steps
    node.SetSelectable(False)
    node.SetAndObserveTransformNodeID(points.GetTransformNodeID())
    display = node.GetDisplayNode()
    display.SetColor(*(POSITIVE_COLOUR if positive else NEGATIVE_COLOUR))
    display.SetVisibility2D(True)
    display.SetVisibility3D(False)
    display.SetSliceIntersectionThickness(3)
    return node


def _frameOf(toRas: np.ndarray, axis: int, shape: tuple[int, int, int]):
    """(voxel → RAS, mm vectors (3, 2) of a mark's radius along the slice's two axes, mm vectors from the slice's
    middle to its lower and upper face).
    """
    rest = [each for each in range(3) if each != axis]
    spacing = np.linalg.norm(toRas[:3, :3], axis=0)
    directions = toRas[:3, :3] / spacing
    radius = _SIZE * min(shape[each] * spacing[each] for each in rest)
    # Half a slice to both sides, as a view shows a slice from half way to the slice below. Slightly lower, so
    # that a view half way between two slices shows the marks of only one of them.
    across = toRas[:3, axis]
    return toRas, directions[:, rest] * radius, (across * -(0.5 + _HAIR), across * (0.5 - 2 * _HAIR))


def _ring() -> list[np.ndarray]:
    angles = np.linspace(0, 2 * np.pi, _CORNERS + 1)
    return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]


def _cross() -> list[np.ndarray]:
    arm = 0.85
    return [np.array([[-arm, -arm], [arm, arm]]), np.array([[-arm, arm], [arm, -arm]])]


def _surfaces(centres, outline, frame) -> vtk.vtkPolyData:
    """For every centre (RAS mm), the outline extruded into a surface across the slice."""
    points, cells = vtk.vtkPoints(), vtk.vtkCellArray()
    for centre in centres:
        _, radii, (down, up) = frame
        for line in outline():
            lower = [points.InsertNextPoint(*(np.asarray(centre) + radii @ at + down)) for at in line]
            upper = [points.InsertNextPoint(*(np.asarray(centre) + radii @ at + up)) for at in line]
            for n in range(len(line) - 1):
                cells.InsertNextCell(4)
                for corner in (lower[n], lower[n + 1], upper[n + 1], upper[n]):
                    cells.InsertCellPoint(corner)
    surface = vtk.vtkPolyData()
    surface.SetPoints(points)
    surface.SetPolys(cells)
    return surface
