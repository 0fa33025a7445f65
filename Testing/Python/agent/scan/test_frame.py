"""What lies in a frame comes back exactly; a frame holds the body, and not what lies beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.errors import InputError
from ibis_agent.scan.frame import Frame, find_frame

POINT = st.floats(0, 1, allow_nan=False)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    height, width = draw(st.integers(2, 700)), draw(st.integers(2, 700))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    return Frame(top, left, bottom, right, height, width)


def pixel(x: float, y: float, height: int, width: int) -> tuple[int, int]:
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


@given(frames(), POINT, POINT)
def test_a_click_in_the_frame_falls_on_the_same_pixel_of_the_slice(frame, x, y):
    row, column = pixel(x, y, *frame.shape)
    outside = frame.outward(x, y)
    assert pixel(*outside, frame.height, frame.width) == (frame.top + row, frame.left + column)
    assert pixel(*frame.inward(*outside), *frame.shape) == (row, column)


@given(frames(), POINT, POINT)
def test_a_click_in_the_slice_goes_to_its_pixel_of_the_frame_or_to_the_nearest_one(frame, x, y):
    row, column = pixel(x, y, frame.height, frame.width)
    inside = pixel(*frame.inward(x, y), *frame.shape)
    nearest = np.clip(row, frame.top, frame.bottom - 1), np.clip(column, frame.left, frame.right - 1)
    assert (frame.top + inside[0], frame.left + inside[1]) == nearest


@given(frames(), st.integers(0, 2**31))
def test_a_mask_comes_back_where_it_was_and_nothing_lies_outside(frame, seed):
    small = Frame(*(min(v, 40) for v in (frame.top % 20, frame.left % 20)), 40, 40, 50, 60)
    mask = np.random.default_rng(seed).random(small.shape) < 0.5
    whole = small.paste(mask)
    assert np.array_equal(small.crop(whole), mask)
    assert whole.sum() == mask.sum()


def body(height: int = 256, width: int = 256, air: float = -1000.0, tissue: float = 40.0) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.where(((y - 128) / 60) ** 2 + ((x - 120) / 80) ** 2 < 1, tissue, air).astype(np.float32)


def holds_the_body(frame: Frame, slack: float = 14) -> bool:
    edges = np.array([frame.top, frame.left, frame.bottom, frame.right])
    return bool((np.abs(edges - [68, 40, 189, 201]) < slack).all())


def test_a_table_and_arms_beside_the_body_stay_outside():
    ct = body()
    ct[195:198] = -100  # a table that lies apart, and one that touches
    ct[189:191, 60:180] = 20
    ct[110:150, 225:250] = 50
    assert holds_the_body(find_frame(ct, (1.5, 1.5)))


def test_an_mr_is_framed_by_its_own_grey_values():
    grain = np.random.default_rng(1).normal(0, 1, (256, 256))
    for tissue in (60.0, 900.0):
        mr = np.abs(body(air=tissue / 40, tissue=tissue) * (1 + 0.2 * grain))
        assert holds_the_body(find_frame(mr, (1.5, 1.5)))


def test_a_range_has_one_frame_that_holds_the_body_of_every_slice():
    ends = [body(), np.roll(body(), 30, 1), np.full((256, 256), -1000.0, np.float32)]
    frame = find_frame(np.stack(ends), (1.5, 1.5))
    assert frame.left < 40 and frame.right > 231
    assert frame.top > 50 and frame.bottom < 205


def test_a_body_that_fills_the_slice_or_none_at_all_is_framed_by_the_slice():
    for values in (np.full((64, 50), 40.0), np.full((64, 50), -1000.0), np.zeros((64, 50))):
        assert find_frame(values).is_whole


def test_a_body_cut_by_the_edge_of_the_slice_is_not_cut_further():
    frame = find_frame(body()[:, 60:180], (1.5, 1.5))
    assert (frame.left, frame.right) == (0, 120)


def test_what_does_not_fit_is_refused():
    frame = Frame(1, 1, 3, 3, 5, 5)
    with pytest.raises(InputError):
        frame.crop(np.zeros((4, 5)))
    with pytest.raises(InputError):
        frame.paste(np.zeros((3, 2)))
    with pytest.raises(InputError):
        Frame(3, 0, 3, 5, 5, 5)


def chest(wall: float, air: float = -1000.0, lung: float = -850.0) -> np.ndarray:
    """Heart and back of a chest of 200 × 150 mm, with a wall of so many mm around the lungs; 1 mm pixels."""
    y, x = np.mgrid[0:220, 0:260].astype(float)
    outer = ((y - 110) / 75) ** 2 + ((x - 130) / 100) ** 2 < 1
    inner = ((y - 110) / (75 - wall)) ** 2 + ((x - 130) / (100 - wall)) ** 2 < 1
    organs = (np.hypot(y - 90, x - 140) < 35) | ((y > 150) & inner)
    return np.where(outer, np.where(inner & ~organs, lung, 40.0), air).astype(np.float32)


@pytest.mark.parametrize("wall", [6, 10, 20])
def test_lungs_behind_a_thin_wall_do_not_end_the_body(wall):
    # The heart is the largest part that is thick, and no frame around it alone may come of that.
    frame = find_frame(chest(wall), (1.0, 1.0))
    edges = np.array([frame.top, frame.left, frame.bottom, frame.right])
    assert (np.abs(edges - [35, 30, 186, 231]) <= 10).all(), frame


def test_a_liver_as_dark_as_the_background_is_inside_of_an_mr_s_frame():
    y, x = np.mgrid[0:220, 0:260].astype(float)
    mr = np.where(((y - 110) / 75) ** 2 + ((x - 130) / 100) ** 2 < 1, 900.0, 10.0)
    mr[(((y - 110) / 68) ** 2 + ((x - 130) / 93) ** 2 < 1) & (x < 140)] = 10.0
    frame = find_frame(mr.astype(np.float32), (1.0, 1.0))
    edges = np.array([frame.top, frame.left, frame.bottom, frame.right])
    assert (np.abs(edges - [35, 30, 186, 231]) <= 10).all(), frame


def test_the_gap_beside_an_arm_that_touches_the_body_does_not_make_it_part_of_the_body():
    ct = body()
    y, x = np.mgrid[0:256, 0:256]
    ct[(np.hypot(y - 128, x - 222) < 14) | ((np.abs(y - 128) < 30) & (np.abs(x - 205) < 3))] = 40
    assert holds_the_body(find_frame(ct, (1.5, 1.5)))
