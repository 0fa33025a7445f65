"""`slicer.parameterNodeWrapper`: typed members of a vtkMRMLScriptedModuleNode, bound to widgets both ways.

Not imitated: parameter packs, dictionaries, tuples, unions other than with None, colours and range widgets,
custom serializers; they are refused.
"""

from __future__ import annotations

import enum
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import slicer
from PySide6 import QtWidgets

from . import ctk_widgets
from .parameter_stores import NodeStore, store_for
from .refuse import NotSimulatedError


class Default:
    """Annotation: the value a member starts with."""

    def __init__(self, value: Any = None, *, generator: Callable[[], Any] | None = None) -> None:
        self._value, self._generator = value, generator

    @property
    def value(self) -> Any:
        return self._generator() if self._generator else self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Default) and (self._value, self._generator) == (
            other._value,
            other._generator,
        )

    __hash__ = None  # type: ignore[assignment]


class Validator:
    """Annotation: what a member accepts. `validate` raises ValueError."""

    def validate(self, value: Any) -> None:
        raise NotImplementedError


class WithinRange(Validator):
    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is outside {self.minimum}–{self.maximum}")


class Minimum(WithinRange):
    def __init__(self, minimum: float) -> None:
        super().__init__(minimum, float("inf"))


class Maximum(WithinRange):
    def __init__(self, maximum: float) -> None:
        super().__init__(float("-inf"), maximum)


class Choice(Validator):
    def __init__(self, choices: Iterable[Any]) -> None:
        self.choices = list(choices)

    def validate(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {self.choices}")


class _Member:
    """One typed member: where it is stored, what it accepts, what it starts with."""

    def __init__(self, cls: type, name: str, hint: Any) -> None:
        whole = hint
        annotations: tuple[Any, ...] = ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *rest = typing.get_args(hint)
            annotations = tuple(rest)
        self.name, self.hint, self.whole_hint = name, hint, whole
        self.store = store_for(hint)
        self.validators = [note for note in annotations if isinstance(note, Validator)]
        if name in cls.__dict__:
            self.default = Default(cls.__dict__[name])
        else:
            defaults = [note for note in annotations if isinstance(note, Default)]
            self.default = defaults[0] if defaults else Default(generator=self.store.default)

    def get(self, wrapper: Any) -> Any:
        if not self.store.present(wrapper.parameterNode, self.name):  # closing the scene empties the node
            self.store.write(wrapper.parameterNode, self.name, self.default.value)
        return self.store.read(wrapper.parameterNode, self.name)

    def set(self, wrapper: Any, value: Any) -> None:
        for validator in self.validators:
            validator.validate(value)
        with slicer.util.NodeModify(wrapper.parameterNode):
            self.store.write(wrapper.parameterNode, self.name, value)


def _is_plainly(widget: Any, cls: Any) -> bool:
    """Of this very class: Slicer does not bind subclasses of these."""
    return type(widget) is cls


class _Binding:
    """Keeps one widget and one member equal; refuses pairs of types that are not imitated."""

    def __init__(self, widget: Any, member: _Member) -> None:
        self.widget, self.member = widget, member
        kind = member.hint
        native = QtWidgets
        if isinstance(widget, slicer.qMRMLNodeComboBox) and isinstance(member.store, NodeStore):
            self.signal, self.read, self.write = (
                "currentNodeChanged",
                widget.currentNode,
                widget.setCurrentNode,
            )
        elif isinstance(widget, ctk_widgets.ctkPathLineEdit) and kind in (pathlib.Path, str):
            self.signal = "currentPathChanged"
            self.read = lambda: kind(widget.currentPath)
            self.write = lambda value: widget.setCurrentPath(str(value))
        elif isinstance(widget, native.QCheckBox) and kind is bool:
            self.signal, self.read, self.write = "stateChanged", widget.isChecked, widget.setChecked
        elif isinstance(widget, native.QPushButton) and kind is bool:
            self.signal, self.read, self.write = "toggled", widget.isChecked, widget.setChecked
        elif isinstance(widget, (native.QSpinBox, native.QSlider)) and kind is int:
            self.signal, self.read, self.write = "valueChanged", lambda: widget.value, widget.setValue
        elif isinstance(widget, (native.QDoubleSpinBox, ctk_widgets.ctkSliderWidget)) and kind in (
            int,
            float,
        ):
            self.signal, self.read, self.write = "valueChanged", lambda: kind(widget.value), widget.setValue
        elif isinstance(widget, native.QComboBox) and kind in (str, int, float):
            self.signal, self.read = "currentIndexChanged", lambda: kind(widget.currentText)
            self.write = lambda value: widget.setCurrentText(str(value))
        elif isinstance(widget, native.QComboBox) and isinstance(kind, type) and issubclass(kind, enum.Enum):
            if widget.count != len(kind):
                widget.clear()
                for item in kind:
                    widget.addItem(item.value)
            self.signal, self.read = "currentIndexChanged", lambda: list(kind)[widget.currentIndex]
            self.write = lambda value: widget.setCurrentIndex(list(kind).index(value))
        elif _is_plainly(widget, native.QLineEdit) and kind is str:
            self.signal, self.read, self.write = "textChanged", lambda: widget.text, widget.setText
        elif _is_plainly(widget, native.QTextEdit) and kind is str:
            self.signal, self.read, self.write = "textChanged", widget.toPlainText, widget.setPlainText
        elif _is_plainly(widget, native.QLabel) and kind is str:
            self.signal, self.read, self.write = "", lambda: widget.text, widget.setText
        else:
            raise NotSimulatedError(f"Binding {type(widget).__name__} to a member of type {kind}")

    def connect(self, changed: Callable[[], None]) -> None:
        self.changed = lambda *_: changed()
        if self.signal:
            getattr(self.widget, self.signal).connect(self.changed)

    def disconnect(self) -> None:
        if self.signal:
            getattr(self.widget, self.signal).disconnect(self.changed)


class _Wrapper:
    """What the decorator adds to a class."""

    allParameters: typing.ClassVar[dict[str, _Member]]

    def __init__(self, parameterNode: Any) -> None:
        self.parameterNode = parameterNode
        self._bindings: dict[int, tuple[list[_Binding], int]] = {}
        self._updating = False
        for name, member in self.allParameters.items():
            if not member.store.present(parameterNode, name):
                member.set(self, member.default.value)

    def default(self, name: str) -> Default:
        return self.allParameters[name].default

    @classmethod
    def dataType(cls, name: str) -> Any:
        return cls.allParameters[name].whole_hint

    def isCached(self, name: str) -> bool:
        """Slicer caches every type that is imitated here; the host reads the node each time."""
        return name in self.allParameters

    def getValue(self, name: str) -> Any:
        return self.allParameters[name].get(self)

    def setValue(self, name: str, value: Any) -> None:
        self.allParameters[name].set(self, value)

    def connectGui(self, gui: Any) -> int:
        widgets = (
            gui.findChildren(QtWidgets.QWidget) if hasattr(gui, "isWidgetType") else gui.__dict__.values()
        )
        found = {}
        for widget in widgets:
            name = widget.property("SlicerParameterName")
            if name:
                found[name] = widget
        return self.connectParametersToGui(found)

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        for name in mapping:
            if name not in self.allParameters:
                raise ValueError(f"No parameter '{name}'; there are {', '.join(self.allParameters)}")
        bindings = [_Binding(widget, self.allParameters[name]) for name, widget in mapping.items()]
        for binding in bindings:
            binding.write(binding.member.get(self))
            binding.connect(partial(self._from_widget, binding))
        tag = self.parameterNode.AddObserver("ModifiedEvent", lambda *_: self._to_widgets(bindings))
        key = len(self._bindings)
        self._bindings[key] = (bindings, tag)
        return key

    def disconnectGui(self, key: int) -> None:
        if key in self._bindings:
            bindings, tag = self._bindings.pop(key)
            for binding in bindings:
                binding.disconnect()
            self.parameterNode.RemoveObserver(tag)

    def _from_widget(self, binding: _Binding) -> None:
        if not self._updating:
            binding.member.set(self, binding.read())

    def _to_widgets(self, bindings: list[_Binding]) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            for binding in bindings:
                binding.write(binding.member.get(self))
        finally:
            self._updating = False

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, before: Any) -> Any:
        return self.parameterNode.EndModify(before)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def parameterNodeWrapper(cls: Any = None) -> Any:
    """The class decorator, with or without brackets."""
    if cls is None:
        return parameterNodeWrapper
    members = {
        name: _Member(cls, name, hint)
        for name, hint in typing.get_type_hints(cls, include_extras=True).items()
    }
    for name, member in members.items():
        setattr(cls, name, property(member.get, member.set))
    cls.allParameters = members
    for name, thing in vars(_Wrapper).items():
        if (callable(thing) or isinstance(thing, classmethod)) and (
            name == "__init__" or not name.startswith("__")
        ):
            setattr(cls, name, thing)
    return cls


def install() -> None:
    """`slicer.parameterNodeWrapper` as a module."""
    module = types.ModuleType("slicer.parameterNodeWrapper", __doc__)
    for thing in (parameterNodeWrapper, Default, Validator, WithinRange, Minimum, Maximum, Choice):
        setattr(module, thing.__name__, thing)
    module.__all__ = [  # type: ignore[attr-defined]
        name for name in vars(module) if not name.startswith("_")
    ]
    sys.modules[module.__name__] = module
    slicer.parameterNodeWrapper = module
