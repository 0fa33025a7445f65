"""Scripted modules: their base classes, and what Slicer does to open, reload and unload one.

The base classes are written anew from the behaviour of Slicer's ScriptedLoadableModule.py; the two C++
classes around them follow qSlicerScriptedLoadableModule(Widget).cxx.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from PySide6 import QtCore, QtWidgets

from . import pythonqt
from .mrml_widgets import publish, qSlicerWidget
from .refuse import NotSimulatedError


class qSlicerScriptedLoadableModule:
    """`parent` of a ScriptedLoadableModule: the module as Slicer's module manager sees it."""

    FIELDS = (
        "title", "categories", "contributors", "helpText", "acknowledgementText", "dependencies", "hidden",
        "icon", "index", "associatedNodeTypes", "extensions", "widgetRepresentationCreationEnabled",
    )  # fmt: skip

    def __init__(self, name: str, path: Path) -> None:
        self.__dict__.update(dict.fromkeys(self.FIELDS), name=name, path=str(path))
        self._representation: Any = None
        self.hidden = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.FIELDS and not name.startswith("_"):
            raise NotSimulatedError(f"Setting '{name}' of a scripted module")
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        raise NotSimulatedError(f"'{name}' of a scripted module")

    def logic(self) -> None:
        return None

    def widgetRepresentation(self) -> Any:
        if self._representation is None:
            widget = qSlicerScriptedLoadableModuleWidget(self.name)
            self._representation = widget
            widget._build()
        return self._representation


@publish
class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """`parent` of a ScriptedLoadableModuleWidget."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._module_name, self._entered = name, False
        self._python: Any = None
        QtWidgets.QVBoxLayout(self)
        self._scene = slicer.mrmlScene

    def _build(self) -> None:
        class_name = self._module_name + "Widget"
        cls = getattr(sys.modules[self._module_name], class_name)
        self._python = cls(self)
        setattr(slicer.modules, class_name, self._python)
        self._python.setup()

    def reload(self) -> None:
        self._build()

    def self(self) -> Any:
        return self._python

    def enter(self) -> None:
        self._entered = True
        self._call("enter")

    def exit(self) -> None:
        self._entered = False
        self._call("exit")

    def _call(self, name: str) -> None:
        method = getattr(self._python, name, None)
        if method is not None:
            pythonqt.relay(method)()

    moduleName = QtCore.Property(str, lambda self: self._module_name)
    isEntered = QtCore.Property(bool, lambda self: self._entered)


class ScriptedLoadableModule:
    """Metadata of a module."""

    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.helpText, parent.acknowledgementText = "", "", ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        icons = Path(parent.path).parent / "Resources" / "Icons"
        for suffix in (".svg", ".png"):
            if (icons / f"{self.moduleName}{suffix}").is_file():
                parent.icon = pythonqt.install().QIcon(str(icons / f"{self.moduleName}{suffix}"))
                break
        tests = slicer.__dict__.setdefault("selfTests", {})
        tests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        page = slicer.app.documentationBaseUrl + (docPage or self.moduleName)
        return f'<p>For more information, see the <a href="{page}">online documentation</a>.</p>'

    def runTest(self, msec: int = 100, **options: Any) -> None:
        module = importlib.import_module(type(self).__module__)
        case = getattr(module, self.moduleName + "Test")()
        case.messageDelay = msec
        case.runTest(**options)


class ScriptedLoadableModuleWidget:
    """Panel of a module."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, slicer.util.toBool)
        if parent is None:
            raise NotSimulatedError("A module widget without a parent")
        self.parent = parent
        self.layout = parent.layout()
        slicer.app.moduleManager().connect(
            "moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded
        )

    def resourcePath(self, filename: str) -> str:
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self) -> None:
        """Slicer adds the Reload & Test section here; the host has none."""

    def cleanup(self) -> None:
        """For the module to override."""

    def _onModuleAboutToBeUnloaded(self, name: str) -> None:
        if name == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect(
                "moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded
            )

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    """Logic of a module: its parameter node."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None:
                if node.GetAttribute("ModuleName") != self.moduleName:  # closing the scene may drop it
                    node.SetAttribute("ModuleName", self.moduleName)
                return node
        elif self.getAllParameterNodes():
            return self.getAllParameterNodes()[0]
        return slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self) -> list[Any]:
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Self-test of a module: runTest runs every method with "test" in its name."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        super(unittest.TestCase, self).__init__()  # TestCase does not pass on to a mixin
        self.messageDelay = 100
        names = [name for name in dir(self) if "test" in name and callable(getattr(self, name))]
        self.moduleTestNames = names

    def delayDisplay(self, message: str, requestedDelay: Any = None, msec: Any = None) -> None:
        logging.info(message)
        slicer.app.processEvents()

    def runTest(self) -> None:
        type(self).setUpClass()
        for name in self.moduleTestNames:
            self.setUp()
            getattr(self, name)()
            self.tearDown()
        type(self).tearDownClass()


BASE_CLASSES = (
    ScriptedLoadableModule,
    ScriptedLoadableModuleWidget,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)


def tr(text: str) -> str:
    """`slicer.i18n.tr`: no translation is loaded."""
    return text


def translate(context: str, text: str) -> str:
    """`slicer.i18n.translate`."""
    return text


def install() -> None:
    """`slicer.ScriptedLoadableModule` and `slicer.i18n`."""
    slicer.qSlicerScriptedLoadableModule = qSlicerScriptedLoadableModule
    module = types.ModuleType("slicer.ScriptedLoadableModule", __doc__)
    for cls in BASE_CLASSES:
        setattr(module, cls.__name__, cls)
    module.__all__ = [cls.__name__ for cls in BASE_CLASSES]  # type: ignore[attr-defined]
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = tr, translate  # type: ignore[attr-defined]
    for new in (module, i18n):
        sys.modules[new.__name__] = new
        setattr(slicer, new.__name__.split(".")[1], new)


def load(path: Path) -> Any:
    """Load a module's source and instantiate its module class, as the module factory does; no widget yet."""
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[name] = source
    spec.loader.exec_module(source)
    parent = qSlicerScriptedLoadableModule(name, path)
    instance = getattr(source, name)(parent)
    setattr(slicer.modules, name.lower(), parent)
    setattr(slicer.modules, name + "Instance", instance)
    manager = slicer.app.moduleManager()
    manager._modules[name] = parent
    manager.moduleLoaded.emit(name)
    return parent


def unload(parent: Any) -> None:
    """Say that the module goes (its widget cleans up), then forget it."""
    manager = slicer.app.moduleManager()
    manager.moduleAboutToBeUnloaded.emit(parent.name)
    manager._modules.pop(parent.name, None)
    for name in (parent.name.lower(), parent.name + "Instance", parent.name + "Widget"):
        slicer.modules.__dict__.pop(name, None)
    if parent._representation is not None:
        parent._representation.deleteLater()
        parent._representation = None
    sys.modules.pop(parent.name, None)
