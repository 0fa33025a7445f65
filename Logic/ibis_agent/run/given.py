"""Masks that a run is given before its first action: one to begin from, and where its own must never go."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ibis_agent.mask.masks import area
from ibis_agent.mask.packed import PackedMasks

Masks = Mapping[int, np.ndarray]
"""Slice → (H, W) bool, of the slices where it is not empty."""


@dataclass(frozen=True, eq=False)
class Given:
    """A start and an exclusion; the start has no pixel of the exclusion.

    Attributes:
        start: the mask to begin from.
        excluded: where masks of this run never are.
        start_name, excluded_name: for people: the file and the label; empty where there is none.
    """

    start: Masks = field(default_factory=dict)
    excluded: Masks = field(default_factory=dict)
    start_name: str = ""
    excluded_name: str = ""

    @functools.cached_property
    def key(self) -> int | None:
        """The slice where the start is largest, of equals the first; None without a start."""
        return max(sorted(self.start), key=lambda index: area(self.start[index]), default=None)

    def without_excluded(self, index: int, mask: np.ndarray) -> np.ndarray:
        """An (H, W) mask of a slice without what is excluded there."""
        out = self.excluded.get(index)
        return mask if out is None else mask & ~out

    def filled(self) -> Masks:
        """The start with the empty slices that lie inside of it, so that a gap can be seen as one."""
        if not self.start:
            return self.start
        nothing = np.zeros_like(next(iter(self.start.values())))
        inside = range(min(self.start), max(self.start) + 1)
        return PackedMasks((n, self.start.get(n, nothing)) for n in inside)


def given(
    start: Masks | None = None, excluded: Masks | None = None, start_name: str = "", excluded_name: str = ""
) -> Given:
    """A Given of any (H, W) masks: empty slices are left out, and the start loses what is excluded."""
    out = PackedMasks((n, mask) for n, mask in (excluded or {}).items() if mask.any())
    kept = ((n, mask & ~out[n] if n in out else mask) for n, mask in (start or {}).items())
    return Given(PackedMasks((n, mask) for n, mask in kept if mask.any()), out, start_name, excluded_name)
