"""Which slices of a propagation are doubtful and deserve a second look, and why.

Measured in millimetres, so that thick and thin slices are judged alike. Masks and scores in, reasons out; no models.
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
    """Thresholds beyond which a slice is doubtful.

    Attributes:
        steeper: largest change of area between neighbouring slices, as a multiple of the change of a ball of equal
            size…
        least_change: … and smallest change that counts, as a fraction of the larger area.
        part: smallest component that counts, as a fraction of the area.
        low_score: masks with a lower score are doubtful.
        unsure: largest uncertainty of presence: 0 if presence is 0 or 1, and 1 if it is 0.5.
        least_weight: doubts with a lower weight are ignored.
        otherwise: masks with a lower Dice show different objects.
        support: by how much more Dice the neighbouring looks must agree with the look than with the propagated mask.
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
        reason: for people.
        weight: how doubtful, from 0.
        seen: the look made before propagation gave the better mask.
    """

    index: int
    reason: str
    weight: float
    seen: bool = False


def seen_otherwise(
    found: Mapping[int, Found], looks: Mapping[int, Found], limits: Thresholds | None = None
) -> list[Doubt]:
    """The slices where the propagated mask differs from an earlier look, the most doubtful first.

    looks: by slice, the masks of the search for the key slice. A look counts only if its score is high enough and
    the nearest looks or anchors on both sides agree with it better than with the propagated mask. If at least twice
    as many looks agree with the propagation as disagree, the list is empty.
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
            wanted.append(Doubt(index, "an earlier look saw it elsewhere", 3.0 + more, seen=True))
    return sorted(wanted, key=lambda doubt: (-doubt.weight, doubt.index))


def agreed(
    found: Mapping[int, Found], looks: Mapping[int, Found], limits: Thresholds | None = None
) -> list[int]:
    """The slices, in order, whose look agrees with the present mask and with a neighbouring look that does so too."""
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
    """Measures of one mask: area in mm², centre (row, column) in mm, number of components that count."""

    area: float
    centre: tuple[float, float]
    parts: int


def measure(mask: np.ndarray, row_mm: float, col_mm: float, part: float = 0.1) -> Measure:
    """Measure an (H, W) bool mask with pixels of row_mm × col_mm. part: see Thresholds."""
    pixels = int(np.count_nonzero(mask))
    if not pixels:
        return Measure(0.0, (0.0, 0.0), 0)
    from scipy import ndimage  # slow to import, and seldom needed

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
    """The doubtful propagated slices, the most doubtful first; one entry per slice.

    found: by slice. row_mm, col_mm: pixel size. gap_mm: distance between slices.
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
            # The ends of an organ are always uncertain, and their area is small.
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
            note(index, "a gap: no mask here, but masks on both sides", 2.5)
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
    # Among equals the nearest to an anchor first: a correction there also corrects the slices beyond it.
    far = {n: min(abs(n - anchor) for anchor in anchors) for n in reasons}
    return sorted(reasons.values(), key=lambda doubt: (-doubt.weight, far[doubt.index], doubt.index))
