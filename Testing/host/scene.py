"""Slicer's own MRML: scene, application logic and module logics, all C++ from the slicer-core wheel.

The order of construction is Slicer's where it matters: a segmentation made before the Segmentations logic
exists is broken, and displayable managers ask the application logic for the scene.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import slicer
import vtk

from .refuse import NotSimulatedError
from .subject_hierarchy import SubjectHierarchy

#: module name → the wheel's logic class; slicer.modules has it in lower case
MODULE_LOGICS = {
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Models": "vtkSlicerModelsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
}


class Modules:
    """`slicer.modules`: what is loaded is an attribute, and scripted modules add themselves."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotSimulatedError(f"slicer.modules.{name}")


class LoadableModule:
    """`slicer.modules.segmentations` and its like: a real logic, no widget."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name, self._logic = name, logic

    def logic(self) -> Any:
        return self._logic

    def __getattr__(self, name: str) -> Any:
        raise NotSimulatedError(f"slicer.modules.{self.name}.{name}")


class MrmlApplication:
    """The scene, the application logic and the module logics, wired as qSlicerCoreApplication wires them."""

    def __init__(self, temporary: Path) -> None:
        self.scene = slicer.vtkMRMLScene()
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetMRMLScene(self.scene)
        self.logic.GetColorLogic().SetMRMLScene(self.scene)
        self.logic.GetColorLogic().AddDefaultColorNodes()
        self.logic.SetSliceLogics(vtk.vtkCollection())
        self.logic.SetViewLogics(vtk.vtkCollection())
        self.logic.SetTemporaryPath(str(temporary))
        slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(self.logic)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self._connect_storage(temporary)
        share = write_terminologies(temporary / "share")
        self.modules = Modules()
        self._publish("Colors", self.logic.GetColorLogic())
        for name, class_name in MODULE_LOGICS.items():
            logic = getattr(slicer, class_name)()
            if name == "Terminologies":
                logic.SetModuleShareDirectory(str(share))
            logic.SetMRMLApplicationLogic(self.logic)
            logic.SetMRMLScene(self.scene)
            self._publish(name, logic)

        self.subject_hierarchy = SubjectHierarchy(self.scene)

    def _publish(self, name: str, logic: Any) -> None:
        self.logic.SetModuleLogic(name, logic)
        setattr(self.modules, name.lower(), LoadableModule(name, logic))

    def _connect_storage(self, temporary: Path) -> None:
        """Storage nodes read and write through these two logics."""
        self._remote = slicer.vtkMRMLRemoteIOLogic()
        self._remote.SetMRMLScene(self.scene)
        self._remote.SetMRMLApplicationLogic(self.logic)
        self._remote.GetCacheManager().SetRemoteCacheDirectory(str(temporary))
        self._data = slicer.vtkDataIOManagerLogic()
        self._data.SetMRMLScene(self.scene)
        self._data.SetMRMLApplicationLogic(self.logic)
        self._data.SetAndObserveDataIOManager(self._remote.GetDataIOManager())
        self._remote.AddDataIOToScene()


ANATOMY_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
MASTER_CONTEXT = "Segmentation category and type - DICOM master list"
REGION_CONTEXT = "Anatomic codes - DICOM master list"

#: (category, type, SNOMED code, colour): a handful of entries, enough to test looking them up
_TERMS = (
    ("Anatomical Structure", "123037004", "Liver", "10200004", (221, 130, 101)),
    ("Anatomical Structure", "123037004", "Spleen", "78961009", (157, 108, 162)),
    ("Anatomical Structure", "123037004", "Kidney", "64033007", (185, 102, 83)),
    ("Anatomical Structure", "123037004", "Aorta", "15825003", (224, 97, 76)),
    ("Anatomical Structure", "123037004", "Stomach", "69695003", (216, 132, 105)),
    ("Morphologically Altered Structure", "49755003", "Mass", "4147007", (144, 238, 144)),
)


def write_terminologies(folder: Path) -> Path:
    """A few terms in files named like Slicer's lists, which the wheel lacks; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in (("SlicerGeneralAnatomy", ANATOMY_CONTEXT), ("DICOM-Master", MASTER_CONTEXT)):
        content = {
            "SegmentationCategoryTypeContextName": name,
            "SegmentationCodes": {"Category": _categories()},
        }
        _write(folder / f"SegmentationCategoryTypeModifier-{file}.term.json", content)
    regions = [_code(name, code) for _, _, name, code, _ in _TERMS if name != "Mass"]
    content = {"AnatomicContextName": REGION_CONTEXT, "AnatomicCodes": {"AnatomicRegion": regions}}
    _write(folder / "AnatomicRegionAndModifier-DICOM-Master.term.json", content)
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    kind = "anatomic" if "AnatomicCodes" in content else "segment"
    schema = f"https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/{kind}-context-schema.json#"
    path.write_text(json.dumps({"@schema": schema, **content}), encoding="utf-8")


def _code(meaning: str, value: str) -> dict[str, Any]:
    return {"CodeMeaning": meaning, "CodeValue": value, "CodingSchemeDesignator": "SCT"}


def _categories() -> list[dict[str, Any]]:
    categories: dict[str, dict[str, Any]] = {}
    for category, category_code, name, code, colour in _TERMS:
        entry = categories.setdefault(
            category, _code(category, category_code) | {"showAnatomy": "true", "Type": []}
        )
        entry["Type"].append(
            _code(name, code) | {"recommendedDisplayRGBValue": list(colour), "3dSlicerLabel": name.lower()}
        )
    return list(categories.values())
