"""Where a run can come back to: what was known after its actions, within a stated limit of memory.

Moments share what did not change between them. Beyond the limit the oldest are let go; the run then does the
actions since the moment before again, which gives the same masks (see RunState.go_to).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibis_agent.run.action import RunAction

LIMIT = 2**28


@dataclass(frozen=True, eq=False)
class Moment:
    """What there was after some actions.

    Attributes:
        actions: those actions.
        state: a contract.FollowerState, or that of a slice alone.
        bases: what the first click on a slice went on from, by slice.
    """

    actions: tuple[RunAction, ...]
    state: Any
    bases: Mapping[int, Any]


class Moments:
    """Keeps moments; the first one, with nothing in it, always stays."""

    def __init__(self, start: Moment, limit: int = LIMIT) -> None:
        """limit: bytes that are kept alive for moments that are not the present."""
        self._moments, self._limit = [start], limit

    def __len__(self) -> int:
        return len(self._moments)

    def keep(self, moment: Moment) -> None:
        self._moments.append(moment)
        while len(self._moments) > 2 and self.held > self._limit:
            del self._moments[1]

    def nearest(self, actions: Sequence[RunAction]) -> Moment:
        """The kept moment after the longest beginning of `actions`."""
        fitting = (
            each
            for each in self._moments
            if len(each.actions) <= len(actions)
            and all(one is other for one, other in zip(each.actions, actions, strict=False))
        )
        return max(fitting, key=lambda each: len(each.actions))

    @property
    def held(self) -> int:
        """Bytes that only earlier moments keep alive."""
        *earlier, last = self._moments
        present = last.state.pieces()
        pieces = {key: size for moment in earlier for key, size in moment.state.pieces().items()}
        return sum(size for key, size in pieces.items() if key not in present)
