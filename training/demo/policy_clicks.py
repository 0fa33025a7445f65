"""Target clicks of the demo policy: the deepest point of a region, and the worth of other points."""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Click
from scipy import ndimage

from training.common.questions import zone
from training.demo.dataset import SIDE

STEPS = 100  # the policy writes two decimals
_ZONES = np.array([[zone(x / STEPS, y / STEPS) for y in range(STEPS)] for x in range(STEPS)])
_PIXEL = np.arange(STEPS) * SIDE // STEPS


def depth_of(region: np.ndarray, aspect: float) -> np.ndarray:
    """(SIDE, SIDE) float32: distance of each pixel to the edge of the (SIDE, SIDE) bool region, 0 outside.

    In pixels of the picture's height; `aspect` is its width / height before resizing.
    """
    depth = np.zeros(region.shape, np.float32)
    ys, xs = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    part = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    padded = ndimage.distance_transform_edt(np.pad(region[part], 1), sampling=(1.0, aspect))
    depth[part] = padded[1:-1, 1:-1]
    return depth


def deepest(depth: np.ndarray) -> tuple[float, float]:
    """The deepest point as (x, y), 0 to 1."""
    r, c = np.unravel_index(int(depth.argmax()), depth.shape)
    return (c + 0.5) / SIDE, (r + 0.5) / SIDE


def correction(mask: np.ndarray, truth: np.ndarray, aspect: float) -> tuple[bool, np.ndarray]:
    """(whether to click positive, the region to click in): the deeper of false negatives and false positives."""
    missed, wrong = truth & ~mask, mask & ~truth

    def depth(region: np.ndarray) -> float:
        return float(depth_of(region, aspect).max()) if region.any() else 0.0

    positive = depth(missed) >= depth(wrong)
    return positive, missed if positive else wrong


def another(region: np.ndarray, taken: Click, aspect: float) -> np.ndarray | None:
    """The part of `region` away from the click `taken`; None if it is too small."""
    y, x = np.ogrid[:SIDE, :SIDE]
    away = (((x + 0.5) / SIDE - taken.x) * aspect) ** 2 + ((y + 0.5) / SIDE - taken.y) ** 2
    left = region & (away > 0.16 * region.sum() / np.pi / SIDE**2 * aspect + 0.02**2)
    return left if left.sum() >= 12 else None


def worth(depth: np.ndarray, click: Click) -> np.ndarray:
    """(STEPS, STEPS) float32 [x, y]: the worth, 0 to 1, of a click at each point with two decimals.

    It grows with the square of the depth. It is 0 outside the region, and in other zones than the click's, because
    the reply has already named the zone.
    """
    depth = depth[np.ix_(_PIXEL, _PIXEL)].T
    depth = np.where(zone(click.x, click.y) == _ZONES, depth, 0)
    x, y = round(click.x * STEPS), round(click.y * STEPS)
    if x < STEPS and y < STEPS:  # the rounded click may miss a thin region
        depth[x, y] = max(depth[x, y], depth.max(), 1e-3)
    return (depth / depth.max()) ** 2


def digit_worth(worth: np.ndarray, x: int, y: int) -> np.ndarray:
    """(4, 10): the greatest worth that each digit can lead to, while a click (x, y) in hundredths is written.

    Rows: the two digits of x, then the two of y, each given the digits before it.
    """
    tens = worth.reshape(10, 10, STEPS)
    column = worth[x].reshape(10, 10)
    rows = tens.max((1, 2)), tens[x // 10].max(1), column.max(1), column[y // 10]
    return np.stack([row / max(row.max(), 1e-6) for row in rows])


def good_click(depth: np.ndarray, positive: bool, rng: np.random.Generator) -> tuple[Click, np.ndarray]:
    """A target click and the worth of others: mostly the deepest point, else another good one in its zone."""
    click = Click(*deepest(depth), positive)
    value = worth(depth, click)
    if rng.random() < 0.3:
        odds = np.where(value > 0.4, value, 0).ravel()
        x, y = np.divmod(int(rng.choice(len(odds), p=odds / odds.sum())), STEPS)
        click = Click(x / STEPS, y / STEPS, positive)
    return click, value
