"""Loading a .ui file: `qt.QUiLoader`, with the stand-in widgets and with Slicer's own connections.

A widget class or a property of a stand-in that is not imitated is an error, with its name. Connections that
PySide6 cannot make itself (`mrmlSceneChanged(vtkMRMLScene*)`) are read from the file and made here, so a
forgotten connection shows as it does in Slicer: the widget stays without a scene.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from .pythonqt import cpp_class, property_names
from .refuse import NotSimulatedError

#: Stand-in widgets by class name, as a .ui file names them.
standins: dict[str, Any] = {}


def standin(cls: Any) -> Any:
    """Class decorator: lets .ui files use this stand-in widget."""
    standins[cls.__name__] = cls
    return cpp_class(cls)


class QUiLoader(QtUiTools.QUiLoader):
    """Creates the facade's widgets for the classes named in the file."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._unknown: list[str] = []

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        if class_name in standins:
            widget = standins[class_name](parent)
        elif isinstance(getattr(QtWidgets, class_name, None), type):
            widget = getattr(QtWidgets, class_name)(parent)
        else:
            self._unknown.append(class_name)
            widget = QtWidgets.QWidget(parent)
        QtCore.QObject.setObjectName(widget, name)
        return widget

    def createLayout(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        cls = getattr(QtWidgets, class_name)
        layout = cls(parent) if isinstance(parent, QtWidgets.QWidget) else cls()
        QtCore.QObject.setObjectName(layout, name)
        return layout

    def load(self, device: Any, parent: Any = None) -> Any:
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        connections = _take_connections(root)
        _check_properties(root)
        enums = _take_enums(root)
        plain = QtCore.QBuffer()
        plain.setData(ElementTree.tostring(root))
        plain.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(plain, parent)
        if self._unknown:
            raise NotSimulatedError(f"Widget class {', '.join(sorted(set(self._unknown)))} of a .ui file")
        if widget is None:
            raise RuntimeError("Qt could not load the .ui file")
        for name, prop, value in enums:
            setattr(_named(widget, name), prop, value)
        for sender, signal, receiver, slot in connections:
            _named(widget, sender).connect(signal, _named(widget, receiver), slot)
        return widget


def _take_connections(root: Any) -> list[tuple[str, str, str, str]]:
    """Removes the connections from the tree and returns them as (sender, signal, receiver, slot)."""
    found = []
    for section in root.findall("connections"):
        for one in section.findall("connection"):
            found.append(tuple(one.findtext(part, "") for part in ("sender", "signal", "receiver", "slot")))
        root.remove(section)
    return found


def _take_enums(root: Any) -> list[tuple[str, str, int]]:
    """Enum and flag properties of stand-ins as (widget, property, number): theirs are plain numbers."""
    found = []
    for element in root.iter("widget"):
        cls = standins.get(element.get("class", ""))
        for prop in element.findall("property") if cls is not None else []:
            text = prop.findtext("enum") or prop.findtext("set")
            name = prop.get("name", "")
            if text and name in cls.__dict__:
                number = 0
                for part in text.split("|"):
                    scope, _, value = part.rpartition("::")
                    class_name = scope.split("::")[0]
                    owner = standins.get(class_name) or getattr(QtWidgets, class_name)
                    one = getattr(owner, value)
                    number |= int(getattr(one, "value", one))
                found.append((element.get("name", ""), name, number))
                element.remove(prop)
    return found


def _check_properties(root: Any) -> None:
    """A property of a stand-in must be one it has; dynamic ones (stdset=0) are free, as in Qt."""
    for element in root.iter("widget"):
        cls = standins.get(element.get("class", ""))
        if cls is None:
            continue
        for prop in element.findall("property"):
            name = prop.get("name")
            if prop.get("stdset") != "0" and name not in property_names(cls):
                raise NotSimulatedError(f"Property '{name}' of {cls.__name__} in a .ui file")


def _named(widget: Any, name: str) -> Any:
    if QtCore.QObject.objectName(widget) == name:
        return widget
    found = QtCore.QObject.findChild(widget, QtCore.QObject, name)
    if found is None:
        raise RuntimeError(f"The .ui file connects '{name}', which it does not contain")
    return found
