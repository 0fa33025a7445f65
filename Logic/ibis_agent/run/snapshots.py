"""Snapshots of a run's state for going back, within a limit of memory.

Snapshots share what did not change between them. Beyond the limit the oldest are dropped; the run then repeats the
actions since the previous snapshot, which gives the same masks (see RunState.go_to).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibis_agent.run.action import RunAction

LIMIT = 2**28


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state after some actions.

    Attributes:
        actions: those actions.
        state: a contract.FollowerState, or a single_slice.Known.
        bases: by slice, the prediction that its first prompt refined.
    """

    actions: tuple[RunAction, ...]
    state: Any
    bases: Mapping[int, Any]


class Snapshots:
    """The kept snapshots; the first, of the empty run, always stays."""

    def __init__(self, start: Snapshot, limit: int = LIMIT) -> None:
        """limit: bytes for everything but the latest snapshot."""
        self._kept, self._limit = [start], limit

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, snapshot: Snapshot) -> None:
        self._kept.append(snapshot)
        while len(self._kept) > 2 and self.held > self._limit:
            del self._kept[1]

    def nearest(self, actions: Sequence[RunAction]) -> Snapshot:
        """The kept snapshot whose actions are the longest prefix of `actions`."""
        fitting = (
            each
            for each in self._kept
            if len(each.actions) <= len(actions)
            and all(one is other for one, other in zip(each.actions, actions, strict=False))
        )
        return max(fitting, key=lambda each: len(each.actions))

    @property
    def held(self) -> int:
        """Bytes that only earlier snapshots keep alive."""
        *earlier, last = self._kept
        present = last.state.pieces()
        pieces = {key: size for each in earlier for key, size in each.state.pieces().items()}
        return sum(size for key, size in pieces.items() if key not in present)
