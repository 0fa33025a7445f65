"""Items of the subject hierarchy for data nodes, as Slicer's plugin logic makes and removes them, and the complaints
of its plugin for segmentations.

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
    """Watches a scene for its whole life. `complaints`: what Slicer would write into its error log."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self.complaints: list[str] = []

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def on_added(caller: Any, event: str, node: Any) -> None:
            if not scene.IsImporting():
                self._add(node)
            if node.IsA("vtkMRMLSegmentationNode"):
                self._watch_segments(node)

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

    def _watch_segments(self, node: Any) -> None:
        """The plugin looks for the node's item at every change of a segment or of how it is displayed."""
        events = (
            slicer.vtkSegmentation.SegmentAdded,
            slicer.vtkSegmentation.SegmentRemoved,
            slicer.vtkSegmentation.SegmentModified,
            slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent,
        )

        def look(caller: Any, event: str) -> None:
            in_scene = caller.GetScene() is not None and not self._scene.IsImporting()
            if in_scene and not self._scene.IsClosing() and not self.node().GetItemByDataNode(caller):
                self.complaints.append(
                    f"Unable to find subject hierarchy item for segmentation node {caller.GetName()} ({event})"
                )

        for event in events:
            node.AddObserver(event, look)

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
