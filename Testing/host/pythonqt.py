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

import html
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtNetwork, QtUiTools, QtWidgets

from .refuse import NotSimulatedError

MODULES = (QtCore, QtGui, QtWidgets, QtNetwork, QtUiTools)

#: Tracebacks of exceptions that were raised inside a signal handler. Slicer prints them and goes on.
handler_errors: list[str] = []

_properties: dict[type, frozenset[str]] = {}
_native_get = QtCore.QObject.__getattribute__


def _native_set(owner: Any, name: str, value: Any) -> None:
    """An ordinary Python attribute. Python does not let us call the setters of the C types that we replace."""
    descriptor = inspect.getattr_static(type(owner), name, None)
    if hasattr(type(descriptor), "__set__"):
        descriptor.__set__(owner, value)  # type: ignore[union-attr]
    else:
        owner.__dict__[name] = value


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


#: C++ address → (signal, handler, slot, how to disconnect). By address, because Python may forget and remake its
#: view of an object that Qt owns.
_kept: dict[int, list[tuple[str, Any, Any, Callable[[], Any]]]] = {}


def _connections(owner: Any) -> list[tuple[str, Any, Any, Callable[[], Any]]]:
    address = shiboken6.getCppPointer(owner)[0]
    if address not in _kept:
        _kept[address] = []
        _native_get(owner, "destroyed").connect(lambda *_: _kept.pop(address, None))
    return _kept[address]


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
                native = _native_get(owner, attribute)
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
        return _native_get(owner, name)
    _being_read.add(key)
    try:
        return QtCore.QObject.property(owner, name)
    finally:
        _being_read.discard(key)


def _check_alive(owner: Any, name: str) -> None:
    """PythonQt raises ValueError here; PySide6 would crash."""
    if not shiboken6.isValid(owner):
        raise ValueError(f"Trying to access '{name}' of a destroyed {type(owner).__name__} object")


def _get(owner: Any, name: str, native_get: Any = _native_get) -> Any:
    """QObject.__getattribute__: properties first, then everything that PySide6 has."""
    if name[0] != "_":
        if name in property_names(type(owner)):
            _check_alive(owner, name)
            if name in VIRTUAL_PROPERTIES:
                return _read_virtual(owner, name)
            value = QtCore.QObject.property(owner, name)
            if name == "toolTip" and value and not QtGui.Qt.mightBeRichText(value):
                return (
                    f"<p>{html.escape(value, quote=False)}</p>"  # Slicer turns them into rich text that wraps
                )
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return tuple(value)  # QStringList
            return value
        if name == "connect":
            return types.MethodType(_connect, owner)
        if name == "disconnect":
            return types.MethodType(_disconnect_signature, owner)
    value = native_get(owner, name)
    if isinstance(value, QtCore.SignalInstance) and name[0] != "_":
        return Signal(owner, name, value)
    return value


def _get_missing(owner: Any, name: str) -> Any:
    """QObject.__getattr__: name, className(), exec_, dynamic properties, children."""
    if name[0] != "_":
        _check_alive(owner, name)
        if name == "name":
            return QtCore.QObject.objectName(owner)
        if name == "className":
            return lambda: QtCore.QObject.metaObject(owner).className()
        if name == "delete":
            return lambda: shiboken6.delete(owner)
        if name.endswith("_") and hasattr(type(owner), name[:-1]):
            return getattr(owner, name[:-1])
        value = QtCore.QObject.property(owner, name)
        if value is not None:
            return value
        for child in QtCore.QObject.children(owner):
            if QtCore.QObject.objectName(child) == name:
                return child
    raise AttributeError(f"{type(owner).__name__} has no attribute named '{name}'")


def _set(owner: Any, name: str, value: Any) -> None:
    """QObject.__setattr__: properties, or an attribute of a class that was derived in Python."""
    if name[0] == "_" or isinstance(value, QtCore.SignalInstance):  # PySide6 keeps its signals on the object
        _native_set(owner, name, value)
        return
    _check_alive(owner, name)
    if name in property_names(type(owner)):
        plain = list(value) if isinstance(value, tuple) else value
        if not QtCore.QObject.setProperty(owner, name, plain):
            raise AttributeError(
                f"Property '{name}' of {type(owner).__name__} is not writable or does not accept {value!r}"
            )
    elif name == "name":
        QtCore.QObject.setObjectName(owner, value)
    elif QtCore.QObject.property(owner, name) is not None:
        QtCore.QObject.setProperty(owner, name, value)
    elif _is_cpp_class(type(owner)):
        raise AttributeError(
            f"'{name}' does not exist on {type(owner).__name__}, and creating new attributes on C++ objects "
            "is not allowed"
        )
    else:
        _native_set(owner, name, value)


def _is_cpp_class(cls: type) -> bool:
    return cls.__module__.startswith("PySide6") or "cpp_class" in cls.__dict__


def cpp_class(cls: Any) -> Any:
    """Class decorator of stand-ins: C++ in Slicer, so instances take no new attributes."""
    cls.cpp_class = True
    return cls


def _connect(owner: Any, signal: Any, *target: Any) -> bool:
    """connect("signal(args)", callable) or connect("signal(args)", receiver, "slot(args)")."""
    if isinstance(signal, QtCore.QObject):  # PySide6 itself, from within its C++
        return bool(QtCore.QObject.connect(signal, *target))
    name, connect, disconnect = _find_native(owner, signal)
    if len(target) == 2:
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
    _connections(owner).append((name, handler, slot, lambda: disconnect(slot)))
    return True


def _disconnect_signature(owner: Any, signal: Any, *target: Any) -> bool:
    if isinstance(signal, QtCore.QObject):
        return bool(QtCore.QObject.disconnect(signal, *target))
    name, _, _ = _find_native(owner, signal)
    handler = getattr(target[0], target[1].split("(")[0]) if len(target) == 2 else (target or (None,))[0]
    return _disconnect(owner, name, handler)


def _qobject_classes() -> Iterator[Any]:
    for module in MODULES:
        for name in dir(module):
            thing = getattr(module, name)
            if inspect.isclass(thing) and issubclass(thing, QtCore.QObject):
                yield thing


def _teach(cls: Any) -> None:
    """Every class of PySide6 has its own __setattr__, and a few have their own __getattribute__."""
    cls.__setattr__ = _set
    if cls is QtCore.QObject:
        cls.__getattribute__, cls.__getattr__ = _get, _get_missing
    elif "__getattribute__" in cls.__dict__:
        native = cls.__getattribute__
        cls.__getattribute__ = lambda owner, name: _get(owner, name, native)


class _QtModule(types.ModuleType):
    """`qt`: classes are wrapped when they are first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in ("Signal", "Slot", "Property", "SIGNAL", "SLOT"):
            raise AttributeError(f"module 'qt' has no attribute '{name}' (that is PySide6's, not PythonQt's)")
        for module in MODULES:
            found = getattr(module, name, None)
            if found is not None:
                setattr(self, name, found)
                return found
        raise AttributeError(f"module 'qt' has no attribute '{name}'")


def install() -> Any:
    """Put `qt` and `PythonQt` into sys.modules, and teach every QObject their habits; returns `qt`.

    From here on this holds for all of PySide6 in the process, the host's own code included. There is no
    smaller way: what Qt makes by itself (`menu.addAction(…)`, `tree.header()`) must behave like the rest.
    """
    if "qt" in sys.modules:
        return sys.modules["qt"]
    for cls in _qobject_classes():
        _teach(cls)
    qt = _QtModule("qt", __doc__)
    sys.modules["qt"] = qt
    package = types.ModuleType("PythonQt")
    package.__path__ = []
    sys.modules["PythonQt"] = package
    for part in ("QtCore", "QtGui", "QtWidgets", "QtNetwork"):
        setattr(package, part, qt)
        sys.modules[f"PythonQt.{part}"] = qt
    return qt
