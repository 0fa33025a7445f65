"""Change the shapes of organs in a slice of a real patient: other contours, and new stomachs, spleens and bowel.

Works on the map of tissues before HU are assigned, so that a changed organ looks like the rest of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from training.phantoms.shapes import smooth

Numbers = dict[str, list[int]]
# How often each organ's contour is changed. The shape of kidneys varies less than that of soft organs.
CHANGED = {
    "stomach": 0.6,
    "spleen": 0.5,
    "liver": 0.5,
    "gallbladder": 0.4,
    "left kidney": 0.3,
    "right kidney": 0.3,
}
LEAST = 80  # pixels; smaller cross-sections are not changed
# Where stomachs are: ranges of (x, y) in half sizes of the body, x to the patient's left, y to the back.
FUNDUS, BODY, ANTRUM = (
    ((0.3, 0.55), (-0.1, 0.35)),
    ((0.15, 0.42), (-0.55, -0.2)),
    ((-0.12, 0.12), (-0.5, -0.2)),
)


def reshape(
    tissue: np.ndarray,
    numbers: Numbers,
    fat: int,
    soft: Sequence[int],
    contents: Sequence[int],
    mm: tuple[float, float],
    r: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """((S, S) uint8 tissues with organs of other shapes, (S, S) bool of the changed pixels).

    Args:
        numbers: organ → its tissue numbers.
        fat: number of the tissue that replaces an organ; soft: numbers of tissues that an organ may grow into.
        contents: numbers of gas and of contrast agent in bowel.
        mm: size of a pixel (row, column).
    """
    changed = tissue.copy()
    yielding = [fat, *soft, *numbers["bowel"], *numbers["pancreas"]]
    if r.uniform() < 0.3:
        _draw_bowel(changed, numbers, contents, [fat, *soft, *numbers["bowel"]], mm, r)
    if r.uniform() < 0.12:
        _enlarge_spleen(changed, numbers, [*yielding, *numbers["stomach"]], r)
    if r.uniform() < 0.5:
        _draw_stomach(changed, numbers, fat, yielding, mm, r)
    for name, chance in CHANGED.items():
        if r.uniform() < chance:
            _change_contour(changed, numbers[name], fat, yielding, mm, r)
    return changed, changed != tissue


def _change_contour(
    tissue: np.ndarray,
    organ: list[int],
    fat: int,
    yielding: list[int],
    mm: tuple[float, float],
    r: np.random.Generator,
) -> None:
    """Move the organ's edge by smooth noise; it grows into `yielding` tissues and leaves fat behind."""
    mask = np.isin(tissue, organ)
    if mask.sum() < LEAST:
        return
    width = float(r.uniform(3, 9))  # mm
    edge = ndimage.gaussian_filter(mask.astype(np.float32), (width / mm[0], width / mm[1]))
    waves = tissue.shape[0] * mm[0] / float(r.uniform(20, 70))
    edge += float(r.uniform(0.03, 0.16)) * smooth(r, max(2, round(waves)), len(tissue)) + float(
        r.normal(0, 0.1)
    )
    found = (edge > 0.5) & (mask | np.isin(tissue, yielding))
    if found.sum() < LEAST:
        return
    number = int(np.bincount(tissue[mask]).argmax())
    tissue[mask & ~found] = fat
    tissue[found & ~mask] = number


def _places(tissue: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """(y, x, half): (S, S) offsets from the body's middle in its half sizes, and those half sizes in pixels."""
    body = tissue != tissue[0, 0]
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    half = (rows[-1] - rows[0]) / 2 + 1, (columns[-1] - columns[0]) / 2 + 1
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]].astype(np.float32)
    return (y - (rows[0] + rows[-1]) / 2) / half[0], (x - (columns[0] + columns[-1]) / 2) / half[1], half


def _draw_bowel(
    tissue: np.ndarray,
    numbers: Numbers,
    contents: Sequence[int],
    yielding: list[int],
    mm: tuple[float, float],
    r: np.random.Generator,
) -> None:
    """Add loops of bowel in the anterior abdomen: collapsed, or with gas or contrast agent, sometimes with a level.

    One loop in six covers a part of the liver or spleen.
    """
    if not numbers["bowel"] or not (tissue != tissue[0, 0]).any():
        return
    y, x, half = _places(tissue)
    inner = x**2 + y**2 < 0.78**2
    organs = [*numbers["liver"], *numbers["spleen"]]
    for _ in range(int(r.integers(2, 10))):
        at = float(r.uniform(-0.7, 0.7)), float(r.uniform(-0.75, 0.25))
        size = float(np.exp(r.uniform(np.log(9), np.log(32))))  # mm
        angle, long = float(r.uniform(0, np.pi)), float(np.exp(r.uniform(0, 0.9)))
        dx, dy = (x - at[0]) * half[1] * mm[1], (y - at[1]) * half[0] * mm[0]
        a, b = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        waves = max(2, round(tissue.shape[0] * mm[0] / 30))
        loop = np.hypot(a / long, b) / size + 0.12 * smooth(r, waves, len(tissue)) < 1
        loop &= inner & np.isin(tissue, [*yielding, *organs] if r.uniform() < 0.16 else yielding)
        if loop.sum() < LEAST:
            continue
        tissue[loop] = int(r.choice(numbers["bowel"]))
        kind = r.uniform()
        if kind < 0.5:
            lumen = ndimage.binary_erosion(loop, iterations=int(r.integers(1, 4)))
            rows = np.flatnonzero(lumen.any(1))
            if len(rows) and r.uniform() < 0.4:
                lumen[int(r.uniform(rows[0], rows[-1])) :] = False
            tissue[lumen] = contents[0 if kind < 0.36 else 1]


def _enlarge_spleen(
    tissue: np.ndarray, numbers: Numbers, yielding: list[int], r: np.random.Generator
) -> None:
    """Add a large spleen in the left flank, within `yielding` tissues."""
    if not numbers["spleen"] or not np.isin(tissue, numbers["left kidney"] + numbers["spleen"]).any():
        return
    y, x, _ = _places(tissue)
    at = float(r.uniform(0.4, 0.62)), float(r.uniform(-0.15, 0.3))
    wide, high, tilt = float(r.uniform(0.14, 0.34)), float(r.uniform(0.3, 0.65)), float(r.normal(0, 0.3))
    dx, dy = x - at[0], y - at[1]
    a, b = dx * np.cos(tilt) + dy * np.sin(tilt), dy * np.cos(tilt) - dx * np.sin(tilt)
    shape = np.hypot(a / wide, b / high) + 0.1 * smooth(r, 5, len(tissue)) < 1
    found = shape & (x**2 + y**2 < 0.82**2) & np.isin(tissue, yielding)
    found = ndimage.binary_opening(found, iterations=2)
    if found.sum() >= 5 * LEAST:
        tissue[found] = numbers["spleen"][0]


def _draw_stomach(
    tissue: np.ndarray,
    numbers: Numbers,
    fat: int,
    yielding: list[int],
    mm: tuple[float, float],
    r: np.random.Generator,
) -> None:
    """Replace the stomach by a new one along fundus, body and antrum, within `yielding` tissues."""
    old = np.isin(tissue, numbers["stomach"])
    neighbours = np.isin(tissue, numbers["spleen"] + numbers["liver"])
    if neighbours.sum() < 5 * LEAST or not numbers["stomach"]:
        return
    y, x, half = _places(tissue)
    first = int(r.integers(0, 3))
    parts = (FUNDUS, BODY, ANTRUM)[first : first + int(r.integers(1, 4))]
    points = [(float(r.uniform(*across)), float(r.uniform(*down))) for across, down in parts]
    away = np.full(tissue.shape, np.inf, np.float32)
    for a, b in zip(points, points[1:] or points, strict=False):
        dx, dy = b[0] - a[0], b[1] - a[1]
        along = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
        at = np.hypot((x - a[0] - along * dx) * half[1] * mm[1], (y - a[1] - along * dy) * half[0] * mm[0])
        away = np.minimum(away, at)
    waves = tissue.shape[0] * mm[0] / float(r.uniform(30, 80))
    radius = float(np.exp(r.uniform(np.log(12), np.log(62))))  # mm
    shape = away / radius + 0.18 * smooth(r, max(2, round(waves)), len(tissue)) < 1
    inner = x**2 + y**2 < 0.8**2  # not in the wall of the trunk
    found = shape & inner & (old | np.isin(tissue, yielding))
    found = ndimage.binary_opening(found, iterations=2)
    if found.sum() < 2 * LEAST:
        return
    tissue[old] = fat
    tissue[found] = numbers["stomach"][0]
