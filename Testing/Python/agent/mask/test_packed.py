"""Masks that are kept a bit a pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ibis_agent.mask.packed import PackedMasks
from ibis_agent.segmenter.contract import Found


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 16), (7, 1)])
def test_a_found_mask_comes_back_as_it_was_whatever_its_size(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(3).random(shape) > 0.5
    found = Found(4, mask, 0.9, 1.0)
    assert found.mask.dtype == bool and np.array_equal(found.mask, mask)
    assert found.nbytes == -(-mask.size // 8)


def test_a_found_mask_cannot_be_changed_from_outside() -> None:
    mask = np.zeros((4, 4), bool)
    found = Found(4, mask, 0.9, 1.0)
    mask[:] = True
    assert not found.mask.any()
    with pytest.raises(ValueError, match="read-only"):
        found.mask[0, 0] = True


def test_another_found_has_the_same_mask_or_its_own() -> None:
    found = Found(4, np.eye(4, dtype=bool), 0.9, 1.0)
    assert np.array_equal(replace(found, anchor=True).mask, np.eye(4))
    assert np.array_equal(replace(found, mask=np.ones((4, 4), bool)).mask, np.ones((4, 4)))


def test_packed_masks_are_a_mapping_of_masks_by_slice() -> None:
    masks = PackedMasks([(7, np.eye(5, dtype=bool)), (3, np.zeros((5, 5), bool))])
    assert sorted(masks) == [3, 7] and 4 not in masks and masks.get(4) is None
    assert np.array_equal(masks[7], np.eye(5)) and not masks[3].any() and not masks[7].flags.writeable
