"""The search for the key slice of a volume: looks spread over the stack, then ever closer to the best one.

A look is the first step of an episode on a slice. It is rated by the segmenter's score of its mask, plus a share of
the scores of the neighbouring looks: an object continues in neighbouring slices, a mistake seldom does. The area only
decides between equals, because a wrong mask of a small organ is often large. No models here: the caller takes looks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ibis_agent.actions import Prompt, Terminate
from ibis_agent.run.episode import Step

_NEIGHBOURS_COUNT = 0.5


@dataclass(frozen=True, eq=False)
class Look:
    """The policy's look at one slice.

    Attributes:
        index: the slice.
        step: its first step there; None if the reply could not be parsed.
        area_mm2: the area of the step's mask.
    """

    index: int
    step: Step | None
    area_mm2: float = 0.0

    @property
    def seen(self) -> bool:
        """Whether the policy made a positive prompt and its mask is not empty."""
        if self.step is None or not isinstance(self.step.action, Prompt):
            return False
        return self.step.action.positive and self.area_mm2 > 0

    @property
    def worth(self) -> float:
        """The mask's score, 0 to 1; 0 if nothing was seen."""
        return max(0.0, self.step.score or 0.0) if self.seen and self.step is not None else 0.0

    @property
    def words(self) -> str:
        """A description for people."""
        if self.step is None:
            return "the reply could not be read"
        if self.seen:
            return f"seen, {self.area_mm2:.0f} mm², score {self.step.score or 0:.2f}"
        if isinstance(self.step.action, Terminate):
            return "not seen"
        return "a click without a mask"


@dataclass(frozen=True)
class Search:
    """Settings of the search.

    Attributes:
        apart_mm: largest distance between the spread-out looks, in mm…
        fewest, most: … within these numbers of looks, if there are enough slices.
        rounds: rounds of narrowing, with up to two looks each.
    """

    apart_mm: float = 24.0
    fewest: int = 5
    most: int = 10
    rounds: int = 2


def spread_out(first: int, last: int, gap_mm: float, search: Search) -> list[int]:
    """The slices of the first round, from the middle outwards: the most likely ones first."""
    slices = last - first + 1
    wanted = math.ceil(slices * gap_mm / search.apart_mm)
    count = min(slices, max(search.fewest, min(search.most, wanted)))
    places = first + np.floor((np.arange(count) + 0.5) * slices / count).astype(int)
    middle = (first + last) / 2
    return sorted((int(n) for n in np.unique(places)), key=lambda n: (abs(n - middle), n))


def search_slices(
    first: int, last: int, gap_mm: float, look: Callable[[int], Look], search: Search | None = None
) -> Iterator[Look]:
    """Look at slices from `first` to `last`, one at a time; `best` of the looks is the key slice.

    First all spread-out slices, so that a single mistake is outvoted. If nothing was seen, once more halfway between
    them; otherwise `rounds` times on both sides of the best slice, halving the distance each time.
    """
    search = search or Search()
    looks: dict[int, Look] = {}

    def at(index: int) -> Iterator[Look]:
        if first <= index <= last and index not in looks:
            looks[index] = look(index)
            yield looks[index]

    for index in spread_out(first, last, gap_mm, search):
        yield from at(index)
    if not any(each.seen for each in looks.values()):
        places = sorted(looks)
        for left, right in itertools.pairwise(places):
            yield from at((left + right) // 2)
    distance = max(1, round((last - first + 1) / max(1, len(looks))))
    for _ in range(search.rounds):
        distance //= 2
        key = best(looks)
        if key is None or distance < 1:
            return
        yield from at(key.index - distance)
        yield from at(key.index + distance)


def best(looks: Mapping[int, Look]) -> Look | None:
    """The look to start from: the highest score with its neighbours' share, among equals the largest area.

    None if nothing was seen.
    """
    places = sorted(looks)
    support = {}
    for n, index in enumerate(places):
        beside = [looks[places[m]].worth for m in (n - 1, n + 1) if 0 <= m < len(places)]
        support[index] = looks[index].worth + _NEIGHBOURS_COUNT * sum(beside)
    seen = [index for index in places if looks[index].seen]
    if not seen:
        return None
    return looks[max(seen, key=lambda index: (round(support[index], 2), looks[index].area_mm2, -index))]
