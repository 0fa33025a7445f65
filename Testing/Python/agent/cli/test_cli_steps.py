"""`ibis-agent run --step`: the person's word between two actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.actions import Click, Terminate
from ibis_agent.cli import commands as cli
from ibis_agent.cli import terminal
from ibis_agent.errors import InputError
from ibis_agent.record.trajectory import Trajectory
from scripted_cli import ENDS, SCRIPT, a_scan, in_use, interruptible, run, says, types  # noqa: F401


def by_hand(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str
) -> tuple[int, Trajectory | None]:
    types(monkeypatch, *lines)
    code = run(scan, "--out", tmp_path / "out", "--step")
    file = tmp_path / "out" / "trajectory.json"
    return code, Trajectory.load(file) if file.exists() else None


def test_enter_goes_on_to_the_end_and_accepts_there(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, "", "", "", "")
    assert code == cli.OK and kept is not None
    assert len(kept.steps) == 4 and kept.status == "ended"


def test_accept_ends_the_run_with_the_mask_of_that_step(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, "", "a")
    assert code == cli.OK and kept is not None
    assert [step.by for step in kept.steps] == ["policy", "policy", "person"]
    assert kept.status == "ended" and (tmp_path / "out" / "mask.nii.gz").is_file()


def test_back_and_on_again_gives_what_the_policy_says_next(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    policy = use([*SCRIPT[:3], says(0.1, 0.1, thinking="another way"), ENDS])
    code, kept = by_hand(scan, tmp_path, monkeypatch, "", "", "b 2", "", "q")
    assert code == cli.OK and kept is not None
    assert [step.thinking for step in kept.steps] == ["there it is", "another way"]
    assert [turn.number for turn in policy.turns] == [1, 2, 3, 2]


def test_an_own_click_in_pixels_falls_on_that_pixel(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    _, kept = by_hand(scan, tmp_path, monkeypatch, "- 39 29 px", "+ 0.5, 0.25", "a")
    assert kept is not None
    first, second = kept.steps[1], kept.steps[2]
    assert first.by == "person" and isinstance(first.action, Click) and not first.action.positive
    assert kept.picture.geometry.pixel(first.action.x, first.action.y) == (29, 39)
    assert second.action == Click(0.5, 0.25, True)


def test_replace_puts_the_persons_click_in_place_of_a_step_and_drops_the_rest(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    _, kept = by_hand(scan, tmp_path, monkeypatch, "", "", "2 + 0.3 0.3", "a")
    assert kept is not None
    assert [step.action for step in kept.steps] == [Click(0.25, 0.5), Click(0.3, 0.3), Terminate("")]


def test_undo_and_redo_go_through_what_was_done(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    _, kept = by_hand(scan, tmp_path, monkeypatch, "+ .9 .9", "b", "u", "u", "r", "q")
    assert kept is not None and [step.by for step in kept.steps] == ["policy", "person"]


def test_reject_tells_the_policy(use: Any, scan: Path, tmp_path: Path, monkeypatch: Any) -> None:
    policy = use()
    by_hand(scan, tmp_path, monkeypatch, "x", "", "q")
    assert "Positive Point (0.2500, 0.5000)" in policy.turns[1].note


def test_discard_leaves_nothing(use: Any, scan: Path, tmp_path: Path, monkeypatch: Any) -> None:
    use()
    assert by_hand(scan, tmp_path, monkeypatch, "", "d") == (cli.OK, None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "garbage",
    ["what?", "+", "+ 2 2", "+ nan inf", "- 40 3 px", "b 9999999999", "99 + .1 .1", "0 + .1 .1", "u", "\x00"],
)
def test_what_is_not_understood_is_explained_and_asked_again(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], garbage: str
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, *(["u"] if garbage == "u" else []), garbage, "?", "q")
    assert code == cli.OK and kept is not None and "reject: undo" in capsys.readouterr().out


def test_the_end_of_the_input_keeps_everything(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, "")
    assert code == cli.OK and kept is not None and len(kept.steps) == 2
    assert (tmp_path / "out" / "mask.nii.gz").is_file()


def test_after_a_pause_the_person_can_click_or_ask_again(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use(["?", "?", ENDS])
    code, kept = by_hand(scan, tmp_path, monkeypatch, "+ .5 .5", "", "")
    assert code == cli.OK and kept is not None
    assert [step.by for step in kept.steps] == ["person", "policy"] and kept.status == "ended"


@given(st.text(max_size=60))
def test_no_typed_text_does_more_than_be_refused(text: str) -> None:
    try:
        terminal.read_command(text, 30, 40)
    except InputError as error:
        assert str(error)
