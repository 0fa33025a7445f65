"""Items of the subject hierarchy for data nodes, as Slicer's plugin logic makes and removes them.

The node and its items are Slicer's; which nodes get one is decided here (in Slicer, by Qt plugins).
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk

#: Nodes that Slicer's built-in plugins claim, and by which plugin.
CLAIMED = {
    "vtkMRMLSegmentationNode": "Segmentations",
    "vtkMRMLLabelMapVolumeNode": "LabelMaps",
    "vtkMRMLVolumeNode": "Volumes",
    "vtkMRMLMarkupsNode": "Markups",
    "vtkMRMLModelNode": "Models",
    "vtkMRMLTransformNode": "Transforms",
    "vtkMRMLTableNode": "Tables",
    "vtkMRMLTextNode": "Texts",
}


class SubjectHierarchy:
    """Watches a scene for its whole life."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def on_added(caller: Any, event: str, node: Any) -> None:
            if not scene.IsImporting():
                self._add(node)

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def on_leaving(caller: Any, event: str, node: Any) -> None:
            if not scene.IsClosing() and not node.IsA("vtkMRMLSubjectHierarchyNode"):
                item = self.node().GetItemByDataNode(node)
                if item:
                    self.node().RemoveItem(item, False, False)

        scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, on_added)
        scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, on_leaving)
        scene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, self._on_import)
        scene.AddObserver(slicer.vtkMRMLScene.EndCloseEvent, lambda *_: self.node())
        self.node()

    def node(self) -> Any:
        """The scene's one subject hierarchy node; merges or makes it where needed."""
        return slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)

    def _on_import(self, *_: Any) -> None:
        for index in range(self._scene.GetNumberOfNodes()):
            node = self._scene.GetNthNode(index)
            if not self.node().GetItemByDataNode(node):
                self._add(node)

    def _add(self, node: Any) -> None:
        if node is None or node.GetHideFromEditors():
            return
        owner = next((plugin for name, plugin in CLAIMED.items() if node.IsA(name)), None)
        if owner is not None:
            hierarchy = self.node()
            item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
            hierarchy.SetItemOwnerPluginName(item, owner)
