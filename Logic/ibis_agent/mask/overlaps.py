"""Overlaps between several structures in one picture: which of them keeps a shared pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

MOST = 255  # the largest label in uint8


@dataclass
class Overlaps:
    """The overlaps so far.

    Attributes:
        shared: (number, number) of two structures, the smaller first → the number of voxels in both masks.
        kept: (number, number) → the number of these that the first one keeps.
    """

    shared: Counter[tuple[int, int]] = field(default_factory=Counter)
    kept: Counter[tuple[int, int]] = field(default_factory=Counter)

    def settle(self, masks: Mapping[int, np.ndarray], scores: Mapping[int, float]) -> np.ndarray:
        """(H, W) uint8 labels of one slice: 0, or the number of the structure at the pixel.

        If several structures contain it, the highest score wins and, for equal scores, the smallest number.

        Args:
            masks: by number from 1, (H, W) bool of the same shape; at least one.
            scores: of the masks in this slice.
        """
        labels = np.zeros(next(iter(masks.values())).shape, np.uint8)
        for number in sorted(masks, key=lambda n: (scores[n], -n)):
            labels[masks[number]] = number
        numbers = sorted(masks)
        for at, a in enumerate(numbers):
            for b in numbers[at + 1 :]:
                both = masks[a] & masks[b]
                if both.any():
                    self.shared[a, b] += int(both.sum())
                    for pair in ((a, b), (b, a)):
                        self.kept[pair] += int((labels[both] == pair[0]).sum())
        return labels

    def sentences(self, names: Mapping[int, str], what: str = "voxels") -> list[str]:
        """A sentence for each overlapping pair: the number of voxels, and which structure kept them."""
        told = []
        for (a, b), count in sorted(self.shared.items()):
            keeps = [
                f"{names[pair[0]]} keeps {self.kept[pair]}" for pair in ((a, b), (b, a)) if self.kept[pair]
            ]
            word = what if count != 1 else what.removesuffix("s")
            told.append(
                f"{names[a]} and {names[b]} overlapped in {count} {word}; by the higher score "
                f"{' and '.join(keeps) or 'a third structure keeps them'}."
            )
        return told
