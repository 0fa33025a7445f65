"""The outline of a mask as polygons along its pixel edges, with holes joined to their surroundings."""

from __future__ import annotations

import numpy as np

# Right, down, left, up, as (column, row); the inside is always on the right.
_WAYS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def contours_of(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons of a (H, W) mask: (N, 2) corners as (column, row), pixel centres at whole numbers.

    Filling them, counting pixels whose centre is inside, gives the mask again. A hole is joined to the surrounding
    polygon by a line in both directions (a keyhole), as DICOM requires for closed contours.
    """
    from scipy import ndimage

    found = []
    labels, count = ndimage.label(np.asarray(mask) != 0)  # pixels that touch only at corners are separate
    for part, box in enumerate(ndimage.find_objects(labels, count), 1):
        offset = np.array([box[1].start, box[0].start]) - 0.5
        loops = outlines_of(labels[box] == part)
        outer = max(loops, key=lambda loop: abs(_area(loop)))
        holes = sorted(
            (loop for loop in loops if loop is not outer), key=lambda loop: float(loop[:, 0].min())
        )
        for hole in holes:
            outer = _joined(outer, hole)
        found.append(outer + offset)
    return found


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """Closed paths along the pixel edges of a (H, W) bool mask, holes too: (N, 2) corners (column, row) from 0."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges: dict[tuple[int, int], set[int]] = {}
    sides = (
        (inside & ~padded[:-2, 1:-1], 0, (0, 0)),
        (inside & ~padded[1:-1, 2:], 1, (1, 0)),
        (inside & ~padded[2:, 1:-1], 2, (1, 1)),
        (inside & ~padded[1:-1, :-2], 3, (0, 1)),
    )
    for borders, way, (right, below) in sides:
        for row, col in np.argwhere(borders):
            edges.setdefault((int(col) + right, int(row) + below), set()).add(way)
    loops = []
    while edges:
        start = next(iter(edges))
        way = next(iter(edges[start]))
        at, corners = start, [start]
        while True:
            edges[at].discard(way)
            if not edges[at]:
                del edges[at]
            at = at[0] + _WAYS[way][0], at[1] + _WAYS[way][1]
            if at == start:
                break
            # Where two corners meet, turn right: pixels that only touch there stay separate.
            turn = next(each for each in (1, 0, 3) if (way + each) % 4 in edges[at])
            if turn:
                corners.append(at)
            way = (way + turn) % 4
        loops.append(np.array(corners, dtype=float))
    return loops


def _area(loop: np.ndarray) -> float:
    x, y = loop.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _joined(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    distances = ((outer[:, None] - hole[None]) ** 2).sum(axis=-1)
    a, b = np.unravel_index(int(distances.argmin()), distances.shape)
    around = np.concatenate([hole[b:], hole[: b + 1]])
    return np.concatenate([outer[: a + 1], around, outer[a:]])
