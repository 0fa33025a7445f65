"""Placing a click with the mouse in a slice view: Slicer's own place mode, on a point list that only serves
for it.
"""

from __future__ import annotations

import qt
import slicer

from ..Signal import Signal
from .Aim import Aim, placeNodes
from .ClickMarks import NEGATIVE_COLOUR, POSITIVE_COLOUR
from .OwnNodes import addOwnNode, removeNode


class ClickPlacement:
    """Turns place mode on and off, and tells where the person clicked.

    placed: Signal(ras, positive) for every click; ras in the world.
    changed: Signal(sign) when place mode was entered or left; sign is True, False or None.
    """

    def __init__(self) -> None:
        self.placed = Signal()
        self.changed = Signal()
        self.sign: bool | None = None
        self._node = None
        self._before: Aim | None = None
        self._persistence = 0
        self._tags: list[tuple[object, int]] = []
        self._waiting = False

    def start(self, positive: bool) -> None:
        """Let the next clicks in the slice views be clicks of this sign, until `stop`, Esc or a right click."""
        self._prepare()
        selection, interaction = placeNodes()
        if self.sign is None:
            self._before, self._persistence = Aim.now(), interaction.GetPlaceModePersistence()
        self.sign = positive
        display = self._node.GetDisplayNode()
        # Being invisible in 3D does not keep points from being placed there; belonging to other views does.
        display.RemoveAllViewNodeIDs()
        for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            display.AddViewNodeID(view.GetID())
        display.SetSelectedColor(*(POSITIVE_COLOUR if positive else NEGATIVE_COLOUR))
        display.SetColor(*(POSITIVE_COLOUR if positive else NEGATIVE_COLOUR))
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
        selection.SetActivePlaceNodeID(self._node.GetID())
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)
        self.changed.emit(self.sign)

    def stop(self) -> None:
        """Leave place mode, unless somebody else has taken it over; Slicer's own buttons place what they did before."""
        if self.sign is None:
            return
        self.sign = None
        _, interaction = placeNodes()
        if self._isAimedAt():
            if interaction.GetCurrentInteractionMode() == interaction.Place:
                interaction.SwitchToViewTransformMode()
            self._before.restore()
        interaction.SetPlaceModePersistence(self._persistence)
        self.changed.emit(None)

    def remove(self) -> None:
        """Leave place mode and the scene."""
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
            (selection, selection.ActivePlaceNodeIDChangedEvent, self._onAimChanged),
            (interaction, interaction.InteractionModeChangedEvent, self._onModeChanged),
        ):
            self._tags.append((node, node.AddObserver(event, handler)))

    def _onPlaced(self, caller, event) -> None:
        # Slicer still works with the point while it tells of it: take it away afterwards.
        if not self._waiting:
            self._waiting = True
            qt.QTimer.singleShot(0, self._takePoints)

    def _takePoints(self) -> None:
        self._waiting = False
        node, sign = self._node, self.sign
        if node is None or sign is None or not slicer.mrmlScene.IsNodePresent(node):
            return
        places = []
        for index in reversed(range(node.GetNumberOfControlPoints())):
            if node.GetNthControlPointPositionStatus(index) == node.PositionDefined:
                ras = [0.0, 0.0, 0.0]
                node.GetNthControlPointPositionWorld(index, ras)
                places.append(tuple(ras))
                node.RemoveNthControlPoint(index)
        for ras in reversed(places):
            self.placed.emit(ras, sign)

    def _isAimedAt(self) -> bool:
        return self._node is not None and placeNodes()[0].GetActivePlaceNodeID() == self._node.GetID()

    def _onAimChanged(self, caller, event) -> None:
        if self.sign is not None and not self._isAimedAt():  # the person has begun to place something else
            self.stop()

    def _onModeChanged(self, caller, event) -> None:
        if self.sign is not None and caller.GetCurrentInteractionMode() != caller.Place:
            self.stop()
