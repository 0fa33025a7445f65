"""Imperfect masks made from the truth, without running a segmenter.

They teach a policy to judge a mask: good ones to stop at, incomplete and spilled ones to correct, and masks of the
wrong structure, as after a wrong click. All masks are (H, W) bool.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

GOOD, BAD = 0.84, 0.72  # masks with an IoU in between are ambiguous and not used


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) smooth noise with zero mean and unit standard deviation; scale: in pixels."""
    coarse = rng.standard_normal((int(shape[0] / scale) + 3, int(shape[1] / scale) + 3))
    field = ndimage.zoom(coarse, (shape[0] / coarse.shape[0], shape[1] / coarse.shape[1]), order=1)[
        : shape[0], : shape[1]
    ]
    return (field - field.mean()) / (field.std() + 1e-6)


def good_mask(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The truth with a slightly irregular edge."""
    signed = ndimage.distance_transform_edt(truth) - ndimage.distance_transform_edt(~truth)
    size = np.sqrt(truth.sum() / np.pi)
    return (
        signed + smooth_noise(truth.shape, 14, rng) * size * rng.uniform(0.0, 0.06)
        > rng.normal(0, 0.03) * size
    )


def incomplete_mask(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of the truth: one side of an irregular line through it."""
    y, x = np.nonzero(truth)
    angle = rng.uniform(0, 2 * np.pi)
    along = (
        np.cos(angle) * np.arange(truth.shape[1])[None, :]
        + np.sin(angle) * np.arange(truth.shape[0])[:, None]
    )
    cut = np.quantile(along[y, x], rng.uniform(0.25, 0.75))
    return truth & (along + 4 * smooth_noise(truth.shape, 20, rng) < cut)


def spilled_mask(truth: np.ndarray, others: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The truth plus a neighbour or a blob at its edge."""
    near = [o for o in others if o.any() and (ndimage.binary_dilation(truth, iterations=6) & o).any()]
    if near and rng.random() < 0.7:
        return good_mask(truth, rng) | near[int(rng.integers(len(near)))]
    edge = np.argwhere(truth & ~ndimage.binary_erosion(truth))
    cy, cx = edge[int(rng.integers(len(edge)))]
    radius = np.sqrt(truth.sum() / np.pi) * rng.uniform(0.6, 1.3) + 4
    y, x = np.ogrid[: truth.shape[0], : truth.shape[1]]
    return good_mask(truth, rng) | ((y - cy) ** 2 + (x - cx) ** 2 < radius**2)


def wrong_mask(truth: np.ndarray, others: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Another structure, or a blob outside the truth."""
    elsewhere = [o & ~truth for o in others if (o & ~truth).sum() > 40]
    if elsewhere and rng.random() < 0.75:
        return elsewhere[int(rng.integers(len(elsewhere)))]
    cy, cx = rng.uniform(0.25, 0.75, 2) * truth.shape
    y, x = np.ogrid[: truth.shape[0], : truth.shape[1]]
    return ((y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(6, 22) ** 2) & ~truth


def half_way_mask(truth: np.ndarray, others: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """One of the above; about half are good enough to stop at."""
    kind = rng.random()
    if kind < 0.5:
        return good_mask(truth, rng)
    if kind < 0.7:
        return incomplete_mask(truth, rng)
    if kind < 0.85:
        return spilled_mask(truth, others, rng)
    return wrong_mask(truth, others, rng)
