"""Volume runs that are stopped, corrected and gone on with, and words of the policy's that are rejected.

What is stopped is finished when the run goes on, whatever the person did meanwhile. The network is an exact one
that finds bright things that touch (bright_volumes).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bright_volumes import (
    MIDDLE,
    NOTHING,
    NOWHERE,
    SEGMENTER,
    Clicker,
    begun,
    disc,
    grown,
    run_over,
    shown,
)
from ibis_agent.actions import Click
from ibis_agent.errors import Cancelled
from ibis_agent.policy.contract import Turn
from ibis_agent.record.review import review_page
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Watch
from ibis_agent.run.run import Run

LONG = [disc() if 3 <= n <= 26 else NOTHING for n in range(30)]


def stopped(run: Run, after: int) -> None:
    """The run goes on, and is stopped after so many slices."""
    seen: list[int] = []
    with pytest.raises(Cancelled):
        run.step(Watch(progress=lambda p, f: seen.append(f.index), cancelled=lambda: len(seen) >= after))


def finish(run: Run) -> None:
    """To the end; and the record of it comes to the same."""
    run.run()
    assert run.status == "ended"
    record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
    assert Trajectory.from_json(record).replay(SEGMENTER).differences == ()


@pytest.mark.parametrize("corrected", [17, 11, 14])
def test_a_growth_that_was_stopped_is_finished_after_a_correction_elsewhere(corrected: int) -> None:
    run = run_over(LONG)
    run.click(14, MIDDLE)
    stopped(run, 5)
    assert shown(run) == list(range(14, 20))
    run.click(corrected, MIDDLE)
    run.spread(corrected)
    finish(run)
    assert shown(run) == list(range(3, 27))


def test_a_correction_that_ends_the_object_before_the_stop_does_not_keep_the_growth_from_going_on() -> None:
    run = run_over(
        [disc(6, column=12) | disc(3, column=27) if 15 <= n <= 16 else each for n, each in enumerate(LONG)]
    )
    run.click(12, MIDDLE)
    stopped(run, 8)
    run.click(17, Click(0.5, 0.5, False))
    run.spread(17)
    assert not run.mask(17).any()
    finish(run)
    assert set(range(3, 17)) <= set(shown(run))


def test_slices_that_were_clicked_ahead_of_a_growth_are_grown_from_too() -> None:
    before = run_over(LONG)
    for index in (14, 20, 8):
        before.click(index, MIDDLE)
    finish(before)
    assert shown(before) == list(range(3, 27))
    ahead = run_over(LONG)
    ahead.click(14, MIDDLE)
    stopped(ahead, 3)
    ahead.click(22, MIDDLE)
    finish(ahead)
    assert shown(ahead) == list(range(3, 27))
    apart = run_over([disc(5) if n < 6 or n > 20 else NOTHING for n in range(28)])
    apart.click(2, MIDDLE)
    apart.click(24, MIDDLE)
    finish(apart)
    assert shown(apart) == [*range(6), *range(21, 28)]


@pytest.mark.parametrize("after", [6, 7, 9, 10])
def test_a_gap_is_no_longer_for_a_stop_in_its_middle(after: int) -> None:
    slices = [disc() if 3 <= n <= 9 or n >= 15 else NOTHING for n in range(24)]
    run = run_over(slices)
    run.click(4, MIDDLE)
    stopped(run, after)
    finish(run)
    assert run.mask(9).any() and sorted(run.found) == sorted(grown(slices, 4).found)


def test_what_came_out_as_it_was_is_not_gone_over_again_after_a_stop() -> None:
    run = grown(LONG, 14)
    run.click(18, MIDDLE)
    seen: list[int] = []
    with pytest.raises(Cancelled):
        run.spread(18, Watch(progress=lambda p, f: seen.append(f.index), cancelled=lambda: len(seen) >= 3))
    assert seen == [19, 20, 17]
    run.step()
    assert run.actions[-1].touched == (15, 16)


class Sulky(Clicker):
    """Sees nothing any more where its word was rejected."""

    def reply(self, turn: Turn, on_text: Any = None, cancelled: Any = None) -> str:
        said = super().reply(turn, on_text, cancelled)
        return NOWHERE if turn.note else said


def test_a_rejected_beginning_is_asked_about_again_and_not_begun_with() -> None:
    policy = Sulky()
    run = begun(policy)
    key, looks = run.key, len(run.actions)
    run.reject()
    assert run.stage == "look"
    run.step()
    assert policy.turns[-1].note and [each.kind for each in run.actions[-2:]] == ["look", "look"]
    assert run.actions[-1].index == key and len(run.actions) == looks
    while run.key is None:
        run.step()
    assert run.key != key, "the policy sees nothing there now"
    finish(run)
    assert shown(run) == list(range(4, 16))


def test_a_beginning_that_is_rejected_twice_is_asked_about_twice() -> None:
    policy = Clicker()
    run = begun(policy)
    run.reject()
    run.step()
    assert run.actions[-1].kind == "look" and run.stage == "work"
    run.reject()
    assert run.stage == "look"
    run.step()
    run.step()
    assert run.key is not None and len([turn for turn in policy.turns if turn.note]) == 2


def test_the_policy_is_told_of_a_rejection_also_where_its_first_answer_to_it_was_stopped() -> None:
    policy = Clicker()
    run = begun(policy)
    run.step()
    run.reject()
    policy.turns.clear()
    with pytest.raises(Cancelled):
        run.step(Watch(cancelled=lambda: bool(policy.turns)))
    run.step()
    assert len(policy.turns) == 2 and all(turn.note for turn in policy.turns)


def test_a_run_that_went_back_to_its_question_is_recorded_too() -> None:
    run = run_over(LONG, policy=Clicker())
    run.step()
    run.back(0)
    record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
    recorded = Trajectory.from_json(record)
    assert not recorded.actions and not recorded.volume().any()
    assert "made.nii.gz" in review_page(record)


def test_finding_a_recorded_run_again_can_be_stopped_and_leaves_the_run_where_it_was() -> None:
    recorded, run = grown(LONG, 14).actions, run_over(LONG)
    asked: list[int] = []
    run.click(3, MIDDLE)
    before = run.actions, run.volume()
    with pytest.raises(Cancelled):
        run.go_to(recorded, Watch(cancelled=lambda: asked.append(0) or len(asked) > 4))  # type: ignore[func-returns-value]
    assert run.actions == before[0] and np.array_equal(run.volume(), before[1])
    assert len(run.memory.visits) == 5  # type: ignore[attr-defined]
    run.go_to(recorded)
    assert shown(run) == list(range(3, 27))
