"""Placing a click or a box with the mouse in a slice view: Slicer's place mode, with a point list only for this
purpose. A box is two clicks, on opposite corners.
"""

from __future__ import annotations

from typing import Any

import qt
import slicer
import vtk

from ..Signal import Signal
from .Aim import Aim, placeNodes
from .ClickMarks import NEGATIVE_COLOUR, POSITIVE_COLOUR
from .OwnNodes import addOwnNode, removeNode

INCLUDE, EXCLUDE, BOX = "include", "exclude", "box"

Ras = tuple[float, float, float]


class ClickPlacement:
    """Turns place mode on and off, and reports where the user clicked.

    placed: Signal(ras, positive) for every click; ras in world coordinates.
    boxed: Signal(ras, ras) for every box, two opposite corners.
    aimed: Signal(ras, ras) while the mouse moves from the first corner to the second.
    changed: Signal(what) when place mode was entered or left; INCLUDE, EXCLUDE, BOX or None.
    """

    def __init__(self) -> None:
        self.placed, self.boxed, self.aimed = Signal(), Signal(), Signal()
        self.changed = Signal()
        self.what: str | None = None
        self._corner: Ras | None = None
        self._node: Any = None
        self._before: Aim | None = None
        self._persistence = 0
        self._tags: list[tuple[Any, int]] = []
        self._waiting = False

    def start(self, what: str) -> None:
        """Place clicks of this kind in the slice views, until `stop`, Esc or a right click."""
        self._prepare()
        selection, interaction = placeNodes()
        if self.what is None:
            self._before, self._persistence = Aim.now(), interaction.GetPlaceModePersistence()
        self.what, self._corner = what, None
        display = self._node.GetDisplayNode()
        self._showInSliceViews()
        colour = NEGATIVE_COLOUR if what == EXCLUDE else POSITIVE_COLOUR
        display.SetSelectedColor(*colour)
        display.SetColor(*colour)
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
        selection.SetActivePlaceNodeID(self._node.GetID())
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)
        self.changed.emit(self.what)

    def stop(self) -> None:
        """Leave place mode, unless something else is using it, and restore the target of Slicer's own buttons."""
        if self.what is None:
            return
        self.what = self._corner = None
        _, interaction = placeNodes()
        if self._isAimedAt():
            if interaction.GetCurrentInteractionMode() == interaction.Place:
                interaction.SwitchToViewTransformMode()
            self._before.restore()
        interaction.SetPlaceModePersistence(self._persistence)
        self.changed.emit(None)

    def remove(self) -> None:
        """Leave place mode and remove the nodes."""
        self.stop()
        for node, tag in self._tags:
            node.RemoveObserver(tag)
        self._tags.clear()
        removeNode(self._node)
        self._node = None

    def _prepare(self) -> None:
        if self._node is not None and slicer.mrmlScene.IsNodePresent(self._node):
            return
        self.remove()
        self._node = addOwnNode("vtkMRMLMarkupsFiducialNode", "IBIS click", saved=False)
        display = self._node.GetDisplayNode()
        display.SetGlyphType(display.Circle2D)
        display.SetGlyphScale(0.9)
        display.SetPointLabelsVisibility(False)
        display.SetVisibility3D(False)
        selection, interaction = placeNodes()
        for node, event, handler in (
            (self._node, self._node.PointPositionDefinedEvent, self._onPlaced),
            (self._node, self._node.PointModifiedEvent, self._onAimed),
            (slicer.mrmlScene, slicer.vtkMRMLScene.NodeAddedEvent, self._onNodeAdded),
            (selection, selection.ActivePlaceNodeIDChangedEvent, self._onAimChanged),
            (interaction, interaction.InteractionModeChangedEvent, self._onModeChanged),
        ):
            self._tags.append((node, node.AddObserver(event, handler)))

    def _showInSliceViews(self) -> None:
        # Invisible points could still be placed in 3D views; restricting them to other views prevents this.
        display = self._node.GetDisplayNode()
        display.RemoveAllViewNodeIDs()
        for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            display.AddViewNodeID(view.GetID())

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAdded(self, caller, event, added) -> None:
        """Also for further slice views of another layout."""
        placing = self.what is not None and slicer.mrmlScene.IsNodePresent(self._node)
        if placing and added.IsA("vtkMRMLSliceNode"):
            self._node.GetDisplayNode().AddViewNodeID(added.GetID())

    def _onAimed(self, caller, event) -> None:
        last = caller.GetNumberOfControlPoints() - 1
        if (
            self._corner is not None
            and last >= 0
            and caller.GetNthControlPointPositionStatus(last) == caller.PositionPreview
        ):
            ras = [0.0, 0.0, 0.0]
            caller.GetNthControlPointPositionWorld(last, ras)
            self.aimed.emit(self._corner, tuple(ras))

    def _onPlaced(self, caller, event) -> None:
        # Slicer is still using the point while it sends the event: remove it afterwards.
        if not self._waiting:
            self._waiting = True
            qt.QTimer.singleShot(0, self._takePoints)

    def _takePoints(self) -> None:
        self._waiting = False
        node, what = self._node, self.what
        if node is None or what is None or not slicer.mrmlScene.IsNodePresent(node):
            return
        places: list[Any] = []
        for index in reversed(range(node.GetNumberOfControlPoints())):
            if node.GetNthControlPointPositionStatus(index) == node.PositionDefined:
                ras = [0.0, 0.0, 0.0]
                node.GetNthControlPointPositionWorld(index, ras)
                places.append(tuple(ras))
                node.RemoveNthControlPoint(index)
        for place in reversed(places):
            if what != BOX:
                self.placed.emit(place, what == INCLUDE)
            elif self._corner is None:
                self._corner = place
            else:
                corner, self._corner = self._corner, None
                self.boxed.emit(corner, place)

    def _isAimedAt(self) -> bool:
        return self._node is not None and placeNodes()[0].GetActivePlaceNodeID() == self._node.GetID()

    def _onAimChanged(self, caller, event) -> None:
        if self.what is not None and not self._isAimedAt():  # the user has started to place something else
            self.stop()

    def _onModeChanged(self, caller, event) -> None:
        if self.what is not None and caller.GetCurrentInteractionMode() != caller.Place:
            self.stop()
