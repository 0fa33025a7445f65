"""`slicer.app.coreIOManager()`: loading and saving by file type, on Slicer's real storage nodes and logics.

Imitates the parts of qSlicerCoreIOManager that `slicer.util.loadVolume`, `loadScene`, `saveNode` … call.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from .refuse import NotSimulatedError, Refusing

FILE_TYPES = {
    ".nii": "VolumeFile",
    ".nii.gz": "VolumeFile",
    ".nrrd": "VolumeFile",
    ".nhdr": "VolumeFile",
    ".mha": "VolumeFile",
    ".mhd": "VolumeFile",
    ".seg.nrrd": "SegmentationFile",
    ".seg.nii.gz": "SegmentationFile",
    ".mrk.json": "MarkupsFile",
    ".h5": "TransformFile",
    ".tfm": "TransformFile",
    ".txt": "TextFile",
    ".mrml": "SceneFile",
    ".mrb": "SceneFile",
}


def _suffix(path: str) -> str:
    name = Path(path).name.lower()
    known = [suffix for suffix in FILE_TYPES if name.endswith(suffix)]
    return max(known, key=len, default="")


class IOManager(Refusing):
    """Loads and saves nodes and scenes; `fileType` goes by the file's name."""

    def __init__(self, mrml: Any, temporary: Path) -> None:
        self._mrml, self._temporary = mrml, temporary

    def fileType(self, path: str) -> str:
        return FILE_TYPES.get(_suffix(str(path)), "NoFile")

    def fileWriterFileType(self, node: Any, *_: Any) -> str:
        for part, kind in (
            ("Segmentation", "SegmentationFile"),
            ("Volume", "VolumeFile"),
            ("Markups", "MarkupsFile"),
        ):
            if part in node.GetClassName():
                return kind
        return "NodeFile"

    def loadNodes(self, kind: str, properties: Any, loaded: Any, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if not Path(path).exists():
            return False
        if kind == "SceneFile":
            return self._load_scene(path, bool(properties.get("clear", False)))
        name = properties.get("name") or Path(path).name[: -len(_suffix(path)) or None]
        loaders = {
            "VolumeFile": self._load_volume,
            "SegmentationFile": self._load_segmentation,
            "MarkupsFile": self._load_markups,
            "TransformFile": self._load_transform,
        }
        if kind not in loaders:
            raise NotSimulatedError(f"Loading a {kind}")
        node = loaders[kind](path, name, properties)
        if node is None:
            return False
        loaded.AddItem(node)
        return True

    def _logic(self, module: str) -> Any:
        return getattr(self._mrml.modules, module).logic()

    def _load_volume(self, path: str, name: str, properties: Any) -> Any:
        node = self._logic("volumes").AddArchetypeVolume(path, name, 1 if properties.get("labelmap") else 0)
        if node is not None and properties.get("show", True):
            selection = self._mrml.logic.GetSelectionNode()
            if properties.get("labelmap"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            self._mrml.logic.PropagateVolumeSelection()
        return node

    def _load_segmentation(self, path: str, name: str, properties: Any) -> Any:
        return self._logic("segmentations").LoadSegmentationFromFile(path, True, name)

    def _load_markups(self, path: str, name: str, properties: Any) -> Any:
        node_id = self._logic("markups").LoadMarkups(path, name, None)
        return self._mrml.scene.GetNodeByID(node_id) if node_id else None

    def _load_transform(self, path: str, name: str, properties: Any) -> Any:
        return self._logic("transforms").AddTransform(path, self._mrml.scene)

    def _load_scene(self, path: str, clear: bool) -> bool:
        scene = self._mrml.scene
        if path.endswith(".mrb"):
            if clear:
                scene.Clear(0)
            folder = tempfile.mkdtemp(prefix="bundle-", dir=self._temporary)
            shutil.unpack_archive(path, folder, "zip")
            path = str(next(Path(folder).rglob("*.mrml")))
        elif clear:
            scene.Clear(0)
        scene.SetURL(path)
        scene.SetRootDirectory(str(Path(path).parent))
        return bool(scene.Import(None))

    def saveNodes(self, kind: str, properties: Any, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if kind == "SceneFile":
            return self._save_scene(path)
        node = self._mrml.scene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(properties["useCompression"])
        return bool(storage.WriteData(node))

    def _save_scene(self, path: str) -> bool:
        scene = self._mrml.scene
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".mrb"):
            return bool(scene.WriteToMRB(path, None))
        if path.endswith(".mrml"):
            scene.SetURL(path)
            scene.SetRootDirectory(str(Path(path).absolute().parent))
            return bool(scene.Commit(path))
        Path(path).mkdir(parents=True, exist_ok=True)
        return bool(self._mrml.logic.SaveSceneToSlicerDataBundleDirectory(path, None))

    def addDefaultStorageNodes(self) -> None:
        for index in range(self._mrml.scene.GetNumberOfNodesByClass("vtkMRMLStorableNode")):
            node = self._mrml.scene.GetNthNodeByClass(index, "vtkMRMLStorableNode")
            if node.GetSaveWithScene() and node.GetStorageNode() is None:
                node.AddDefaultStorageNode()
