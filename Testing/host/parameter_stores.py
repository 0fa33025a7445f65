"""How a parameter node keeps one typed member: what `parameter_node` builds on.

Text under the member's name, enums by name, booleans as True/False, lists as `name.len` and `name.0` …,
nodes as node references: as Slicer's serializers write them.
"""

from __future__ import annotations

import enum
import pathlib
import types
import typing
from collections.abc import Iterable, MutableSequence
from typing import Any

import slicer

from .refuse import NotSimulatedError


class TextStore:
    """str, int, float, bool, Path and enums: one text parameter."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def default(self) -> Any:
        if issubclass(self.kind, enum.Enum):
            return next(iter(self.kind))
        return self.kind()

    def present(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        if value is None:
            raise ValueError(f"'{name}' must not be None")
        accepted = (int, float) if self.kind is float else (self.kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            raise TypeError(f"'{name}' takes {self.kind.__name__}, not {value!r}")
        node.SetParameter(name, value.name if isinstance(value, enum.Enum) else str(value))

    def read(self, node: Any, name: str) -> Any:
        text = node.GetParameter(name)
        if self.kind is bool:
            return text == "True"
        if issubclass(self.kind, enum.Enum):
            return self.kind[text]
        return self.kind(text)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)


class NodeStore:
    """A node reference; the empty text parameter of the same name says that it was set."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def default(self) -> None:
        return None

    def present(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"'{name}' takes {self.kind.__name__}, not {value!r}")
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class ListStore:
    """list[…]: its length and its elements."""

    def __init__(self, element: Any) -> None:
        self.element = element

    def default(self) -> list[Any]:
        return []

    def present(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(f"{name}.len"))

    def write(self, node: Any, name: str, values: Any) -> None:
        old = list(self.read(node, name)) if self.present(node, name) else []
        with slicer.util.NodeModify(node):
            try:
                for index, value in enumerate(values):
                    self.element.write(node, f"{name}.{index}", value)
            except (TypeError, ValueError):
                for index, value in enumerate(old):
                    self.element.write(node, f"{name}.{index}", value)
                raise
            node.SetParameter(f"{name}.len", str(len(values)))
            for index in range(len(values), len(old)):
                self.element.remove(node, f"{name}.{index}")

    def read(self, node: Any, name: str) -> ObservedList:
        count = int(node.GetParameter(f"{name}.len"))
        return ObservedList(node, name, self, [self.element.read(node, f"{name}.{i}") for i in range(count)])

    def remove(self, node: Any, name: str) -> None:
        self.write(node, name, [])
        node.UnsetParameter(f"{name}.len")


class ObservedList(MutableSequence[Any]):
    """A list member: changing it in place changes the parameter node."""

    def __init__(self, node: Any, name: str, store: ListStore, values: list[Any]) -> None:
        self._node, self._name, self._store, self._values = node, name, store, values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __eq__(self, other: object) -> bool:
        return self._values == (other._values if isinstance(other, ObservedList) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ObservedList({self._values})"

    def _save(self) -> None:
        try:
            self._store.write(self._node, self._name, self._values)
        finally:
            self._values = self._store.read(self._node, self._name)._values

    def __setitem__(self, index: Any, value: Any) -> None:
        self._values[index] = value
        self._save()

    def __delitem__(self, index: Any) -> None:
        del self._values[index]
        self._save()

    def insert(self, index: int, value: Any) -> None:
        self._values.insert(index, value)
        self._save()

    # One event per call, however many elements it changes.

    def extend(self, values: Iterable[Any]) -> None:
        self._values.extend(values)
        self._save()

    def __iadd__(self, values: Iterable[Any]) -> ObservedList:
        self.extend(values)
        return self

    def clear(self) -> None:
        self._values.clear()
        self._save()

    def reverse(self) -> None:
        self._values.reverse()
        self._save()

    def sort(self, **options: Any) -> None:
        self._values.sort(**options)
        self._save()


def store_for(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, getattr(types, "UnionType", None)):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], slicer.vtkMRMLNode):
            return NodeStore(kinds[0])
    elif typing.get_origin(hint) is list:
        return ListStore(store_for(typing.get_args(hint)[0]))
    elif isinstance(hint, type):
        if issubclass(hint, slicer.vtkMRMLNode):
            return NodeStore(hint)
        if hint in (str, int, float, bool, pathlib.Path) or issubclass(hint, enum.Enum):
            return TextStore(hint)
    raise NotSimulatedError(f"A parameter node member of type {hint}")
