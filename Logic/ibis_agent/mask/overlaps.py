"""Several structures in one picture: which of them keeps a pixel that more than one of them took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

MOST = 255  # labels that a file of bytes can hold


@dataclass
class Overlaps:
    """What was settled so far.

    Attributes:
        shared: (number, number) of two structures, the smaller first → the voxels that both had taken.
        kept: (number, number) → those of them that the first of the two keeps.
    """

    shared: Counter[tuple[int, int]] = field(default_factory=Counter)
    kept: Counter[tuple[int, int]] = field(default_factory=Counter)

    def settle(self, masks: Mapping[int, np.ndarray], scores: Mapping[int, float]) -> np.ndarray:
        """(H, W) uint8 labels of one slice: 0, or the number of the structure that has the pixel.

        Where several have it, the one with the highest score keeps it, and of equal scores the smallest number.

        Args:
            masks: by number from 1, (H, W) bool of one shape; at least one.
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
        """One for each two structures that overlapped: how many voxels, and who kept them."""
        told = []
        for (a, b), count in sorted(self.shared.items()):
            keeps = [
                f"{names[pair[0]]} keeps {self.kept[pair]}" for pair in ((a, b), (b, a)) if self.kept[pair]
            ]
            word = what if count != 1 else what.removesuffix("s")
            told.append(
                f"{names[a]} and {names[b]} overlapped in {count} {word}; by the higher score "
                f"{_and(keeps) or 'a third structure keeps them'}."
            )
        return told


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)
