"""Simulated clicks: where the published simulation clicked, and what any simulation must do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import Orientation, cut
from PIL import Image
from scipy import ndimage

from training.trajectories.clicks import chamfer_distance, deepest, next_click, simulate

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))
# Steps of OpenCV's 5×5 chamfer distance.
STEPS = {(1, 0): 1.0, (1, 1): 1.4, (2, 1): 2.1969}


def chamfer_by_searching(region: np.ndarray) -> np.ndarray:
    """The shortest way out by neighbour's, diagonal and knight's steps: relaxed until nothing moves."""
    depth = np.where(region, np.inf, 0.0)
    height, width = region.shape
    moves = [
        (dy, dx, length)
        for (a, b), length in STEPS.items()
        for p, q in {(a, b), (b, a)}
        for dy in {p, -p}
        for dx in {q, -q}
    ]
    while True:
        best = depth.copy()
        for dy, dx, length in moves:
            shifted = np.full_like(depth, np.inf)
            to = (slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0)))
            fro = (slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0)))
            shifted[to] = depth[fro] + length
            best = np.minimum(best, shifted)
        if np.allclose(best, depth, equal_nan=True):
            return best
        depth = best


@given(MASKS)
def test_the_distance_is_the_shortest_way_out(region: np.ndarray) -> None:
    assert np.allclose(chamfer_distance(region), chamfer_by_searching(region), rtol=1e-6)


def test_the_distance_is_close_to_the_euclidean_one() -> None:
    rows, columns = np.mgrid[:90, :110]
    region = ((rows - 40) / 33) ** 2 + ((columns - 57) / 44) ** 2 < 1
    exact = ndimage.distance_transform_edt(region)
    # 5×5 chamfer lengths are at most two percent off.
    assert np.abs(chamfer_distance(region) - exact).max() < 0.02 * exact.max()


@given(MASKS, st.integers(0, 6), st.integers(0, 6))
def test_the_deepest_point_is_found_without_looking_at_the_whole_picture(
    region: np.ndarray, top: int, left: int
) -> None:
    region = np.pad(region, ((top, 3), (left, 2)))
    depth, row, column = deepest(region)
    whole = chamfer_distance(region)
    assert depth == pytest.approx(whole.max())
    if region.any():
        assert (row, column) == np.unravel_index(int(whole.argmax()), whole.shape), (
            "the first in reading order"
        )


@given(MASKS, st.data())
def test_a_click_lies_in_what_is_wrong_and_its_sign_says_how(truth: np.ndarray, data: st.DataObject) -> None:
    mask = data.draw(hnp.arrays(bool, truth.shape))
    click = next_click(mask, truth)
    if np.array_equal(mask, truth):
        assert click is None
        return
    assert click is not None
    row, column = int(click.y * truth.shape[0]), int(click.x * truth.shape[1])
    assert truth[row, column] == click.positive and mask[row, column] != click.positive


def test_ties_go_to_the_missed_part_and_the_first_click_is_positive() -> None:
    truth, mask = np.zeros((9, 20), bool), np.zeros((9, 20), bool)
    truth[2:7, 1:6] = True
    mask[2:7, 12:17] = True
    assert next_click(mask, truth) == Click(3.5 / 20, 4.5 / 9, positive=True)
    assert next_click(None, truth) == Click(3.5 / 20, 4.5 / 9, positive=True)
    mask[1:8, 11:18] = True
    assert next_click(mask, truth) == Click(14.5 / 20, 4.5 / 9, positive=False)


def test_a_structure_that_fills_the_picture_is_clicked_in_the_middle() -> None:
    assert next_click(None, np.ones((8, 10), bool)) == Click(5.5 / 10, 4.5 / 8)


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="same size"):
        next_click(np.zeros((3, 4), bool), np.zeros((4, 3), bool))


class _Counting:
    """Finds a little more of the truth with each click, and keeps what it was asked."""

    def __init__(self, truth: np.ndarray, gain: int) -> None:
        self.truth, self.gain, self.calls, self.embedded = truth, gain, [], 0

    def embed(self, rgb: np.ndarray) -> str:
        self.embedded += 1
        return "embedding"

    def predict(self, embedding: str, clicks: list[Click], previous: np.ndarray | None) -> Any:
        from types import SimpleNamespace

        self.calls.append((embedding, list(clicks), previous))
        mask = np.zeros_like(self.truth)
        found = np.flatnonzero(self.truth)[: self.gain * len(clicks)]
        mask.ravel()[found] = True
        return SimpleNamespace(mask=mask, logits=np.full((2, 2), len(clicks), np.float32), score=0.5)


def test_simulation_stops_at_the_threshold_at_the_limit_and_when_nothing_is_wrong() -> None:
    truth = np.zeros((10, 10), bool)
    truth[2:7, 2:7] = True
    rgb = np.zeros((10, 10, 3), np.uint8)
    steps = simulate(_Counting(truth, 5), rgb, truth, iou_threshold=0.8)
    assert [step.iou for step in steps] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert len(simulate(_Counting(truth, 1), rgb, truth, max_steps=3)) == 3
    assert [step.iou for step in simulate(_Counting(truth, 25), rgb, truth, iou_threshold=2)] == [1.0]
    assert simulate(_Counting(truth, 5), rgb, np.zeros_like(truth)) == []


def test_every_click_sees_all_before_it_and_the_last_logits() -> None:
    truth = np.zeros((10, 10), bool)
    truth[2:7, 2:7] = True
    segmenter = _Counting(truth, 5)
    steps = simulate(segmenter, np.zeros((10, 10, 3), np.uint8), truth, iou_threshold=0.6)
    assert [len(clicks) for _, clicks, _ in segmenter.calls] == [1, 2, 3]
    assert segmenter.calls[0][2] is None and segmenter.calls[2][2] is steps[1].logits
    assert segmenter.embedded == 1
    simulate(segmenter, np.zeros((10, 10, 3), np.uint8), truth, embedding="there already")
    assert segmenter.embedded == 1 and segmenter.calls[-1][0] == "there already"


def test_clicks_and_masks_are_those_of_the_published_generator(parity: Path, data: Path) -> None:
    """All 80 recorded clicks fall on the same pixel. At most 3 pixels of a mask may differ, for CPUs that
    round otherwise; none did when this was written."""
    pytest.importorskip("torch")
    import ibis_agent.segmenter as segmenters

    segmenter = segmenters.open(parity / "segmenter.pt", device="cpu")
    runs = json.loads((parity / "trajectories.json").read_text())
    clicks = 0
    for run in runs:
        rgb, truth = _inputs(run, parity, data)
        steps = simulate(segmenter, rgb, truth, run["iou_threshold"], run["max_steps"])
        assert len(steps) == len(run["trajectory"])
        for ours, theirs in zip(steps, run["trajectory"], strict=True):
            column, row = int(ours.click.x * truth.shape[1]), int(ours.click.y * truth.shape[0])
            assert [column, row] == theirs["coords_original"]
            assert np.count_nonzero(ours.mask != decode_rle(theirs["mask_rle"], truth.shape)) <= 3
            clicks += 1
    assert clicks == 80


def _inputs(run: dict[str, Any], parity: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    if run["type"] == "img":
        rgb = np.array(Image.open(parity / run["file"]).convert("RGB"))
        return rgb, np.array(Image.open(parity / run["mask_file"]).convert("L")) > 0
    where = run["nii_data"]
    scan, labels = load_scan(data / run["file"]), load_scan(data / run["mask_file"])
    picture = cut(scan, where["slice_dir"], where["slice_idx"], where["window"], Orientation.UPSTREAM)
    return picture.rgb, picture.geometry.extract(labels.voxels) == where["mask_number"]
