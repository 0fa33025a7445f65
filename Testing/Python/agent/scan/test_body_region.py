"""Heads and legs are told from the trunk by their bones, at any pixel size; what is not plain is not named."""

from __future__ import annotations

import numpy as np
import pytest
from ibis_agent.scan.body_region import region_of

from training.phantoms.phantom import random_slice
from training.phantoms.wide import wide_slice


def canvas(mm: float, side_mm: float = 480) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU of air, and (row, column) mm of every pixel from the middle."""
    at = (np.arange(int(side_mm / mm)) - side_mm / mm / 2) * mm
    y, x = np.meshgrid(at, at, indexing="ij")
    return np.full(y.shape, -1000.0, np.float32), y, x


def head(mm: float, size: float = 1.0) -> np.ndarray:
    hu, y, x = canvas(mm)
    away = np.hypot(y / (98 * size), x / (78 * size))
    hu[away < 1], hu[away < 0.93], hu[away < 0.85] = 20, 900, 35
    hu[np.abs(y - 125) < 8] = -300  # the head rest
    return hu


def legs(mm: float) -> np.ndarray:
    hu, y, x = canvas(mm)
    for side in (-95, 88):
        away = np.hypot(y, x - side)
        hu[away < 75], hu[away < 60], hu[away < 14], hu[away < 8] = -90, 55, 1000, 100
    return hu


@pytest.mark.parametrize("mm", [0.45, 0.98, 2.0])
def test_a_head_and_legs_are_named(mm: float) -> None:
    assert region_of(head(mm), (mm, mm)) == "head"
    assert region_of(head(mm, 0.75), (mm, mm)) == "head"  # a child's
    assert region_of(legs(mm), (mm, mm)) == "legs"


def test_the_trunk_is_not_taken_for_either() -> None:
    for seed in range(12):
        made = random_slice(seed)
        assert region_of(made.hu, made.spacing) == ""
        hu, _, _, mm = wide_slice(seed)
        assert region_of(hu, mm) == ""


def test_arms_beside_the_body_make_no_legs() -> None:
    hu, y, x = canvas(1.5)
    hu[np.hypot(y / 110, x / 150) < 1] = 40
    hu[np.hypot(y - 60, x) < 22] = 500
    for side in (-200, 200):
        away = np.hypot(y, x - side)
        hu[away < 38], hu[away < 10] = 40, 800
    assert region_of(hu, (1.5, 1.5)) == ""


@pytest.mark.parametrize("values", [-1000.0, 40.0, np.nan, 2000.0])
def test_what_shows_nothing_is_not_named(values: float) -> None:
    assert region_of(np.full((64, 50), values, np.float32), (2.0, 3.0)) == ""
