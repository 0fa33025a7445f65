"""Placing a click with the mouse in a slice view: Slicer's own place mode, on a point list that only serves
for it.
"""

from __future__ import annotations

import qt
import slicer

from .ClickMarks import NEGATIVE_COLOUR, POSITIVE_COLOUR
from .OwnNodes import addOwnNode, removeNode
from .Signal import Signal


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
        self._tags: list[tuple[object, int]] = []
        self._waiting = False

    def start(self, positive: bool) -> None:
        """Let the next clicks in the slice views be clicks of this sign, until `stop`, Esc or a right click."""
        self._prepare()
        self.sign = positive
        display = self._node.GetDisplayNode()
        display.SetSelectedColor(*(POSITIVE_COLOUR if positive else NEGATIVE_COLOUR))
        display.SetColor(*(POSITIVE_COLOUR if positive else NEGATIVE_COLOUR))
        selection, interaction = _nodes()
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
        selection.SetActivePlaceNodeID(self._node.GetID())
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)
        self.changed.emit(self.sign)

    def stop(self) -> None:
        if self.sign is None:
            return
        self.sign = None
        _, interaction = _nodes()
        if interaction.GetCurrentInteractionMode() == interaction.Place:
            interaction.SwitchToViewTransformMode()
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
        _, interaction = _nodes()
        for node, event, handler in (
            (self._node, self._node.PointPositionDefinedEvent, self._onPlaced),
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

    def _onModeChanged(self, caller, event) -> None:
        if self.sign is not None and caller.GetCurrentInteractionMode() != caller.Place:
            self.stop()


def _nodes():
    applicationLogic = slicer.app.applicationLogic()
    return applicationLogic.GetSelectionNode(), applicationLogic.GetInteractionNode()
