"""A signal in plain Python: custom `qt.Signal`s are not safe in PythonQt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


class Signal:
    """Calls everything connected to it, in order. A listener that raises is logged and does not stop the
    others.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[..., None]] = []

    def connect(self, listener: Callable[..., None]) -> None:
        self._listeners.append(listener)

    def __contains__(self, listener: object) -> bool:
        return listener in self._listeners

    def disconnect(self, listener: Callable[..., None]) -> None:
        self._listeners = [each for each in self._listeners if each != listener]

    def disconnectAll(self) -> None:
        self._listeners.clear()

    def emit(self, *arguments: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(*arguments)
            except Exception:
                logging.exception("IBISSlicer: a listener failed")
