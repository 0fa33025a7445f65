"""The agent's own nodes: shown in the views, but hidden from selectors, where they would look like results."""

from __future__ import annotations

import slicer

from .Aim import Aim
from .SubjectHierarchy import giveItem


def addOwnNode(className: str, name: str, *, saved: bool = True, displayed: bool = True):
    """A new node. saved: whether it goes into saved scenes; displayed: with a display node."""
    node = slicer.mrmlScene.CreateNodeByClass(className)
    node.UnRegister(None)  # owned by both the scene and Python
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    # Before adding it: selectors and the subject hierarchy check a node when it is added.
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(saved)
    aim = Aim.now()
    slicer.mrmlScene.AddNode(node)
    if node.IsA("vtkMRMLSegmentationNode"):
        giveItem(node)
    aim.restore()  # Slicer makes a new point list the target of place mode
    if displayed:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(saved)
    return node


def keepOutOfFiles(node) -> None:
    """Exclude a node and its displays from scenes saved from now on."""
    node.SetSaveWithScene(False)
    for n in range(node.GetNumberOfDisplayNodes()):
        node.GetNthDisplayNode(n).SetSaveWithScene(False)
    for n in range(node.GetNumberOfStorageNodes()):
        node.GetNthStorageNode(n).SetSaveWithScene(False)


def removeNode(node) -> None:
    """Remove a node from the scene together with its display and storage nodes."""
    scene = slicer.mrmlScene
    if node is None or not scene.IsNodePresent(node):
        return
    parts = [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    if node.IsA("vtkMRMLDisplayableNode"):
        parts += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    scene.RemoveNode(node)
    for part in parts:
        if part is not None and scene.IsNodePresent(part):
            scene.RemoveNode(part)
