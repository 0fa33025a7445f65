"""Information from a volume's subject hierarchy item, and items for our own nodes."""

from __future__ import annotations

import slicer


def putBeside(node, volumeNode) -> None:
    """Put a node where the volume is in the subject hierarchy, so that it belongs to the same study."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None or volumeNode is None:
        return
    item, beside = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(volumeNode)
    if item and beside:
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(beside))


def giveItem(node) -> None:
    """Create the item of a hidden node. Slicer creates none for a node that is hidden when it is added, and then logs
    errors about every change of a segmentation. The item stays hidden like the node.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def modalityOf(volumeNode) -> str:
    """The DICOM modality, such as "CT" or "MR"; empty if unknown, for example for files that are not DICOM."""
    # Slicer keeps it with the volume's place in the subject hierarchy, not with the node.
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volumeNode) if hierarchy else 0
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    return hierarchy.GetItemAttribute(item, name) if item else ""
