"""The target of Slicer's place mode. Placing our clicks must not change what the user places with Slicer's own
buttons."""

from __future__ import annotations

from dataclasses import dataclass

import slicer


@dataclass(frozen=True)
class Aim:
    """IDs of a node and name of its class, as Slicer's selection node holds them."""

    node: str | None
    className: str | None

    @classmethod
    def now(cls) -> Aim:
        selection, _ = placeNodes()
        return cls(selection.GetActivePlaceNodeID(), selection.GetActivePlaceNodeClassName())

    def restore(self) -> None:
        """Restore this target; no target if the node was deleted."""
        selection, _ = placeNodes()
        there = self.node is not None and slicer.mrmlScene.GetNodeByID(self.node) is not None
        selection.SetReferenceActivePlaceNodeClassName(self.className)  # the toolbar follows
        selection.SetActivePlaceNodeID(self.node if there else None)


def placeNodes():
    """Slicer's (selection node, interaction node)."""
    applicationLogic = slicer.app.applicationLogic()
    return applicationLogic.GetSelectionNode(), applicationLogic.GetInteractionNode()
