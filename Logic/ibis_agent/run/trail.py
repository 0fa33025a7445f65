"""Undo and redo: the places that something can go back to, and forward again to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ibis_agent.errors import InputError

MOST = 200
P = TypeVar("P")


class Trail(Generic[P]):
    """Where somebody stood before each change."""

    def __init__(self, past: list[P] | None = None, future: list[P] | None = None) -> None:
        self.past, self.future = past or [], future or []

    def leave(self, place: P) -> None:
        """A change was made; it began at `place`."""
        self.past = [*self.past, place][-MOST:]
        self.future = []

    def undo(self, here: P, go: Callable[[P], object]) -> None:
        """Go to before the last change. Raises InputError where there is none, and what `go` raises."""
        if not self.past:
            raise InputError("there is nothing to undo")
        go(self.past[-1])
        self.past.pop()
        self.future.append(here)

    def redo(self, here: P, go: Callable[[P], object]) -> None:
        """Do again what `undo` took back. Raises InputError where there is nothing, and what `go` raises."""
        if not self.future:
            raise InputError("there is nothing to redo")
        go(self.future[-1])
        self.future.pop()
        self.past.append(here)
