"""Where structures overlap, the higher score keeps the pixel, and it is said how many there were."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ibis_agent.mask.overlaps import Overlaps


def row(*columns: int) -> np.ndarray:
    mask = np.zeros((1, 8), bool)
    mask[0, list(columns)] = True
    return mask


def test_the_higher_score_keeps_the_pixel_and_the_first_of_equals() -> None:
    overlaps = Overlaps()
    labels = overlaps.settle({1: row(0, 1, 2, 3), 2: row(2, 3, 4, 5), 3: row(5, 6)}, {1: 0.6, 2: 0.9, 3: 0.9})
    np.testing.assert_array_equal(labels, [[1, 1, 2, 2, 2, 2, 3, 0]])
    assert overlaps.sentences({1: "Liver", 2: "Spleen", 3: "Aorta"}) == [
        "Liver and Spleen overlapped in 2 voxels; by the higher score Spleen keeps 2.",
        "Spleen and Aorta overlapped in 1 voxel; by the higher score Spleen keeps 1.",
    ]


def test_counts_go_on_over_slices_and_either_may_win() -> None:
    overlaps = Overlaps()
    overlaps.settle({1: row(0, 1), 2: row(1)}, {1: 0.9, 2: 0.1})
    overlaps.settle({1: row(0, 1), 2: row(0, 1)}, {1: 0.1, 2: 0.9})
    assert overlaps.sentences({1: "Liver", 2: "Spleen"}) == [
        "Liver and Spleen overlapped in 3 voxels; by the higher score Liver keeps 1 and Spleen keeps 2."
    ]


@given(arrays(bool, (3, 4, 5)), st.lists(st.sampled_from((0.1, 0.5, 0.9)), min_size=3, max_size=3))
def test_every_pixel_of_any_mask_gets_one_structure_that_has_it(
    masks: np.ndarray, scores: list[float]
) -> None:
    labels = Overlaps().settle(dict(enumerate(masks, 1)), dict(enumerate(scores, 1)))
    np.testing.assert_array_equal(labels > 0, masks.any(axis=0))
    for number, mask in enumerate(masks, 1):
        assert mask[labels == number].all()
        rivals = [other for n, other in enumerate(masks, 1) if scores[n - 1] > scores[number - 1]]
        assert not any((other & (labels == number)).any() for other in rivals)
