"""Where a volume run can come back to: what was known after its actions, within a stated limit of memory.

Moments share what did not change between them. Beyond the limit the oldest are let go; the run then does the
actions since the moment before again, which gives the same masks (see VolumeRun.go_to).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibis_agent.run.volume_actions import VolumeAction

LIMIT = 2**28


@dataclass(frozen=True, eq=False)
class Moment:
    """What there was after some actions.

    Attributes:
        actions: those actions.
        state: a propagation.State.
        bases: what the first click on a slice went on from, by slice.
    """

    actions: tuple[VolumeAction, ...]
    state: Any
    bases: Mapping[int, Any]


class History:
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

    def nearest(self, actions: Sequence[VolumeAction]) -> Moment:
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
        present = {id(each) for each in _parts(last)}
        parts = {id(each): each for moment in earlier for each in _parts(moment)}
        return sum(_bytes(each) for key, each in parts.items() if key not in present)


def _parts(moment: Moment) -> list[Any]:
    state = moment.state
    return [*state.anchors.values(), *state.tracked.values(), *(each.mask for each in state.found.values())]


def _bytes(part: Any) -> int:
    if not isinstance(part, dict):
        return int(part.nbytes)
    tensors = (each for each in part.values() if hasattr(each, "element_size"))
    return sum(each.numel() * each.element_size() for each in tensors)
