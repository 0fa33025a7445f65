"""The agent's own nodes: shown in the views, but not offered in selectors, where they would pass for a result."""

from __future__ import annotations

import slicer

from .Aim import Aim
from .SubjectHierarchy import giveItem


def addOwnNode(className: str, name: str, *, saved: bool = True, displayed: bool = True):
    """A new node. saved: whether it goes into saved scenes; displayed: with a display node."""
    node = slicer.mrmlScene.CreateNodeByClass(className)
    node.UnRegister(None)  # the scene and Python own it
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    # Before it is added: selectors and the subject hierarchy look when a node arrives.
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(saved)
    aim = Aim.now()
    slicer.mrmlScene.AddNode(node)
    if node.IsA("vtkMRMLSegmentationNode"):
        giveItem(node)
    aim.restore()  # a new point list is what Slicer places points into from then on
    if displayed:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(saved)
    return node


def keepOutOfFiles(node) -> None:
    """Leave a node and its displays out of scenes that are saved from now on."""
    node.SetSaveWithScene(False)
    for n in range(node.GetNumberOfDisplayNodes()):
        node.GetNthDisplayNode(n).SetSaveWithScene(False)
    for n in range(node.GetNumberOfStorageNodes()):
        node.GetNthStorageNode(n).SetSaveWithScene(False)


def removeNode(node) -> None:
    """Take a node out of the scene together with what only it uses: its display and storage nodes."""
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
