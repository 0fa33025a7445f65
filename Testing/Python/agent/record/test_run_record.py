"""The record of a run on the side that must not lose it: back, undo, redo, reject, saving; no model needed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.actions import Click, Terminate
from ibis_agent.errors import InputError
from ibis_agent.record.pictures import picture_to_json
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.run_rows import clicks_of
from ibis_agent.record.steps import step_to_json
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.episode import Step
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture

GEOMETRY = PictureGeometry.of_picture(6, 8)
READY = {"status": "ready", "reason": "", "answer": None}


def head() -> dict[str, Any]:
    picture = Picture(np.zeros((6, 8, 3), np.uint8), GEOMETRY, None)
    return {
        "schema": "ibis-trajectory/1",
        "models": {"policy": {"name": "p", "sha256": ""}, "segmenter": {"name": "s", "sha256": ""}},
        "picture": picture_to_json(picture, "scan.png"),
        "limits": {"max_turns": 20, "max_repeats": 3},
    }


def step(uid: str, number: int, columns: int, answer: str | None = None) -> dict[str, Any]:
    mask = np.zeros((6, 8), bool)
    mask[:, :columns] = True
    action = Click(0.1, 0.1) if answer is None else Terminate(answer)
    made = Step(number, action, "policy", mask, None, 0.5, "because", "reply", "", {"total": 1.0})
    return {**step_to_json(made, GEOMETRY), "uid": uid}


@pytest.fixture
def run() -> RunRecord:
    """Three steps whose masks cover 1, 2 and 3 columns."""
    record = RunRecord("Segment it")
    record.open(head())
    for n in (1, 2, 3):
        record.extend(record.after, step(f"u{n}", n, n), READY)
    return record


def uids(run: RunRecord) -> list[str]:
    return [each["uid"] for each in run.steps]


def test_steps_and_masks_are_those_that_were_made(run: RunRecord) -> None:
    assert uids(run) == run.after == ["u1", "u2", "u3"]
    assert [int(run.mask(n).sum()) for n in range(4)] == [0, 6, 12, 18]
    assert [each.step for each in clicks_of(run, 2)] == [1, 2]


def test_back_undo_redo_choose_among_what_exists(run: RunRecord) -> None:
    run.back(1)
    assert uids(run) == ["u1"]
    run.undo()
    assert uids(run) == ["u1", "u2", "u3"]
    run.redo()
    assert uids(run) == ["u1"]


def test_a_new_step_after_going_back_replaces_the_later_ones_and_can_be_undone(run: RunRecord) -> None:
    assert run.extend(["u1"], step("new", 2, 5), READY)
    assert uids(run) == ["u1", "new"]
    assert not run.can_redo()
    run.undo()
    assert uids(run) == ["u1", "u2", "u3"]


def test_a_late_step_for_another_place_is_dropped(run: RunRecord) -> None:
    run.back(1)
    assert not run.extend(["u1", "u2"], step("late", 3, 4), READY)
    assert uids(run) == ["u1"]


def test_a_rejection_is_remembered_until_something_follows(run: RunRecord) -> None:
    run.reject()
    assert uids(run) == ["u1", "u2"]
    assert run.rejected is not None
    assert run.rejected["uid"] == "u3"
    run.extend(run.after, step("other", 3, 4), READY)
    assert run.rejected is None


def test_the_end_is_known_and_undone_with_its_step(run: RunRecord) -> None:
    ended = {"status": "ended", "reason": "The policy ended.", "answer": "Liver"}
    run.extend(run.after, step("end", 4, 3, "Liver"), ended)
    assert (run.status, run.answer) == ("ended", "Liver")
    run.undo()
    assert (run.status, run.answer) == ("ready", None)


def test_going_back_to_an_end_that_a_click_had_followed_is_that_end_again(run: RunRecord) -> None:
    ended = {"status": "ended", "reason": "The policy ended.", "answer": "Liver"}
    run.extend(run.after, step("end", 4, 3, "Liver"), ended)
    run.extend(run.after, step("more", 5, 4), READY)
    run.back(4)
    assert (run.status, run.reason, run.answer) == ("ended", "The policy ended.", "Liver")
    assert Trajectory.from_json(run.trajectory()).answer == "Liver"


def test_going_back_in_a_volume_keeps_what_was_answered_before() -> None:
    run, end = RunRecord("Segment it", "volume"), {"kind": "terminate", "answer": "Liver"}
    for uid, kind, steps in (("a", "click", [{}]), ("b", "done", [{"action": end}]), ("c", "grow", [])):
        made = {"uid": uid, "kind": kind, "slice": 4, "by": "policy", "words": f"{kind}.", "steps": steps}
        run.extend(run.after, made, {"status": "ready", "answer": "Liver" if uid != "a" else None})
    with pytest.raises(InputError, match="not made by the policy"):
        run.reject()
    assert len(run.steps) == 3
    run.back(2)
    assert (run.status, run.answer) == ("ready", "Liver")
    run.reject()
    assert run.answer is None and run.rejected is not None and run.rejected["uid"] == "b"


def test_a_second_look_is_rejected_with_what_grew_from_it_however_often_that_was_stopped() -> None:
    run, look = RunRecord("Segment it", "volume"), [{"action": {"kind": "click"}}]
    for uid, kind, index, steps, number in (
        ("a", "click", 3, look, 0),
        ("b", "grow", 3, [], 0),
        ("c", "click", 7, look, 1),
        ("d", "grow", 7, [], 0),
        ("e", "grow", 7, [], 0),
    ):
        made = {"uid": uid, "kind": kind, "slice": index, "by": "policy", "words": "", "steps": steps}
        run.extend(run.after, {**made, "look": number}, READY)
        assert run.can_reject() is (uid != "b")
    run.reject()
    assert [each["uid"] for each in run.steps] == ["a", "b"]
    assert run.rejected is not None and run.rejected["uid"] == "c"


def test_a_pause_without_a_step_changes_only_how_the_run_stands(run: RunRecord) -> None:
    run.settle({"status": "paused", "reason": "Not understood."})
    assert (run.status, uids(run)) == ("paused", ["u1", "u2", "u3"])


def test_everything_survives_being_saved_with_the_way_back(run: RunRecord) -> None:
    run.reject()
    again = RunRecord.from_json(json.loads(json.dumps(run.to_json())))
    assert again.session == run.session
    assert uids(again) == ["u1", "u2"]
    assert again.rejected == run.rejected
    assert np.array_equal(again.mask(), run.mask())
    again.undo()
    assert uids(again) == ["u1", "u2", "u3"]


def test_the_record_is_a_trajectory_that_others_can_read(run: RunRecord) -> None:
    read = Trajectory.from_json(run.trajectory())
    assert [each.action for each in read.steps] == [Click(0.1, 0.1)] * 3
    assert np.array_equal(read.mask, run.mask())


@given(st.lists(st.sampled_from(["back", "undo", "redo", "reject", "step"]), max_size=30))
def test_undo_always_leads_back_to_the_beginning(moves: list[str]) -> None:
    record = RunRecord("Segment it")
    record.open(head())
    for n, move in enumerate(moves):
        if move == "step":
            record.extend(record.after, step(f"s{n}", len(record.after) + 1, 1), READY)
        elif move == "back":
            record.back(len(record.after) // 2)
        elif move == "reject" and record.after:
            record.reject()
        elif move in ("undo", "redo"):
            getattr(record, move)()
    before = record.to_json()["state"]
    count = 0
    while record.can_undo():
        record.undo()
        count += 1
    assert record.after == []
    for _ in range(count):
        record.redo()
    assert record.to_json()["state"] == before


@pytest.mark.parametrize(
    "harm",
    [
        lambda saved: saved.pop("schema"),
        lambda saved: saved.update(schema="ibis-run/9"),
        lambda saved: saved.update(known={}),
        lambda saved: saved.update(head={}),
        lambda saved: saved["state"].update(steps=["u9"]),
        lambda saved: saved.update(undo=7),
    ],
)
def test_a_damaged_record_is_refused_with_the_reason(run: RunRecord, harm: Any) -> None:
    saved = run.to_json()
    harm(saved)
    with pytest.raises(InputError, match="saved run"):
        RunRecord.from_json(saved)


def test_going_to_a_step_that_is_not_there_is_refused(run: RunRecord) -> None:
    with pytest.raises(InputError):
        run.back(4)
    with pytest.raises(InputError):
        run.mask(4)
