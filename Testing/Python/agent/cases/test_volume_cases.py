"""Volume runs over objects of every shape: anisotropic, split, gone and back, long; what they cost, and the way back.

The network is an exact one that finds bright things that touch (bright_volumes). Second looks are in
test_second_looks, the terminal in test_volume_terminal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bright_volumes import (
    MIDDLE,
    NOTHING,
    SEGMENTER,
    SIDE,
    Clicker,
    begun,
    disc,
    grown,
    run_over,
    shown,
    two_things,
)
from ibis_agent.actions import Click
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Watch
from ibis_agent.run.key_slice import Search
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import stack_of


@pytest.mark.parametrize("gap_mm, beyond", [(1.0, 12), (3.0, 4), (6.0, 2), (20.0, 1)])
def test_an_object_is_followed_both_ways_and_left_alone_so_many_millimetres_beyond_its_ends(
    gap_mm: float, beyond: int
) -> None:
    slices = [disc() if 20 <= n <= 29 else NOTHING for n in range(60)]
    run = grown(slices, 24, gap_mm)
    assert shown(run) == list(range(20, 30))
    assert sorted(run.found) == list(range(20 - beyond, 30 + beyond))
    assert [way.ended for way in run.actions[-1].ways] == [True, True]
    assert run.volume_ml == pytest.approx(10 * disc().sum() * gap_mm / 1000)


@pytest.mark.parametrize("plane, axis, gap_mm", [("sagittal", 0, 4.0), ("coronal", 1, 0.7)])
def test_a_volume_is_gone_through_in_the_plane_that_was_asked_in(
    plane: str, axis: int, gap_mm: float
) -> None:
    place = np.indices((24, 26, 28))
    lies = place[1 - axis] - 12 - (place[axis] - 12) / 3, place[2] - 14  # a slanting rod
    truth = np.hypot(*lies) < 5
    truth &= (place[axis] >= 4) & (place[axis] <= 19)
    spacing = [-2.0, -3.0, 5.0]
    spacing[axis] = -gap_mm
    voxels = np.where(truth, 200, 10).astype(np.int16)
    scan = Scan(voxels, np.diag([*spacing, 1.0]), "volume", Path("made.nii.gz"), "made", "CT")
    slices = stack_of(scan, plane, window=(0, 255))
    run = Run(slices, "Segment it", None, SEGMENTER, Settings(follow="memory", patience_mm=2 * gap_mm))
    geometry = slices.geometry(12)
    rows, columns = np.nonzero(geometry.extract(truth))
    middle = rows.mean() + 0.5, columns.mean() + 0.5
    run.click(12, Click(middle[1] / geometry.width, middle[0] / geometry.height))
    run.grow()
    assert np.array_equal(run.volume() != 0, truth)
    assert shown(run) == list(range(4, 20)) and sorted(run.found) == list(range(2, 22))
    assert run.volume_ml == pytest.approx(truth.sum() * abs(np.prod(spacing)) / 1000)


def test_an_object_that_splits_is_followed_into_both_parts() -> None:
    slices = [disc(9) for _ in range(4)]
    slices += [disc(4, column=16 - 2 * n) | disc(4, column=16 + 2 * n) for n in (2, 3, 4, 5)]
    run = grown(slices, 1)
    assert shown(run) == list(range(8)) and all(np.array_equal(run.mask(n), slices[n]) for n in range(8))
    assert any("2 parts" in each.reason for each in run.doubts())


def test_an_object_that_vanishes_and_comes_back_is_found_again_within_the_patience() -> None:
    slices = [disc() if n not in (6, 7) else NOTHING for n in range(14)]
    run = grown(slices, 3)
    assert shown(run) == [n for n in range(14) if n not in (6, 7)]
    assert {each.index for each in run.doubts() if "gap" in each.reason} == {6, 7}
    far = grown([disc() if not 6 <= n <= 11 else NOTHING for n in range(20)], 3)
    assert shown(far) == list(range(6)), "six slices of 3 mm are more than 12 mm"


def test_a_volume_of_one_slice_has_no_ways() -> None:
    run = grown([disc()], 0)
    assert shown(run) == [0] and run.actions[-1].ways == () and run.stage == "finish"


def test_a_thousand_slices_are_visited_once_each() -> None:
    run = run_over([disc()] * 1000, 1.0)
    run.click(400, MIDDLE)
    told: list[tuple[int, int, float]] = []
    run.grow(Watch(progress=lambda p, found: told.append((p.done, p.total, p.seconds_left))))
    assert sorted(run.memory.visits) == [n for n in range(1000) if n != 400]  # type: ignore[attr-defined]
    assert [done for done, _, _ in told] == list(range(1, 1000)) and {total for _, total, _ in told} == {999}
    assert told[-1][2] == 0.0 and run.volume().sum() == 1000 * disc().sum()


def test_memory_does_not_grow_with_clicks_and_every_one_can_be_taken_back() -> None:
    limit = 12 * (SIDE * SIDE * 5)  # the logits and masks of twelve slices
    run = run_over([disc(5) | disc(3, 26, 26)] * 30, history_limit=limit)
    run.click(15, MIDDLE)
    run.grow()
    volumes, corner = [run.volume()], Click(26.5 / SIDE, 26.5 / SIDE)
    for n in range(12):
        run.click(2 * n + 2, corner if n % 2 else Click(corner.x, corner.y, False))
        run.spread(2 * n + 2)
        volumes.append(run.volume())
        assert run._snapshots.held <= limit
    assert len(run._snapshots) < len(run.actions) / 2
    for before in reversed(volumes[:-1]):
        run.undo()
        run.undo()
        assert np.array_equal(run.volume(), before)
    for _ in range(24):
        run.redo()
    assert np.array_equal(run.volume(), volumes[-1])


def test_one_step_is_one_action_and_all_of_them_are_what_a_run_does() -> None:
    limits = Settings(follow="memory", looks=2, search=Search(fewest=3, most=3, rounds=1))
    alone = run_over(two_things(), policy=Clicker(), limits=limits)
    alone.run()
    told: list[Any] = []
    stepped = run_over(two_things(), policy=Clicker(), limits=limits)
    while stepped.status == "ready":
        before = len(stepped.actions)
        stepped.step(Watch(action=told.append))
        assert len(stepped.actions) in (before + 1, before + 2)
    kinds = [action.kind for action in stepped.actions]
    assert kinds == [action.kind for action in alone.actions] and tuple(told) == stepped.actions
    assert kinds[0] == "look" and [k for k in kinds if k != "look"][:4] == ["click", "click", "done", "grow"]
    assert kinds[-1] == "end" and stepped.answer == "There it is."
    assert np.array_equal(stepped.volume(), alone.volume())
    assert shown(stepped) == list(range(4, 16))


def test_the_person_may_take_part_on_the_key_slice_and_the_policy_goes_on_from_there() -> None:
    policy = Clicker()
    run = begun(policy)
    key = run.key
    run.click(key, Click(0.9, 0.9, positive=False), replace=1)
    assert run.actions[-1].by == "person" and not run.mask(key).any()
    run.step()
    assert run.actions[-1].by == "policy" and len(run.actions[-1].clicks) == 2
    run.step()
    run.step()
    assert run.actions[-1].kind == "done" and run.stage == "grow"


def test_a_word_that_is_rejected_is_taken_back_and_told() -> None:
    policy = Clicker()
    run = begun(policy)
    run.step()
    clicks = run.actions[-1].clicks
    run.reject()
    assert run.actions[-1].clicks == clicks[:1] and run.stage == "work"
    run.step()
    assert policy.turns[-1].note and "0." in policy.turns[-1].note
    run.step()
    run.grow()
    with pytest.raises(InputError, match="not made by the policy"):
        run.reject()


def test_a_growth_that_is_stopped_goes_on_where_it_was_and_ends_as_if_it_had_not_been() -> None:
    slices = [disc() if 3 <= n <= 26 else NOTHING for n in range(30)]
    straight, run = grown(slices, 14), run_over(slices)
    rows, columns = np.nonzero(slices[14])
    run.click(14, Click((columns[0] + 0.5) / SIDE, (rows[0] + 0.5) / SIDE))
    for count in (3, 5, 12):
        done: list[int] = []
        with pytest.raises(Cancelled):
            run.step(Watch(progress=lambda p, f: done.append(p.done), cancelled=lambda: len(done) >= count))  # noqa: B023
        assert run.actions[-1].stopped and len(run.actions[-1].touched) == count
    run.step()
    assert not run.actions[-1].stopped and np.array_equal(run.volume(), straight.volume())
    assert len(run.memory.visits) == len(set(run.memory.visits))  # type: ignore[attr-defined]
    record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
    assert Trajectory.from_json(record).replay(SEGMENTER).differences == ()


def test_what_fails_in_the_middle_leaves_no_trace() -> None:
    run = run_over([disc()] * 12)
    run.click(5, MIDDLE)

    def fail(progress: Any, found: Any) -> None:
        if progress.done == 3:
            raise MemoryError("no room")

    with pytest.raises(MemoryError):
        run.grow(Watch(progress=fail))
    assert list(run.found) == [5] and len(run.actions) == 1
    run.grow()
    assert shown(run) == list(range(12))


def test_redoing_the_neighbours_of_another_piece_leaves_what_was_found_of_the_first() -> None:
    far = grown([disc() if n <= 9 or 20 <= n <= 28 else NOTHING for n in range(30)], 4)
    assert shown(far) == list(range(10))
    far.click(24, MIDDLE)
    far.spread(24)
    assert shown(far) == [*range(10), *range(20, 29)]
    far.undo()
    far.redo()
    assert shown(far) == [*range(10), *range(20, 29)]
    # Nearer than the patience, and not touching: each piece keeps the slices on its side of the middle.
    near = grown([disc(6, column=8 if n <= 9 else 24) for n in range(20)], 4, gap_mm=1.0)
    near.click(10, Click(24.5 / SIDE, 0.5))
    near.spread(10)
    assert shown(near) == [*range(8), *range(10, 20)]
    for run in (far, near):
        record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
        assert Trajectory.from_json(record).replay(SEGMENTER).differences == ()
