"""Second looks: what was missed is found, a correction that fits no better is left out, and they are limited.

The network is an exact one that finds bright things that touch (bright_volumes).
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from bright_volumes import (
    NOTHING,
    SEGMENTER,
    SIDE,
    Bright,
    Clicker,
    disc,
    run_over,
    shown,
)
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Watch
from ibis_agent.run.key_slice import Search
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from scripted_policy import ScriptedPolicy

EVEN = [disc()] * 20
# One slice shows more than its neighbours, and beside it a thing that is not the object.
ONE_ODD = [disc(9, 16, 10) | disc(3, 27, 27) if n == 10 else disc(5, 16, 10) for n in range(20)]


def reviewed(slices: list[np.ndarray], policy: ScriptedPolicy, looks: int) -> Run:
    """The person begins in slice 4, the policy does the rest."""
    limits = Settings(follow="memory", patience_mm=12.0, looks=looks)
    run = run_over(slices, 1.0, policy=policy, limits=limits)
    row, column = np.argwhere(slices[4]).mean(axis=0)
    run.click(4, Click((column + 0.5) / SIDE, (row + 0.5) / SIDE))
    run.grow()
    run.run()
    assert run.status == "ended"
    return run


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices 10 and 11 show the object, but it is not found there from its neighbours."""
    monkeypatch.setattr(Bright, "blind", frozenset({10, 11}))


def test_what_was_missed_on_the_way_is_found_in_second_looks(blind: None) -> None:
    assert shown(reviewed(EVEN, Clicker(), looks=0)) == [n for n in range(20) if n not in (10, 11)]
    run = reviewed(EVEN, Clicker(), looks=4)
    assert shown(run) == list(range(20)) and all(np.array_equal(run.mask(n), disc()) for n in range(20))
    first, second = [each for each in run.actions if each.look]
    assert [(each.kind, each.index, each.by) for each in (first, second)] == [
        ("click", 10, "policy"),
        ("click", 11, "policy"),
    ]
    assert first.words == "second look 1 of 4: a gap: no mask here, but masks on both sides; corrected"
    assert run.memory.anchors == [4, 10, 11], "a correction is an anchor, as the first click is"
    record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
    assert Trajectory.from_json(record).replay(SEGMENTER).differences == ()


def test_only_what_depends_on_a_second_look_is_found_again_and_all_of_it_can_be_taken_back(
    blind: None,
) -> None:
    run = reviewed(EVEN, Clicker(), looks=1)
    assert [each.kind for each in run.actions] == ["click", "grow", "click", "grow", "end"]
    redone = run.actions[3]
    assert redone.index == 10
    assert set(redone.touched) <= {8, 9, 11, 12}, "where two neighbours come out as they were, the way ends"
    while len(run.actions) > 2:
        run.undo()
    assert shown(run) == [n for n in range(20) if n not in (10, 11)]


def test_a_second_look_is_rejected_with_what_grew_from_it_even_where_that_was_stopped(blind: None) -> None:
    run, done = reviewed(EVEN, Clicker(), looks=1), []
    run.back(2)
    with pytest.raises(Cancelled):
        run.step(Watch(progress=lambda p, found: done.append(p.index), cancelled=lambda: bool(done)))
    run.step()
    assert [each.kind for each in run.actions] == ["click", "grow", "click", "grow", "grow"]
    look = run.actions[2]
    run.reject()
    assert run.rejected is look and shown(run) == [n for n in range(20) if n not in (10, 11)]
    with pytest.raises(InputError, match="not made by the policy"):
        run.reject()


def test_what_the_first_looks_saw_elsewhere_is_begun_there_afresh() -> None:
    # The object goes on at another place, where nothing leads to from the slices before.
    slices = [disc(6, 22, 8) if n < 6 else disc(5, 8, 8) for n in range(20)]
    run = run_over(slices, policy=Clicker(), limits=Settings(follow="memory", patience_mm=12.0, looks=1))
    while run.stage != "review":
        run.step()
    assert shown(run) == list(range(6))
    asked = len(run.policy.turns)
    run.run()
    (look,) = [each for each in run.actions if each.look]
    assert look.afresh and look.words == "second look 1 of 1: an earlier look saw it elsewhere; started again"
    assert len(run.policy.turns) == asked, "the policy's word is known already"
    assert shown(run) == list(range(20))
    record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
    recorded = Trajectory.from_json(record)
    assert recorded.replay(SEGMENTER).differences == ()
    assert [each.afresh for each in recorded.actions if each.kind == "click"] == [False, True]
    run.undo()
    run.undo()
    assert shown(run) == list(range(6))


def test_what_is_begun_afresh_stops_where_looks_agree_on_what_stands() -> None:
    # Beside the object lies another one, which the later looks took for it and which goes on below.
    object_, other = disc(6, 22, 8), disc(5, 8, 22)
    slices = [object_ if n < 4 else object_ | other if n < 8 else other for n in range(20)]
    few = Search(fewest=5, most=5, rounds=0)
    limits = Settings(follow="memory", patience_mm=12.0, looks=1, search=few)
    run = run_over(slices, policy=Clicker(), limits=limits)
    for _ in range(5):
        run.step()
    run.click(2, Click(8.5 / SIDE, 22.5 / SIDE))
    run.grow()
    run.run()
    (look,) = [each for each in run.actions if each.look]
    assert (look.index, look.afresh) == (10, True)
    assert np.array_equal(run.mask(12), other)
    assert run.agreed()[:2] == [2, 6]
    assert all(np.array_equal(run.mask(n), object_) for n in range(7)), (
        "up to a look that agrees with another"
    )
    record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
    assert Trajectory.from_json(record).replay(SEGMENTER).differences == ()


def test_a_correction_that_fits_no_better_is_told_and_changes_nothing() -> None:
    run = reviewed(ONE_ODD, Clicker(), looks=1)
    (look,) = [each for each in run.actions if each.look]
    assert (look.kind, look.index) == ("review", 10)
    assert look.words.endswith("the correction was no better")
    assert look.steps, "what the policy tried is kept for people to see"
    assert np.array_equal(run.mask(10), disc(9, 16, 10)) and run.memory.anchors == [4]


def test_a_gap_is_not_filled_with_a_thing_elsewhere(blind: None) -> None:
    slices = [disc() | disc(3, 4, 4) if n in (10, 11) else disc() for n in range(20)]
    elsewhere = format_reply(Reply("There.", Click(4.5 / SIDE, 4.5 / SIDE)))
    content = format_reply(Reply("It fits.", Terminate("There it is.")))
    run = reviewed(slices, ScriptedPolicy([elsewhere, content] * 4), looks=2)
    assert [each.kind for each in run.actions if each.look] == ["review", "review"]
    assert shown(run) == [n for n in range(20) if n not in (10, 11)]


def test_a_policy_that_is_content_leaves_the_slice_as_it_was() -> None:
    content = format_reply(Reply("It fits.", Terminate("There it is.")))
    run = reviewed(ONE_ODD, ScriptedPolicy([content]), looks=1)
    (look,) = [each for each in run.actions if each.look]
    assert look.kind == "review" and look.words.endswith("unchanged")


def test_there_are_no_more_looks_than_allowed_and_none_twice_at_one_slice() -> None:
    content = format_reply(Reply("It fits.", Terminate("There it is.")))
    # Gaps without end: every other slice is empty.
    slices = [disc() if n % 2 == 0 else NOTHING for n in range(20)]
    run = reviewed(slices, ScriptedPolicy([content] * 9), looks=3)
    looked = [each for each in run.actions if each.look]
    assert [each.look for each in looked] == [1, 2, 3] and run.looks == 3
    assert [each.words.split(":")[0] for each in looked] == [f"second look {n} of 3" for n in (1, 2, 3)]
    assert len({each.index for each in looked}) == 3
    assert run.doubts(), "more was doubtful"


def test_the_policy_is_shown_the_mask_as_it_counts_within_the_region_of_interest() -> None:
    stack = dataclasses.replace(run_over(ONE_ODD, 1.0).slices, roi=((0, 0, 0), (SIDE - 1, 15, 19)))  # type: ignore[type-var]
    policy, limits = Clicker(), Settings(follow="memory", patience_mm=12.0, looks=1)
    run = Run(stack, "Segment it", policy, SEGMENTER, limits)
    run.click(4, Click(10.5 / SIDE, 14.5 / SIDE))
    run.grow()
    run.step()
    (look,) = [each for each in run.actions if each.look]
    inside, seen = stack.inside(10), policy.turns[0].picture
    assert look.index == 10 and inside is not None and 0 < run.mask(10).sum() < run.found[10].mask.sum()
    painted = (seen != stack.picture(10).rgb).any(axis=2)
    assert np.array_equal(painted, run.mask(10)) and not (painted & ~inside).any()
