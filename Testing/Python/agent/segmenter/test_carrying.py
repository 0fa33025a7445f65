"""What of a carried mask belongs to the structure, and where it is clicked."""

from __future__ import annotations

import numpy as np
import torch
from ibis_agent.segmenter.sam2.carrying import deepest, linked

NOTHING = -32.0


def logits(*boxes: tuple[int, int, int, int], side: int = 24) -> torch.Tensor:
    """(1, 1, side, side) logits, positive inside of (top, left, bottom, right) boxes."""
    low = torch.full((1, 1, side, side), -3.0)
    for top, left, bottom, right in boxes:
        low[0, 0, top:bottom, left:right] = 2.0
    return low


def test_an_island_that_touches_nothing_of_the_slice_beside_it_is_left_out() -> None:
    organ, island = (2, 2, 8, 8), (15, 15, 20, 20)
    kept = linked(logits(organ, island), logits(organ), NOTHING)
    assert torch.equal(kept > 0, logits(organ) > 0)
    assert float(kept[0, 0, 16, 16]) == NOTHING
    assert torch.equal(kept[0, 0, :12, :12], logits(organ)[0, 0, :12, :12]), "the organ's own logits stay"


def test_every_part_that_the_slice_beside_shows_stays() -> None:
    both = logits((2, 2, 8, 8), (15, 15, 20, 20))
    assert torch.equal(linked(both, both, NOTHING), both)


def test_a_part_that_moved_by_a_little_stays() -> None:
    parts = logits((2, 2, 8, 8), (15, 15, 18, 18))
    moved = logits((2, 2, 8, 8), (15, 19, 18, 22))
    assert torch.equal(linked(parts, moved, NOTHING), parts)


def test_a_mask_in_one_piece_is_left_alone_wherever_it_lies() -> None:
    # Whether it is the structure at all is told by how well the two masks fit.
    one = logits((15, 15, 20, 20))
    assert torch.equal(linked(one, logits((2, 2, 8, 8)), NOTHING), one)


def test_a_ring_is_clicked_inside_of_its_tissue() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:35, 10:50] = True
    mask[10:30, 15:40] = False
    click = deepest(mask)
    assert click.positive and mask[int(click.y * 40), int(click.x * 60)]
    assert click.x * 60 > 40, "the wall on the right is the thickest"
