"""`Host`: one simulated Slicer in this process, and the hands of the person in front of it.

There is one Qt application and one MRML scene per process, as in Slicer; `reset()` brings it back to how it
was after start-up, so that tests do not see each other.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtTest import QTest

from . import (
    application,
    ctk_widgets,
    dialogs,
    packages,
    parameter_node,
    pythonqt,
    sample_data,
    scripted,
    ui_files,
)
from . import segment_widgets as segment_widgets  # its classes register themselves
from .io_manager import IOManager
from .scene import MrmlApplication
from .slice_view import SliceView
from .views import VIEWS, LayoutManager, qMRMLSliceWidget
from .window import MainWindow

WINDOW = (1280, 760)

Ras = tuple[float, float, float]


def _on_qt_message(kind: Any, context: Any, text: str) -> None:
    """Qt's warnings to stderr, without what only the offscreen platform says."""
    if "propagateSizeHints" not in text:
        print(f"Qt: {text}", file=sys.stderr)


class OpenModule:
    """A scripted module that is open in the host."""

    def __init__(self, host: Host, parent: Any) -> None:
        self._host, self.parent = host, parent
        self.name: str = parent.name

    @property
    def source(self) -> Any:
        """The imported Python file."""
        return sys.modules[self.name]

    @property
    def panel(self) -> Any:
        """The Qt widget that Slicer shows in its module panel."""
        return self.parent.widgetRepresentation()

    @property
    def widget(self) -> Any:
        """The module's own widget object (`IBISSlicerWidget`)."""
        return self.panel.self()

    @property
    def logic(self) -> Any:
        return self.widget.logic

    @property
    def ui(self) -> Any:
        return self.widget.ui

    def enter(self) -> None:
        """Switch to the module: its panel shows, enter() is called."""
        self._host._enter(self)

    def leave(self) -> None:
        """Switch to no module: exit() is called."""
        self._host._enter(None)

    def reload(self) -> None:
        """The Reload button of Slicer's developer mode."""
        self.widget.onReload()
        self._host.process_events()

    def unload(self) -> None:
        """As when Slicer quits: cleanup() is called and the module goes."""
        if self._host.current is self:
            self.leave()
        scripted.unload(self.parent)
        self._host.modules.remove(self)
        self._host.process_events()


class Host:
    """The simulated Slicer. Use `host.start()`, not this constructor."""

    def __init__(self) -> None:
        self.started_with = dict(os.environ)
        self.temporary = Path(tempfile.mkdtemp(prefix="slicer-host-"))
        atexit.register(shutil.rmtree, self.temporary, ignore_errors=True)
        self.qt: Any = pythonqt.install()
        ctk_widgets.install()
        dialogs.install()
        self.qt.QUiLoader = ui_files.QUiLoader
        QtCore.qInstallMessageHandler(_on_qt_message)
        self.qapp = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["SimulatedSlicer"])
        QtCore.QCoreApplication.setOrganizationName("SimulatedSlicerHost")
        QtCore.QCoreApplication.setApplicationName("Slicer")
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        QtCore.QSettings.setPath(
            QtCore.QSettings.Format.IniFormat,
            QtCore.QSettings.Scope.UserScope,
            str(self.temporary / "settings"),
        )
        self.mrml = MrmlApplication(self.temporary)
        self.views = {name: SliceView(self.mrml, name, plane, colour) for name, plane, colour in VIEWS}
        widgets = {name: qMRMLSliceWidget(view) for name, view in self.views.items()}
        layout = LayoutManager(widgets)
        io = IOManager(self.mrml, self.temporary)
        settings = Path(QtCore.QSettings().fileName())
        self.app = application.Application(self.mrml, io, layout, self.temporary, settings, self.started_with)
        application.publish(self.app)
        atexit.register(self.app._wait_for_processes)
        scripted.install()
        parameter_node.install()
        self.packages = packages.Packages(self.temporary)
        packages.install(self.packages)
        self.extensions = packages.Extensions(self.packages)
        self.samples = sample_data.Samples()
        sample_data.install(self.samples)
        self.window = MainWindow(list(widgets.values()))
        self.window._selector._switch = self.select_module
        self.window.resize(*WINDOW)
        self.window.show()
        self.modules: list[OpenModule] = []
        self.current: OpenModule | None = None
        self._path = list(sys.path)
        self._excepthook = sys.excepthook
        sys.excepthook = self._record_exception
        self.process_events()

    @property
    def scene(self) -> Any:
        return self.mrml.scene

    @property
    def messages(self) -> list[dialogs.Message]:
        """Dialogs that the user would have seen, oldest first."""
        return dialogs.shown

    def answer(self, *replies: Any) -> None:
        """Queue replies for the next questions ("Ok", "Cancel", "Yes" …) or file dialogs (a path)."""
        dialogs.answer(*replies)

    def unused_answers(self) -> list[Any]:
        """Queued replies that nothing has asked for."""
        return dialogs.unused_answers()

    @property
    def errors(self) -> list[str]:
        """Tracebacks of exceptions in signal handlers and VTK observers, which Slicer only prints."""
        return pythonqt.handler_errors

    @property
    def complaints(self) -> list[str]:
        """What Slicer itself would write into its error log about nodes of the module."""
        return self.mrml.subject_hierarchy.complaints

    def _record_exception(self, kind: Any, value: Any, trace: Any) -> None:
        import traceback

        pythonqt.handler_errors.append("".join(traceback.format_exception(kind, value, trace)))
        self._excepthook(kind, value, trace)

    def open(self, path: str | Path, *, enter: bool = True) -> OpenModule:
        """Load a scripted module from its .py file and, unless told otherwise, show its panel."""
        module = OpenModule(self, scripted.load(Path(path).resolve()))
        self.modules.append(module)
        self.app.startupCompleted.emit()  # modules are loaded before Slicer says that it is ready
        if enter:
            module.enter()
        return module

    def select_module(self, name: str) -> None:
        """`slicer.util.selectModule`."""
        found = [module for module in self.modules if module.name == name]
        if not found:
            raise RuntimeError(f"No module '{name}' is open in the host")
        self._enter(found[0])

    def _enter(self, module: OpenModule | None) -> None:
        if module is self.current:
            return
        if self.current is not None:
            self.current.panel.exit()
        self.current = module
        self.window._selector._selected = module.name if module else ""
        self.window._show_panel(module.panel if module else None)
        if module is not None:
            module.panel.enter()
        self.process_events()

    def load_volume(self, path: str | Path) -> Any:
        """Load a volume and show it, as the Add data dialog does."""
        node = slicer.util.loadVolume(str(path))
        self.process_events()
        return node

    def save_scene(self, path: str | Path) -> None:
        """Save the scene: .mrb, .mrml, or a folder."""
        if not slicer.util.saveScene(str(path), {}):
            raise RuntimeError(f"The scene could not be saved to {path}")

    def close_scene(self) -> None:
        """File > Close scene."""
        self.scene.Clear(0)
        self.process_events()

    def open_scene(self, path: str | Path) -> None:
        """Close the scene and load another."""
        slicer.util.loadScene(str(path), {"clear": True})
        self.process_events()

    def process_events(self) -> None:
        for _ in range(3):  # a handled event often queues another
            QtWidgets.QApplication.processEvents()
            QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)

    def wait_until(self, condition: Callable[[], Any], seconds: float = 30.0, what: str = "") -> Any:
        """Let Qt run until the condition holds; returns its value. Raises TimeoutError with `what`."""
        end = time.monotonic() + seconds
        while True:
            QtWidgets.QApplication.processEvents()
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise TimeoutError(
                    f"Waited {seconds:g} s in vain{': ' + what if what else ''}. {self._state()}"
                )
            time.sleep(0.005)

    def _state(self) -> str:
        return f"Errors: {self.errors[-1:]}. Dialogs: {self.messages[-2:]}."

    def press(self, widget: Any) -> None:
        """Click a button of the panel with the mouse. A hidden or disabled one cannot be pressed."""
        self._check_reachable(widget)
        QTest.mouseClick(widget, QtCore.Qt.MouseButton.LeftButton)
        self.process_events()

    def type(self, widget: Any, text: str) -> None:
        """Type text into a widget."""
        self._check_reachable(widget)
        QtWidgets.QWidget.setFocus(widget)
        QTest.keyClicks(widget, text)
        self.process_events()

    def key(self, widget: Any, sequence: str) -> None:
        """Press a shortcut such as "Ctrl+Return" with the focus in the widget; None leaves the focus where it is."""
        QtWidgets.QWidget.activateWindow(self.window)
        if widget is not None:
            self._check_reachable(widget)
            QtWidgets.QWidget.setFocus(widget)
        QtWidgets.QApplication.processEvents()
        widget = QtWidgets.QApplication.focusWidget() or self.window
        combination = QtGui.QKeySequence(sequence)[0]
        QTest.keyClick(widget, combination.key(), combination.keyboardModifiers())
        self.process_events()

    @staticmethod
    def _check_reachable(widget: Any) -> None:
        name = QtCore.QObject.objectName(widget) or type(widget).__name__
        if not QtWidgets.QWidget.isVisible(widget):
            raise AssertionError(f"'{name}' is hidden: a person could not use it now")
        if not QtWidgets.QWidget.isEnabled(widget):
            tip = QtWidgets.QWidget.toolTip(widget)
            raise AssertionError(
                f"'{name}' is disabled: a person could not use it now (its tool tip: {tip!r})"
            )

    def click(self, view: str, ras: Ras, button: str = "left") -> None:
        """Click in a slice view at a patient position (mm), which must lie on the shown slice."""
        target, point = self._target(view, ras)
        which = {"left": QtCore.Qt.MouseButton.LeftButton, "right": QtCore.Qt.MouseButton.RightButton}[button]
        self._hover(target, point)
        QTest.mouseClick(target, which, QtCore.Qt.KeyboardModifier.NoModifier, point)
        self.process_events()

    def drag(self, view: str, start: Ras, end: Ras, steps: int = 5) -> None:
        """Drag with the left button from one patient position to another in a slice view."""
        target, first = self._target(view, start)
        _, last = self._target(view, end)
        none = QtCore.Qt.KeyboardModifier.NoModifier
        left = QtCore.Qt.MouseButton.LeftButton
        self._hover(target, first)
        QTest.mousePress(target, left, none, first)
        for step in range(1, steps + 1):
            QTest.mouseMove(target, first + (last - first) * (step / steps))
            self.process_events()
        QTest.mouseRelease(target, left, none, last)
        self.process_events()

    def scroll(self, view: str, slices: int) -> None:
        """Turn the mouse wheel in a slice view: positive is forward."""
        core = self.views[view]
        width, height = core.window.GetSize()
        name = "MouseWheelForwardEvent" if slices > 0 else "MouseWheelBackwardEvent"
        for _ in range(abs(slices)):
            core.event(name, width // 2, height // 2)
        self.process_events()

    def _hover(self, target: Any, point: Any) -> None:
        """Come from beside: Qt sends no event where the mouse is already, and Slicer needs one to see it."""
        target.forceRender()  # a person aims at what is drawn
        for place in (point + QtCore.QPoint(8, 8), point):
            QTest.mouseMove(target, place)
            self.process_events()

    def _target(self, view: str, ras: Ras) -> tuple[Any, Any]:
        widget = self.app.layoutManager().sliceWidget(view).sliceView()
        return widget, QtCore.QPoint(*self.views[view].to_pixel(ras))

    def show_slice(self, view: str, ras: Ras) -> None:
        """Move a slice view so that it passes through a patient position."""
        self.views[view].node.JumpSliceByOffsetting(*ras)
        self.process_events()

    def draw_views(self, always: bool) -> None:
        """Draw the slice views whenever Slicer would, or (`always` False) only when a test looks or aims."""
        for name in self.views:
            self.app.layoutManager().sliceWidget(name).sliceView()._always = always

    def picture(self, view: str) -> Any:
        """What the slice view shows: (H, W, 3) uint8."""
        return self.views[view].picture()

    def resize(self, width: int, height: int) -> None:
        """Size of the window in pixels; 1280 × 760 after a reset."""
        self.window.resize(width, height)
        self.process_events()

    def screenshot(self, path: str | Path) -> None:
        """The whole window as a PNG, with the strip that says what it is."""
        self.draw_views(True)
        self.process_events()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not self.window.grab().save(str(path)):
            raise RuntimeError(f"The screenshot could not be written to {path}")

    def quit(self) -> None:
        """Slicer quits. Its own slot was connected to aboutToQuit first, so modules are unloaded before others hear."""
        for module in list(self.modules):
            module.unload()
        self.app.aboutToQuit.emit()
        for process in self.app.findChildren(QtCore.QProcess):
            if process.state() != QtCore.QProcess.ProcessState.NotRunning:
                self.errors.append("QProcess: Destroyed while process is still running.")
        self.process_events()

    def reset(self) -> None:
        """Back to how it was after start-up: no module, empty scene, no settings, nothing installed."""
        for module in list(self.modules):
            module.unload()
        for name in [name for name in sys.modules if name.split(".")[0].endswith("SlicerLib")]:
            del sys.modules[name]
        sys.path[:] = self._path
        self.scene.Clear(0)
        for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
            self.scene.RemoveNode(node)  # singletons outlive closing a scene
        for name, plane, _ in VIEWS:
            self.views[name].node.SetOrientation(plane)
        self.mrml.logic.GetInteractionNode().SetCurrentInteractionMode(
            slicer.vtkMRMLInteractionNode.ViewTransform
        )
        QtCore.QSettings().clear()
        self.app._settings.clear()
        self.app._exit_code, self.app._restarts = None, 0
        self.app.commandOptions().testingEnabled = False
        self.packages.reset()
        self.extensions.remove_all()
        self.samples.reset()
        for signal in ("startupCompleted()", "aboutToQuit()"):
            self.app.disconnect(signal)
        self.complaints.clear()
        self.app.layoutManager().reset()
        dialogs.reset()
        self.resize(*WINDOW)
        pythonqt.handler_errors.clear()
