"""`slicer.app`: the parts of qSlicerApplication that a scripted module meets.

Properties, calls and signals follow qSlicerCoreApplication.h and qSlicerApplication.h. What belongs to
QApplication is passed on to the real one, by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from . import pythonqt
from .refuse import NotSimulatedError, Refusing

Property = QtCore.Property

#: The release whose API the host imitates.
VERSION = (5, 12, 3)


class CommandOptions(Refusing):
    """`slicer.app.commandOptions()`."""

    testingEnabled = False
    noMainWindow = False
    runPythonAndExit = False


class ExtensionsManagerModel(QtCore.QObject):
    """`slicer.app.extensionsManagerModel()`: records what a module asks to be installed."""

    cpp_class = True

    def __init__(self) -> None:
        super().__init__()
        self._installed: list[str] = []
        self._requested: list[str] = []

    def isExtensionInstalled(self, name: str) -> bool:
        return name in self._installed

    def installExtensionFromServer(self, name: str, restart: bool = True, update: bool = False) -> bool:
        self._requested.append(name)
        self._installed.append(name)
        return True

    def updateExtensionsMetadataFromServer(self, force: bool = False, wait: bool = False) -> bool:
        return True

    installedExtensions = Property("QStringList", lambda self: self._installed)
    interactive = Property(bool, lambda self: False, lambda self, value: None)


class FactoryManager(Refusing):
    """`slicer.app.moduleManager().factoryManager()`."""

    def __init__(self, modules: dict[str, Any]) -> None:
        self._modules = modules

    def loadedModuleNames(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def isLoaded(self, name: str) -> bool:
        return name in self._modules


class ModuleManager(QtCore.QObject):
    """`slicer.app.moduleManager()`: knows the scripted modules that were opened."""

    cpp_class = True
    moduleLoaded = QtCore.Signal(str)
    moduleAboutToBeUnloaded = QtCore.Signal(str)
    cpp_signals = {
        "moduleLoaded(QString)": "moduleLoaded",
        "moduleAboutToBeUnloaded(QString)": "moduleAboutToBeUnloaded",
    }

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[str, Any] = {}

    def module(self, name: str) -> Any:
        return self._modules.get(name)

    def modulesNames(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def factoryManager(self) -> Any:
        return FactoryManager(self._modules)


#: Calls that slicer.app inherits from QApplication.
INHERITED = (
    "processEvents", "clipboard", "palette", "style", "topLevelWidgets", "setOverrideCursor",
    "restoreOverrideCursor", "overrideCursor", "keyboardModifiers", "font", "focusWidget", "activeWindow",
    "primaryScreen", "sendPostedEvents", "widgetAt", "beep",
)  # fmt: skip


class Application(QtCore.QObject):
    """`slicer.app`. `_exit_code` is set once something asked Slicer to quit."""

    cpp_class = True
    startupCompleted = QtCore.Signal()
    aboutToQuit = QtCore.Signal()
    lastWindowClosed = QtCore.Signal()
    mrmlSceneChanged = QtCore.Signal(object)
    cpp_signals = {
        "startupCompleted()": "startupCompleted",
        "aboutToQuit()": "aboutToQuit",
        "lastWindowClosed()": "lastWindowClosed",
        "mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged",
    }

    def __init__(
        self,
        mrml: Any,
        io: Any,
        layout: Any,
        temporary: Path,
        settings_file: Path,
        environment: dict[str, str],
    ) -> None:
        super().__init__()
        self._mrml, self._io, self._layout, self._temporary = mrml, io, layout, temporary
        self._started_with = environment
        self._settings = pythonqt.install().QSettings(str(settings_file), QtCore.QSettings.Format.IniFormat)
        self._options = CommandOptions()
        self._modules = ModuleManager()
        self._extensions = ExtensionsManagerModel()
        self._exit_code: int | None = None
        self._restarts = 0

    def __getattr__(self, name: str) -> Any:
        if name in INHERITED:
            return getattr(QtWidgets.QApplication.instance() or QtWidgets.QApplication, name)
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotSimulatedError(f"slicer.app.{name}")

    def mrmlScene(self) -> Any:
        return self._mrml.scene

    def applicationLogic(self) -> Any:
        return self._mrml.logic

    def moduleLogic(self, name: str) -> Any:
        return self._mrml.logic.GetModuleLogic(name)

    def coreIOManager(self) -> Any:
        return self._io

    ioManager = coreIOManager

    def layoutManager(self) -> Any:
        return self._layout

    def moduleManager(self) -> Any:
        return self._modules

    def extensionsManagerModel(self) -> Any:
        return self._extensions

    def pauseRender(self) -> None:
        for name in self._layout.sliceViewNames():
            self._layout.sliceWidget(name).sliceView()._paused += 1

    def resumeRender(self) -> None:
        for name in self._layout.sliceViewNames():
            view = self._layout.sliceWidget(name).sliceView()
            view._paused -= 1
            view.scheduleRender()

    def settings(self) -> Any:
        return self._settings

    userSettings = revisionUserSettings = settings

    def commandOptions(self) -> Any:
        return self._options

    def testingEnabled(self) -> bool:
        return self._options.testingEnabled

    def startupEnvironment(self) -> Any:
        """The environment that Slicer was started in: without what its launcher added."""
        environment = QtCore.QProcessEnvironment()
        for name, value in self._started_with.items():
            environment.insert(name, value)
        return environment

    def environment(self) -> Any:
        """Slicer's own environment: the same here, with the two variables that break a foreign Python."""
        environment = QtCore.QProcessEnvironment.systemEnvironment()
        environment.insert("PYTHONHOME", "/simulated/Slicer/lib/Python")
        environment.insert("PYTHONNOUSERSITE", "1")
        return environment

    def translate(self, context: str, text: str, *_: Any) -> str:
        return text

    def exit(self, code: int = 0) -> None:
        """Only remembered; the test decides when the host quits."""
        self._exit_code = code

    def quit(self) -> None:
        self.exit(0)

    def _wait_for_processes(self) -> None:
        """Let processes that were asked to end do so, and end the others: of one that outlives it, Qt tells the
        handlers when it has deleted it.
        """
        for process in self.findChildren(QtCore.QProcess):
            if not process.waitForFinished(5000):
                process.kill()
                process.waitForFinished(5000)

    def restart(self) -> None:
        self._restarts += 1

    def pythonConsole(self) -> None:
        return None

    applicationName = Property(str, lambda self: "Slicer")
    applicationVersion = Property(str, lambda self: ".".join(map(str, VERSION)))
    mainApplicationName = Property(str, lambda self: "Slicer")
    majorVersion = Property(int, lambda self: VERSION[0])
    minorVersion = Property(int, lambda self: VERSION[1])
    revision = Property(str, lambda self: "0")
    os = Property(str, lambda self: "linux")
    arch = Property(str, lambda self: "amd64")
    temporaryPath = Property(str, lambda self: str(self._temporary))
    cachePath = Property(str, lambda self: str(self._temporary / "cache"))
    slicerHome = Property(str, lambda self: str(self._temporary / "home"))
    slicerUserSettingsFilePath = Property(str, lambda self: self._settings.fileName())
    documentationBaseUrl = Property(str, lambda self: "https://slicer.readthedocs.io/en/latest/")


def publish(app: Application) -> None:
    """`slicer.app`, `slicer.mrmlScene`, `slicer.modules`."""
    slicer.app = app
    slicer.mrmlScene = app.mrmlScene()
    slicer.modules = app._mrml.modules
