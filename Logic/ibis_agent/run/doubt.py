"""Where a propagation is doubtful: the slices that deserve a second look, and why.

Measured in millimetres, so that thick and thin slices are judged alike. No models here: masks and scores in,
reasons out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ibis_agent.mask.masks import dice
from ibis_agent.segmenter.contract import Found


@dataclass(frozen=True)
class Thresholds:
    """From where on a slice is doubtful.

    Attributes:
        steeper: a mask changes its area from slice to slice at most as a ball of its own size does, times this…
        least_change: … and only changes of this share of the larger area count at all.
        part: of the area, from which on a piece counts as a part of its own.
        low_score: a mask of less is doubtful.
        unsure: how near the presence must be to 0 or 1.
        least_weight: less is not worth a look.
        otherwise: Dice; masks that overlap less are of different things.
        support: by so much more Dice the looks beside must agree with what was seen than with what grew.
    """

    steeper: float = 1.8
    least_change: float = 0.35
    part: float = 0.1
    low_score: float = 0.6
    unsure: float = 0.35
    least_weight: float = 0.3
    otherwise: float = 0.5
    support: float = 0.15


@dataclass(frozen=True)
class Doubt:
    """One slice to look at again.

    Attributes:
        index: the slice.
        reason: in words, for people.
        weight: how doubtful, from 0.
        seen: what was seen there before anything grew is the better mask.
    """

    index: int
    reason: str
    weight: float
    seen: bool = False


def seen_otherwise(
    found: Mapping[int, Found], looks: Mapping[int, Found], limits: Thresholds | None = None
) -> list[Doubt]:
    """The slices whose mask grew to something else than was seen there, the most doubtful first.

    looks: by slice, what single slices gave before anything grew. One of low score, or that no other look or anchor
    agrees with, is not believed: the nearest on each side are asked. Where at least two looks saw what
    grew for each that saw something else, none is: they agree with each other on where the object is.
    """
    limits = limits or Thresholds()
    known = {n: each.mask for n, each in looks.items() if each.mask.any()}
    known |= {n: each.mask for n, each in found.items() if each.anchor and each.mask.any()}
    believed = {
        n: dice(look.mask, found[n].mask)
        for n, look in looks.items()
        if n in found and not found[n].anchor and look.mask.any() and look.score >= limits.low_score
    }
    as_grown = sum(each >= limits.otherwise for each in believed.values())
    wanted: list[Doubt] = []
    if as_grown >= 2 * (len(believed) - as_grown):
        return wanted
    for index, likeness in believed.items():
        seen, grown = looks[index].mask, found[index].mask
        beside = [max((n for n in known if n < index), default=None)]
        beside += [min((n for n in known if n > index), default=None)]
        masks = [known[n] for n in beside if n is not None]
        if not masks or likeness >= limits.otherwise:
            continue
        more = float(np.mean([dice(seen, each) - dice(grown, each) for each in masks]))
        if more > limits.support:
            wanted.append(Doubt(index, "it was seen elsewhere earlier", 3.0 + more, seen=True))
    return sorted(wanted, key=lambda doubt: (-doubt.weight, doubt.index))


def agreed(
    found: Mapping[int, Found], looks: Mapping[int, Found], limits: Thresholds | None = None
) -> list[int]:
    """The slices, in order, whose look agrees with what stands there and with the nearest such look on one side."""
    limits = limits or Thresholds()
    alike = [
        n
        for n, look in sorted(looks.items())
        if n in found and look.mask.any() and dice(look.mask, found[n].mask) >= limits.otherwise
    ]
    pairs = [
        (a, b) for a, b in itertools.pairwise(alike) if dice(looks[a].mask, looks[b].mask) >= limits.otherwise
    ]
    return sorted({n for pair in pairs for n in pair})


@dataclass(frozen=True)
class Measure:
    """What is measured of one mask: area in mm², centre (row, column) in mm, parts that count."""

    area: float
    centre: tuple[float, float]
    parts: int


def measure(mask: np.ndarray, row_mm: float, col_mm: float, part: float = 0.1) -> Measure:
    """Of a (H, W) bool mask with pixels of row_mm × col_mm. part: see Thresholds."""
    pixels = int(np.count_nonzero(mask))
    if not pixels:
        return Measure(0.0, (0.0, 0.0), 0)
    from scipy import ndimage  # slow to import, and most who import this module measure nothing

    rows, columns = np.nonzero(mask)
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())[1:] if count else np.zeros(0)
    parts = int(np.count_nonzero(sizes >= part * pixels))
    centre = float(rows.mean()) * row_mm, float(columns.mean()) * col_mm
    return Measure(pixels * row_mm * col_mm, centre, parts)


def doubts(
    found: Mapping[int, Found],
    row_mm: float,
    col_mm: float,
    gap_mm: float,
    limits: Thresholds | None = None,
) -> list[Doubt]:
    """The doubtful slices among those found from memory, the most doubtful first; one entry a slice.

    found: by slice. gap_mm: from slice to slice.
    """
    limits = limits or Thresholds()
    known = {n: measure(each.mask, row_mm, col_mm, limits.part) for n, each in found.items()}
    shown = [n for n, each in known.items() if each.area]
    anchors = [n for n, each in found.items() if each.anchor]
    if not shown or not anchors:
        return []
    reasons: dict[int, Doubt] = {}

    def note(index: int, reason: str, weight: float) -> None:
        known_better = index in reasons and reasons[index].weight >= weight
        if not found[index].anchor and weight >= limits.least_weight and not known_better:
            reasons[index] = Doubt(index, reason, weight)

    largest = max(each.area for each in known.values())
    steepest = limits.steeper * 2 * math.pi * math.sqrt(largest / math.pi) * gap_mm
    for index in sorted(found):
        each, here = found[index], known[index]
        unsure = 1 - abs(2 * each.presence - 1)
        if unsure > limits.unsure and min(shown) - 1 <= index <= max(shown) + 1:
            # An organ's tips are always unsure, and little hangs on them.
            weight = (0.5 + unsure) * here.area / largest
            note(index, f"uncertain whether it is there ({each.presence:.0%})", weight)
        if here.area and each.score < limits.low_score:
            note(index, f"a mask with a low score ({each.score:.2f})", 1 - each.score)
        nearest = min(anchors, key=lambda n: abs(n - index))
        if nearest == index:
            continue
        towards = index + (1 if nearest > index else -1)
        if towards not in known:
            continue
        before = known[towards]
        if not here.area and min(shown) < index < max(shown):
            note(index, "a gap: nothing here, but there is on both sides", 2.5)
        change = abs(here.area - before.area)
        if change > steepest and change > limits.least_change * max(here.area, before.area):
            words = f"the area jumps from {before.area:.0f} to {here.area:.0f} mm²"
            note(index, words, min(2.0, change / steepest - 0.5))
        if here.area and before.area:
            moved = math.dist(here.centre, before.centre)
            radius = math.sqrt(min(here.area, before.area) / math.pi)
            if moved > max(2 * gap_mm, 0.6 * radius):
                note(index, f"it moves by {moved:.0f} mm", min(2.0, moved / max(gap_mm, radius)))
            if here.parts > max(1, before.parts):
                note(index, f"it splits into {here.parts} parts", 0.6)
    # Of equal ones the nearest to an anchor: what is mended there mends what lies behind it.
    far = {n: min(abs(n - anchor) for anchor in anchors) for n in reasons}
    return sorted(reasons.values(), key=lambda doubt: (-doubt.weight, far[doubt.index], doubt.index))
