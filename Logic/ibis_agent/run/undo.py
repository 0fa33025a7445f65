"""Undo and redo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ibis_agent.errors import InputError

MOST = 200
P = TypeVar("P")


class UndoHistory(Generic[P]):
    """The places before each change, at most MOST, and those that were undone."""

    def __init__(self, past: list[P] | None = None, future: list[P] | None = None) -> None:
        self.past, self.future = past or [], future or []

    def leave(self, place: P) -> None:
        """Note a change that started from `place`."""
        self.past = [*self.past, place][-MOST:]
        self.future = []

    def undo(self, here: P, go: Callable[[P], object]) -> None:
        """Go to the place before the last change. Raises InputError if there is none, and what `go` raises."""
        if not self.past:
            raise InputError("there is nothing to undo")
        go(self.past[-1])
        self.past.pop()
        self.future.append(here)

    def redo(self, here: P, go: Callable[[P], object]) -> None:
        """Redo what `undo` took back. Raises InputError if there is nothing, and what `go` raises."""
        if not self.future:
            raise InputError("there is nothing to redo")
        go(self.future[-1])
        self.future.pop()
        self.past.append(here)
