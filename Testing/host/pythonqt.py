"""PythonQt's habits on top of PySide6: what `import qt` gives inside Slicer.

Imitated, after reading PythonQt's sources: a Qt property is an attribute and hides the getter of the same
name (`label.text`, not `label.text()`), while setters and `isEnabled()`-style getters stay calls;
`connect("signal(args)", f)` with the C++ signature; handlers that take fewer arguments than the signal;
children and dynamic properties as attributes; new attributes refused on C++ objects; `name`, `className()`
and a trailing underscore (`exec_`).

Not imitated: enums are real enums here and int-like there, object ownership, and the set of wrapped
methods (PySide6 wraps some that PythonQt does not, and Qt 6 differs from Qt 5.15). `source_check` looks for
the known cases.
"""

from __future__ import annotations

import inspect
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtNetwork, QtUiTools, QtWidgets

from .refuse import NotSimulatedError

MODULES = (QtCore, QtGui, QtWidgets, QtNetwork, QtUiTools)

#: Tracebacks of exceptions that were raised inside a signal handler. Slicer prints them and goes on.
handler_errors: list[str] = []

_properties: dict[type, frozenset[str]] = {}
_wrapped: dict[type, type] = {}


def property_names(cls: Any) -> frozenset[str]:
    """Names of the Qt properties of a QObject class, its bases included."""
    names = _properties.get(cls)
    if names is None:
        meta = cls.staticMetaObject
        names = frozenset(meta.property(i).name() for i in range(meta.propertyCount()))
        _properties[cls] = names
    return names


def _accepted_arguments(handler: Callable[..., Any]) -> int | None:
    """How many arguments PythonQt would hand over: None means all of them."""
    function, bound = handler, 0
    if inspect.ismethod(handler):
        function, bound = handler.__func__, 1
    if not inspect.isfunction(function) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - bound


def relay(handler: Callable[..., Any]) -> Callable[..., None]:
    """A slot that calls `handler` the way PythonQt does: extra arguments dropped, exceptions recorded."""
    limit = _accepted_arguments(handler)

    def slot(*arguments: Any) -> None:
        try:
            handler(*arguments[:limit])
        except Exception:
            handler_errors.append(traceback.format_exc())
            traceback.print_exc()

    return slot


class Signal:
    """A signal bound to an object: `button.clicked.connect(f)`, `.emit()`, or called to be emitted."""

    def __init__(self, owner: Any, name: str, native: Any) -> None:
        self._owner, self._name, self._native = owner, name, native

    def connect(self, target: Any) -> bool:
        if isinstance(target, Signal):
            target = target.emit
        if not callable(target):
            raise ValueError(f"{self._name}.connect() needs something callable, not {target!r}")
        slot = relay(target)
        self._native.connect(slot)
        _connections(self._owner).append((self._name, target, slot, lambda: self._native.disconnect(slot)))
        return True

    def disconnect(self, target: Any = None) -> bool:
        return _disconnect(self._owner, self._name, target)

    def emit(self, *arguments: Any) -> None:
        self._native.emit(*arguments)

    __call__ = emit


def _connections(owner: Any) -> list[tuple[str, Any, Any, Callable[[], Any]]]:
    return owner.__dict__.setdefault("_pq_connections", [])


def _disconnect(owner: Any, name: str, target: Any) -> bool:
    found = False
    for entry in list(_connections(owner)):
        if entry[0] == name and (target is None or entry[1] == target):
            entry[3]()
            _connections(owner).remove(entry)
            found = True
    return found


def _find_native(owner: Any, signature: str) -> tuple[str, Any, Any]:
    """Name, connect and disconnect of the signal with this C++ signature; refused when there is none."""
    wanted = QtCore.QMetaObject.normalizedSignature(signature)
    wanted = wanted.data().decode() if isinstance(wanted, QtCore.QByteArray) else str(wanted)
    for cls in type(owner).__mro__:
        for known, attribute in cls.__dict__.get("cpp_signals", {}).items():
            if known.replace(" ", "") == wanted.replace(" ", ""):
                native = object.__getattribute__(owner, attribute)
                return attribute, native.connect, native.disconnect
    meta = QtCore.QObject.metaObject(owner)
    if meta.indexOfSignal(wanted) < 0:
        raise NotSimulatedError(f"{meta.className()}: signal '{signature}'")
    where = QtCore.SIGNAL(wanted)

    def connect(slot: Any) -> None:
        QtCore.QObject.connect(owner, where, slot)

    def disconnect(slot: Any) -> None:
        QtCore.QObject.disconnect(owner, where, slot)

    return wanted, connect, disconnect


#: Properties whose getter is virtual: reading one makes Shiboken look it up here again.
VIRTUAL_PROPERTIES = ("sizeHint", "minimumSizeHint")
_being_read: set[tuple[int, str]] = set()


def _read_virtual(owner: Any, name: str) -> Any:
    key = (id(owner), name)
    if key in _being_read:
        return object.__getattribute__(owner, name)
    _being_read.add(key)
    try:
        return QtCore.QObject.property(owner, name)
    finally:
        _being_read.discard(key)


def _check_alive(owner: Any, name: str) -> None:
    """PythonQt raises ValueError here; PySide6 would crash."""
    if not shiboken6.isValid(owner):
        raise ValueError(f"Trying to access '{name}' of a destroyed {type(owner).__name__} object")


class PythonQtObject:
    """Mixed into every QObject class that the facade hands out."""

    def __getattribute__(self: Any, name: str) -> Any:
        if name[0] != "_":
            if name in property_names(type(self)):
                _check_alive(self, name)
                if name in VIRTUAL_PROPERTIES:
                    return _read_virtual(self, name)
                value = QtCore.QObject.property(self, name)
                if isinstance(value, list) and all(isinstance(item, str) for item in value):
                    return tuple(value)  # QStringList
                return value
            # Shiboken hides Python overrides of these, so they are routed here.
            if name in ("connect", "disconnect", "findChild", "findChildren"):
                return types.MethodType(getattr(PythonQtObject, "_" + name), self)
        value = super().__getattribute__(name)
        if isinstance(value, QtCore.SignalInstance) and name[0] != "_":
            return Signal(self, name, value)
        return value

    def __getattr__(self: Any, name: str) -> Any:
        if name[0] != "_":
            _check_alive(self, name)
            if name == "name":
                return QtCore.QObject.objectName(self)
            if name == "className":
                return lambda: QtCore.QObject.metaObject(self).className()
            if name == "delete":
                return lambda: shiboken6.delete(self)
            if name.endswith("_") and hasattr(type(self), name[:-1]):
                return getattr(self, name[:-1])
            value = QtCore.QObject.property(self, name)
            if value is not None:
                return value
            for child in QtCore.QObject.children(self):
                if QtCore.QObject.objectName(child) == name:
                    return child
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name[0] != "_":
            _check_alive(self, name)
        if name[0] != "_" and name in property_names(type(self)):
            if not QtCore.QObject.setProperty(
                self,
                name,
                list(value) if isinstance(value, tuple) else value,
            ):
                raise AttributeError(
                    f"Property '{name}' of {type(self).__name__} is not writable or does not accept {value!r}"
                )
        elif name == "name":
            QtCore.QObject.setObjectName(self, value)
        elif name[0] != "_" and QtCore.QObject.property(self, name) is not None:
            QtCore.QObject.setProperty(self, name, value)
        elif type(self).__dict__.get("_pq_direct") and name[0] != "_":
            raise AttributeError(
                f"'{name}' does not exist on {type(self).__name__}, and creating new attributes on C++ "
                "objects is not allowed"
            )
        else:
            super().__setattr__(name, value)

    def _connect(self: Any, signal: str, *target: Any) -> bool:
        name, connect, disconnect = _find_native(self, signal)
        if len(target) == 2:  # receiver, slot
            receiver, slot_name = target
            handler = getattr(receiver, slot_name.split("(")[0])
        elif len(target) == 1 and callable(target[0]):
            handler = target[0]
        else:
            raise ValueError(f"connect('{signal}', …) needs a callable, or a receiver and its slot")
        slot = relay(handler)
        if signal.endswith("()"):  # the overload without arguments hands none over
            bare = slot

            def slot(*_: Any) -> None:
                bare()

        connect(slot)
        _connections(self).append((name, handler, slot, lambda: disconnect(slot)))
        return True

    def _disconnect(self: Any, signal: str, *target: Any) -> bool:
        name, _, _ = _find_native(self, signal)
        handler = getattr(target[0], target[1].split("(")[0]) if len(target) == 2 else (target or (None,))[0]
        return _disconnect(self, name, handler)

    def _findChildren(self: Any, kind: Any = QtCore.QObject, *more: Any) -> Any:
        return QtCore.QObject.findChildren(self, getattr(kind, "_pq_base", kind), *more)

    def _findChild(self: Any, kind: Any = QtCore.QObject, *more: Any) -> Any:
        return QtCore.QObject.findChild(self, getattr(kind, "_pq_base", kind), *more)


_ShibokenMeta: Any = type(QtCore.QObject)


class _Meta(_ShibokenMeta):
    """`isinstance(x, qt.QWidget)` also holds for widgets that Qt made by itself."""

    def __instancecheck__(cls, instance: Any) -> bool:
        base = cls.__dict__.get("_pq_base")
        return isinstance(instance, base) if base else super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        base = cls.__dict__.get("_pq_base")
        return issubclass(subclass, base) if base else super().__subclasscheck__(subclass)


def wrap(base: type) -> type:
    """The facade's class for a PySide6 QObject class (made once)."""
    cls = _wrapped.get(base)
    if cls is None:
        marks = {"_pq_direct": True, "_pq_base": base, "__module__": "qt"}
        cls = _wrapped[base] = _Meta(base.__name__, (PythonQtObject, base), marks)
    return cls


class _QtModule(types.ModuleType):
    """`qt`: classes are wrapped when they are first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in ("Signal", "Slot", "Property", "SIGNAL", "SLOT"):
            raise AttributeError(f"module 'qt' has no attribute '{name}' (that is PySide6's, not PythonQt's)")
        for module in MODULES:
            found = getattr(module, name, None)
            if found is not None:
                if inspect.isclass(found) and issubclass(found, QtCore.QObject):
                    found = wrap(found)
                setattr(self, name, found)
                return found
        raise AttributeError(f"module 'qt' has no attribute '{name}'")


def install() -> Any:
    """Put `qt` and `PythonQt` into sys.modules; returns `qt`."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    qt = _QtModule("qt", __doc__)
    sys.modules["qt"] = qt
    package = types.ModuleType("PythonQt")
    package.__path__ = []
    sys.modules["PythonQt"] = package
    for part in ("QtCore", "QtGui", "QtWidgets", "QtNetwork"):
        setattr(package, part, qt)
        sys.modules[f"PythonQt.{part}"] = qt
    return qt
