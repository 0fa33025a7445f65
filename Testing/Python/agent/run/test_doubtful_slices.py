"""Which slices are doubtful, and where a run begins: without any model."""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Click, Terminate
from ibis_agent.run.doubtful_slices import agreed, doubts, seen_otherwise
from ibis_agent.run.episode import Step
from ibis_agent.run.key_slice import Look, Search, best, search_slices, spread_out
from ibis_agent.segmenter.contract import Found

SIDE = 96
EMPTY = np.zeros((SIDE, SIDE), bool)


def disc(radius: float, row: float = 48, column: float = 48) -> np.ndarray:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def stack(masks: dict[int, np.ndarray], key: int, **odd: dict[int, float]) -> dict[int, Found]:
    presences, scores = odd.get("presence", {}), odd.get("score", {})
    return {
        n: Found(n, mask, scores.get(n, 0.9), presences.get(n, 0.99 if mask.any() else 0.01), n == key)
        for n, mask in masks.items()
    }


def ball(radius_mm: float = 30, gap_mm: float = 3) -> dict[int, np.ndarray]:
    """A ball of pixels of 1 mm, its middle in slice 15."""
    made = {}
    for n in range(31):
        left = radius_mm**2 - ((n - 15) * gap_mm) ** 2
        made[n] = disc(np.sqrt(left)) if left > 0 else EMPTY
    return made


def reasons(found: dict[int, Found], gap_mm: float = 3) -> dict[int, str]:
    return {each.index: each.reason for each in doubts(found, 1.0, 1.0, gap_mm)}


def test_a_ball_is_not_doubtful_however_thick_the_slices() -> None:
    for gap in (1.0, 3.0, 7.0):
        assert reasons(stack(ball(gap_mm=gap), 15), gap) == {}


def test_a_jump_of_the_area_is_noticed_on_the_far_side() -> None:
    leaked = ball()
    leaked[19] = disc(46)
    assert "area jumps" in reasons(stack(leaked, 15))[19]
    cut_off = {n: (mask if n < 18 else EMPTY) for n, mask in ball().items()}
    assert "area jumps" in reasons(stack(cut_off, 15))[18]


def test_gaps_moves_and_splits_are_noticed() -> None:
    gap = ball(20)
    gap[17] = EMPTY
    assert "gap" in reasons(stack(gap, 15))[17]
    moved = {n: disc(12, 48, 40 if n < 17 else 58) for n in range(10, 20)}
    assert "moves" in reasons(stack(moved, 12))[17]
    split = {n: disc(12, 30) | disc(12, 66) if n > 16 else disc(16) for n in range(10, 20)}
    found = doubts(stack(split, 12), 1.0, 1.0, 10.0)
    assert any(each.index == 17 and "2 parts" in each.reason for each in found)


def test_low_scores_and_unsure_slices_are_noticed_but_never_anchors() -> None:
    found = stack(ball(), 15, presence={20: 0.5, 15: 0.5}, score={11: 0.3})
    assert set(reasons(found)) == {20, 11}


def test_the_tips_of_an_organ_are_not_worth_a_look_for_being_unsure() -> None:
    assert reasons(stack(ball(), 15, presence={6: 0.7, 24: 0.7, 12: 0.7})) == {
        12: "uncertain whether it is there (70%)"
    }


def test_of_two_gaps_the_one_next_to_the_anchor_comes_first() -> None:
    gaps = ball(30)
    gaps[17] = gaps[18] = gaps[19] = EMPTY
    found = doubts(stack(gaps, 15), 1.0, 1.0, 3.0)
    assert [each.index for each in found if "gap" in each.reason] == [17, 18, 19]
    below = ball(30)
    below[11] = below[12] = EMPTY
    assert doubts(stack(below, 15), 1.0, 1.0, 3.0)[0].index == 12


def test_a_look_that_others_agree_with_is_believed_against_what_grew_to_another_thing() -> None:
    grown = stack({n: disc(12, 48, 20 if n < 12 else 70) for n in range(20)}, 5)
    looks = stack({n: disc(12, 48, 20) for n in (8, 14, 18)}, -1)
    assert [each.index for each in seen_otherwise(grown, looks)] == [14, 18], "at 8 it is what was seen"
    assert all(each.seen for each in seen_otherwise(grown, looks))
    doubtful = stack({n: disc(12, 48, 20) for n in (8, 14, 18)}, -1, score={14: 0.4, 18: 0.4})
    assert seen_otherwise(grown, doubtful) == []
    alone = stack({8: disc(12, 48, 20), 14: disc(9, 10, 48), 18: disc(12, 48, 70)}, -1)
    assert seen_otherwise(grown, alone) == []


def test_looks_that_saw_what_grew_are_not_overruled_by_fewer_that_saw_another_thing() -> None:
    grown = stack({n: disc(12, 48, 20) for n in range(20)}, 5)
    places = {2: 20, 7: 20, 8: 20, 11: 20, 14: 70, 18: 70}  # the two that are wrong agree with each other
    looks = stack({n: disc(12, 48, column) for n, column in places.items()}, -1)
    assert seen_otherwise(grown, looks) == []


def test_looks_agree_with_each_other_and_with_what_stands() -> None:
    grown = stack({n: disc(12, 48, 20 if n < 12 else 70) for n in range(20)}, 5)
    looks = stack({2: disc(12, 48, 20), 6: disc(12, 48, 22), 10: disc(12, 48, 70), 18: disc(12, 48, 70)}, -1)
    assert agreed(grown, looks) == [2, 6], "10 saw another thing than stands there, and 18 is alone"
    assert agreed(grown, stack({6: disc(12, 48, 20), 18: disc(12, 48, 70)}, -1)) == []


def look(index: int, radius: float, score: float = 0.9) -> Look:
    if not radius:
        return Look(index, Step(1, Terminate("no"), "policy", EMPTY, None, None))
    mask = disc(radius)
    return Look(index, Step(1, Click(0.5, 0.5), "policy", mask, None, score), float(mask.sum()))


def test_looks_are_spread_over_the_stack_and_then_narrow_down() -> None:
    shape = {n: 25 - abs(n - 60) for n in range(36, 85)}
    seen = list(search_slices(0, 99, 2.0, lambda n: look(n, shape.get(n, 0)), Search(rounds=3)))
    indices = [each.index for each in seen]
    assert len(indices) == len(set(indices)) <= 16
    assert max(np.diff(sorted(indices[:9]))) <= 13
    key = best({each.index: each for each in seen})
    assert key is not None and abs(key.index - 60) <= 4


def test_a_mistake_on_one_slice_is_outvoted_by_an_object_that_goes_on() -> None:
    sizes = {10: 22, 40: 16, 50: 18, 60: 16}
    looks = {n: look(n, sizes.get(n, 0)) for n in range(0, 100, 10)}
    assert best(looks).index == 50  # type: ignore[union-attr]


def test_nothing_seen_means_looking_once_more_in_between() -> None:
    seen = list(search_slices(0, 99, 1.0, lambda n: look(n, 6 if 20 <= n <= 24 else 0), Search(most=5)))
    assert not any(each.seen for each in seen[:5]) and {each.index for each in seen[5:9]} == {20, 40, 60, 80}
    key = best({each.index: each for each in seen})
    assert key is not None and 20 <= key.index <= 24
    assert best({n: look(n, 0) for n in range(5)}) is None


def test_every_slice_of_a_short_stack_is_looked_at_once() -> None:
    assert sorted(spread_out(4, 6, 5.0, Search())) == [4, 5, 6]
    assert spread_out(7, 7, 5.0, Search()) == [7]
