"""The masks given to a run: a starting mask, and an exclusion that its own masks never enter."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ibis_agent.mask.masks import area
from ibis_agent.mask.packed import PackedMasks

Masks = Mapping[int, np.ndarray]
"""Slice index → (H, W) bool mask, for slices with a non-empty mask."""


@dataclass(frozen=True, eq=False)
class Given:
    """A starting mask and an exclusion, which do not overlap.

    Attributes:
        start: the mask to start from.
        excluded: where masks of this run are always empty.
        start_name, excluded_name: file and label, for people; empty if there is no mask.
    """

    start: Masks = field(default_factory=dict)
    excluded: Masks = field(default_factory=dict)
    start_name: str = ""
    excluded_name: str = ""

    @functools.cached_property
    def key(self) -> int | None:
        """The slice with the largest starting mask, the first of equals; None without one."""
        return max(sorted(self.start), key=lambda index: area(self.start[index]), default=None)

    def without_excluded(self, index: int, mask: np.ndarray) -> np.ndarray:
        """An (H, W) bool mask of a slice, minus the exclusion."""
        out = self.excluded.get(index)
        return mask if out is None else mask & ~out

    def filled(self) -> Masks:
        """The starting mask with empty masks for the slices between its own, so that gaps are found."""
        if not self.start:
            return self.start
        nothing = np.zeros_like(next(iter(self.start.values())))
        inside = range(min(self.start), max(self.start) + 1)
        return PackedMasks((n, self.start.get(n, nothing)) for n in inside)


def given(
    start: Masks | None = None, excluded: Masks | None = None, start_name: str = "", excluded_name: str = ""
) -> Given:
    """A Given from (H, W) bool masks: empty slices are dropped, and the exclusion is removed from the start."""
    out = PackedMasks((n, mask) for n, mask in (excluded or {}).items() if mask.any())
    kept = ((n, mask & ~out[n] if n in out else mask) for n, mask in (start or {}).items())
    return Given(PackedMasks((n, mask) for n, mask in kept if mask.any()), out, start_name, excluded_name)
