"""A run over a volume that begins from a mask: each slice from its own, corrected where it is doubtful."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bright_volumes import MIDDLE, NOTHING, SEGMENTER, Clicker, disc, run_over, shown
from ibis_agent.errors import InputError
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.given import Given, given
from ibis_agent.run.run import Run
from ibis_agent.segmenter.contract import Abilities

OBJECT = [disc(6) if 4 <= n <= 15 else NOTHING for n in range(20)]
SMALLER = {n: disc(5.5) for n in range(4, 16)}


def begun(start: dict[int, Any], policy: Any = None, **more: Any) -> Run:
    return run_over(OBJECT, policy=policy, given=given(start, more.pop("excluded", None)), **more)


def test_every_slice_begins_from_its_own_mask_and_the_gap_is_looked_at_again() -> None:
    policy, start = Clicker(), {n: mask for n, mask in SMALLER.items() if n != 12}
    run = begun(start, policy)
    assert run.key == 4 and not run.actions  # of equals the first
    np.testing.assert_array_equal(run.mask(9), start[9])
    assert run.run() == "ended"
    first = policy.turns[0]
    assert first.has_mask and first.number == 2
    np.testing.assert_array_equal(run.mask(12), OBJECT[12])
    kept = [n for n in start if n != run.key]
    assert all(np.array_equal(run.mask(n), start[n]) for n in kept)
    assert not {
        each.index for each in run.actions if each.kind == "look"
    }  # nobody searched for the key slice


def test_a_click_corrects_its_slice_and_ways_end_before_the_masks_beside_it() -> None:
    run = begun(SMALLER)
    run.click(9, MIDDLE)
    run.spread(9)
    np.testing.assert_array_equal(run.mask(9), OBJECT[9])
    assert run.actions[-1].ways and all(way.start == way.last for way in run.actions[-1].ways)
    np.testing.assert_array_equal(run.mask(10), SMALLER[10])
    run.undo()
    run.back(0)
    np.testing.assert_array_equal(run.mask(9), SMALLER[9])


def test_a_click_beyond_the_mask_grows_up_to_it() -> None:
    run = begun({n: SMALLER[n] for n in range(4, 10)})
    run.click(13, MIDDLE)
    run.spread(13)
    assert shown(run) == list(range(4, 16))
    np.testing.assert_array_equal(run.mask(10), OBJECT[10])
    np.testing.assert_array_equal(run.mask(9), SMALLER[9])


def test_a_mask_on_one_slice_is_followed_from_there_without_a_click() -> None:
    run = begun({9: disc(5.5)}, Clicker())
    assert run.run() == "ended"
    assert shown(run) == list(range(4, 16))


def test_excluded_voxels_are_in_no_mask_and_no_step() -> None:
    out = {n: disc(20, 16, 36) for n in range(20)}
    run = begun(SMALLER, excluded=out)
    assert not (run.mask(9) & out[9]).any() and run.mask(9).any()
    run.click(9, MIDDLE)
    assert not (run.mask(9) & out[9]).any() and not (
        run.steps[-1:] and (run.actions[0].steps[0].mask & out[9]).any()
    )


def test_the_record_keeps_the_masks_and_replays() -> None:
    out = {n: disc(3, 16, 22) for n in range(20)}
    start = {n: mask for n, mask in SMALLER.items() if n != 12}
    run = begun(start, Clicker(), excluded=out)
    run.run()
    record = Trajectory.of(run)
    again = Trajectory.from_json(record.to_json())
    assert set(again.given.start) == set(start)
    assert not again.replay(SEGMENTER).differences
    resumed = again.to_run(None, SEGMENTER)
    np.testing.assert_array_equal(resumed.volume(), run.volume())
    resumed.back(0)
    np.testing.assert_array_equal(resumed.mask(9), run.given.start[9])


def test_what_slicer_keeps_shows_the_mask_before_the_first_step() -> None:
    run = begun(SMALLER)
    kept = RunRecord("Segment it", "volume")
    kept.open(Trajectory.of(run).head())
    np.testing.assert_array_equal(kept.mask(0, 9), SMALLER[9])
    assert set(kept.areas_mm2()) == set(SMALLER)


def test_a_broken_record_names_the_mask_that_cannot_be_read() -> None:
    written = Trajectory.of(begun(SMALLER)).to_json()
    written["start"]["masks"]["9"] = "1 2 3"
    with pytest.raises(InputError, match=r"start\.masks\.9"):
        Trajectory.from_json(written)
    written["start"]["masks"] = {"99": ""}
    with pytest.raises(InputError, match=r"start\.masks\.99"):
        Trajectory.from_json(written)


def test_a_segmenter_that_cannot_begin_from_a_mask_says_so() -> None:
    run = run_over(OBJECT)
    cannot: Any = SimpleNamespace(
        can=Abilities(), identity={"name": "clicks only"}, follower=SEGMENTER.follower
    )
    with pytest.raises(InputError, match="clicks only"):
        Run(run.slices, "Segment it", None, cannot, given=given(SMALLER))


def test_the_start_loses_what_is_excluded_and_its_key_slice_is_the_largest() -> None:
    made = given({1: disc(5), 2: disc(6), 3: NOTHING}, {2: disc(9)})
    assert set(made.start) == {1} and made.key == 1 and set(made.filled()) == {1}
    assert Given().key is None
