"""A recorded run as one that can be stepped through: every step shows what the record knows of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ibis_agent.record.recorded_run import recorded_range, run_record_of
from ibis_agent.record.run_rows import clicks_of, rows_of
from ibis_agent.record.trajectory import Trajectory

RECORDS = Path(__file__).resolve().parents[2] / "data" / "records"


@pytest.fixture(scope="module")
def volume() -> Trajectory:
    return Trajectory.load(RECORDS / "volume.json")


def test_a_recorded_volume_ends_with_the_recorded_masks(volume: Trajectory) -> None:
    record = run_record_of(volume, whole_scan=True)
    assert (record.scope, record.status, record.answer) == ("volume", volume.status, volume.answer)
    assert [step["kind"] for step in record.steps] == [action.kind for action in volume.actions]
    assert sorted(record.slices()) == sorted(volume.rows)
    for index in volume.rows:
        assert np.array_equal(record.mask(index=index), volume.mask_of(index))
    assert rows_of(record)[-1]["ml"] == pytest.approx(volume.ml)


def test_going_back_shows_the_click_as_it_was_and_only_slices_that_were_reached(volume: Trajectory) -> None:
    record = run_record_of(volume, whole_scan=True)
    first = next(action for action in volume.actions if action.kind == "click")
    assert list(record.slices(first.number)) == [first.index]
    assert np.array_equal(record.mask(first.number, first.index), first.steps[-1].mask)
    assert record.slices(first.number - 1) == {}
    reached = [len(record.slices(number)) for number in range(len(volume.actions) + 1)]
    assert reached[-1] > 1 and reached == sorted(reached)
    assert {each.index for each in clicks_of(record)} == set(record.clicked())


def test_without_the_scan_a_volume_goes_on_within_its_recorded_slices(volume: Trajectory) -> None:
    first, last = recorded_range(volume)
    assert set(range(first, last + 1)) <= set(volume.visited) and volume.key in range(first, last + 1)
    assert run_record_of(volume, whole_scan=False).range == (first, last)
    assert run_record_of(volume, whole_scan=True).range == (volume.slices.first, volume.slices.last)


def test_without_the_scan_a_slice_is_a_volume_one_voxel_thick_in_its_place() -> None:
    run = Trajectory.load(RECORDS / "slice.json")
    slab, whole = run_record_of(run, whole_scan=False), run_record_of(run, whole_scan=True)
    assert slab.geometry.shape[slab.geometry.axis] == 1 and slab.geometry.index == 0
    assert slab.geometry.to_patient(0.3, 0.6) == pytest.approx(whole.geometry.to_patient(0.3, 0.6))
    assert whole.geometry.shape == run.picture.geometry.shape
    assert np.array_equal(slab.mask(), run.mask) and np.array_equal(whole.mask(), run.mask)
