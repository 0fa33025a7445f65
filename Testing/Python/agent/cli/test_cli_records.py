"""What the command does with the record of a run: going on, replay, review, conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.cli import commands as cli
from ibis_agent.cli import runner
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.geometry import Orientation
from scripted_cli import SCRIPT, DiscSegmenter, Found, a_scan, in_use, interruptible, recorded, run, types  # noqa: F401


def test_a_stopped_run_goes_on_where_it_stood(use: Any, scan: Path, tmp_path: Path, monkeypatch: Any) -> None:
    use()
    assert run(scan, "--out", tmp_path / "whole") == cli.OK
    use(SCRIPT[:2])
    assert run(scan, "--out", tmp_path / "out") == cli.BAD_MODEL
    use(SCRIPT[2:])
    assert cli.main(["run", "--resume", str(tmp_path / "out" / "trajectory.json")]) == cli.OK
    whole, parts = recorded(tmp_path / "whole"), recorded(tmp_path / "out")
    assert [step.action for step in whole.steps] == [step.action for step in parts.steps]
    for one, other in zip(whole.steps, parts.steps, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
    assert (tmp_path / "out" / "mask.nii.gz").read_bytes() == (
        tmp_path / "whole" / "mask.nii.gz"
    ).read_bytes()


def test_a_run_that_ended_is_not_resumed_alone_but_by_hand(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    file = str(tmp_path / "out" / "trajectory.json")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    use()
    with monkeypatch.context() as without:
        without.setattr(runner, "load_segmenter", lambda _: pytest.fail("a model was loaded for nothing"))
        assert cli.main(["run", "--resume", file]) == cli.BAD_INPUT
    assert "has ended" in capsys.readouterr().err
    assert cli.main(["run", "--resume", file, "--max-turns", "9"]) == cli.BAD_INPUT, "not by its turns"
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    types(monkeypatch, "b", "+ .1 .1", "a")
    assert cli.main(["run", "--resume", file, "--step"]) == cli.OK
    assert [step.by for step in recorded(tmp_path / "out").steps][-2:] == ["person", "person"]


def test_a_resumed_run_that_is_stopped_before_its_first_step_stays_as_it_was(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--max-turns", 2)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    policy = use()

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, "reply", interrupted)
    file = str(tmp_path / "out" / "trajectory.json")
    assert cli.main(["run", "--resume", file, "--max-turns", "9"]) == cli.INTERRUPTED
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("question", ["", "肝"])
def test_a_recorded_question_that_this_policy_cannot_be_asked_is_refused_before_it_is_loaded(
    use: Any,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    question: str,
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--max-turns", 2)
    file = tmp_path / "out" / "trajectory.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "question": question, "status": "ready"}))
    save_card(
        ModelCard(name="english", orientation=Orientation.RADIOLOGICAL, script="LATIN"), tmp_path / "policy"
    )
    monkeypatch.setattr(runner, "load_segmenter", lambda _: pytest.fail("a model was loaded for nothing"))
    capsys.readouterr()
    assert cli.main(["run", "--resume", str(file)]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert str(file) in error and "question" in error and "new run" in error


@pytest.mark.parametrize("option", [["--slice", "2"], ["--plane", "axial"], ["--prompt", "another"]])
def test_a_resumed_run_cannot_be_asked_for_another_picture_or_question(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    assert cli.main(["run", "--resume", str(tmp_path / "out" / "trajectory.json"), *option]) == cli.BAD_INPUT
    assert "trajectory.json" in capsys.readouterr().err


def test_replay_rebuilds_the_masks_and_says_when_they_differ(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    file = str(tmp_path / "out" / "trajectory.json")
    mask = tmp_path / "again.nii.gz"
    capsys.readouterr()
    assert cli.main(["replay", file, "--mask", str(mask)]) == cli.OK
    said = capsys.readouterr().out
    assert said.count("the same mask") == 4 and "All 4 masks match the record." in said
    assert cli.main(["replay", file, "--json"]) == cli.OK
    told = json.loads(capsys.readouterr().out)
    assert told == {"event": "replay", "equal": True, "masks": 4, "different": {}, "warnings": []}
    assert mask.read_bytes() == (tmp_path / "out" / "mask.nii.gz").read_bytes()

    class Other(DiscSegmenter):
        identity = {"name": "other", "sha256": "0"}  # noqa: RUF012

        def predict(self, embedding: Any, clicks: Any, previous_logits: Any = None) -> Found:
            found = super().predict(embedding, clicks, previous_logits)
            return Found(np.roll(found.mask, 1), found.logits, found.score)

    monkeypatch.setattr(runner, "load_segmenter", lambda _: Other())
    assert cli.main(["replay", file]) == cli.DIFFERENT
    printed = capsys.readouterr().out
    assert "not the recorded segmenter" in printed and "pixels" in printed
    assert "masks differ from the record" in printed
    assert cli.main(["replay", file, "--json"]) == cli.DIFFERENT
    assert not json.loads(capsys.readouterr().out)["equal"]


def test_review_writes_the_page_beside_the_trajectory_or_where_it_is_wanted(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--no-review")
    file = str(tmp_path / "out" / "trajectory.json")
    assert not (tmp_path / "out" / "review.html").exists()
    capsys.readouterr()
    assert cli.main(["review", file]) == cli.OK
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "review.html")
    assert cli.main(["review", file, "--out", str(tmp_path / "page.html")]) == cli.OK
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "out" / "review.html").read_bytes()


def test_the_folder_of_a_run_stands_for_its_record(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--no-review")
    folder = str(tmp_path / "out")
    assert cli.main(["review", folder]) == cli.OK and (tmp_path / "out" / "review.html").exists()
    assert cli.main(["replay", folder]) == cli.OK
    assert cli.main(["convert", folder, "--out", str(tmp_path / "published.json")]) == cli.OK
    capsys.readouterr()
    assert cli.main(["info", folder, "--json"]) == cli.OK
    assert "Trajectory" in json.loads(capsys.readouterr().out)


def test_convert_goes_to_the_published_format_and_back(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--window", -160, 240)
    theirs, ours = tmp_path / "published.json", tmp_path / "again.json"
    assert cli.main(["convert", str(tmp_path / "out" / "trajectory.json"), "--out", str(theirs)]) == cli.OK
    steps = json.loads(theirs.read_text())["trajectory"]
    assert [step["positive"] for step in steps] == [True, True, False]
    assert cli.main(["convert", str(theirs), "--out", str(ours), "--scans", str(scan.parent)]) == cli.OK
    first, again = recorded(tmp_path / "out"), Trajectory.load(ours)
    assert again.question == first.question and again.answer == first.answer
    one, other = (each.picture.geometry.embed_mask(each.mask) for each in (first, again))
    np.testing.assert_array_equal(one, other)
    assert again.to_json() == first.to_json(), (
        "clicks between pixels, the frame and the thinking come back too"
    )
    changed = json.loads(theirs.read_text())
    changed["trajectory"][0]["coords_original"] = [3, 4]
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    plain = tmp_path / "plain.json"
    arguments = ["convert", str(tmp_path / "changed.json"), "--out", str(plain), "--scans", str(scan.parent)]
    assert cli.main(arguments) == cli.OK
    width = Trajectory.load(plain).picture.geometry.width
    assert Trajectory.load(plain).steps[0].action.x == 3.5 / width, "what somebody changed is what counts"
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.json").write_text("[]")
    capsys.readouterr()
    for arguments, said in (
        ([theirs, "--out", ours, "--scans", tmp_path / "empty"], "ct.nii.gz"),
        ([theirs, "--out", ours, "--scans", tmp_path / "empty"], "--scans"),
        ([theirs, "--out", theirs, "--scans", scan.parent], "overwrite"),
        ([theirs, "--out", ours, "--scans", scan.parent, "--prompt", "a" * 10_000], "longer"),
        ([tmp_path / "none.json", "--out", ours], "no trajectory"),
    ):
        before = theirs.read_bytes(), ours.read_bytes()
        assert cli.main(["convert", *map(str, arguments)]) == cli.BAD_INPUT
        assert said in capsys.readouterr().err
        assert (theirs.read_bytes(), ours.read_bytes()) == before


def test_info_tells_of_a_scan_and_of_a_trajectory(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    capsys.readouterr()
    assert cli.main(["info", str(scan), "--json"]) == cli.OK
    told = json.loads(capsys.readouterr().out)["Scan"]
    assert told["spacing"] == [2, 2, 4] and len(told["size"]) == 3 and isinstance(told["reading"], list)
    assert told["grey values"].keys() == {"type", "lowest", "highest"}
    assert cli.main(["info", str(scan)]) == cli.OK
    assert "2 × 2 × 4 mm" in capsys.readouterr().out
    assert cli.main(["info", str(tmp_path / "out" / "trajectory.json"), "--json"]) == cli.OK
    recorded = json.loads(capsys.readouterr().out)["Trajectory"]
    assert recorded["steps"] == {"all": 4, "by_a_person": 0} and recorded["picture"]["plane"] == "axial"
    assert cli.main(["info", str(tmp_path / "out" / "trajectory.json")]) == cli.OK
    assert "Segment the liver" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mask.nii.gz", "review.html"])
def test_what_no_run_has_left_in_the_folder_is_not_overwritten(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Such as a reference mask beside the scan."""
    use()
    out = tmp_path / "case"
    out.mkdir()
    (out / name).write_text("mine")
    assert run(scan, "--out", out) == cli.BAD_INPUT
    assert name in capsys.readouterr().err
    assert [(each.name, each.read_text()) for each in out.iterdir()] == [(name, "mine")]


def test_no_command_overwrites_the_scan_or_a_record_with_its_result(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    record = tmp_path / "out" / "trajectory.json"
    before = scan.read_bytes(), record.read_bytes()
    monkeypatch.setattr(runner, "load_segmenter", lambda _: pytest.fail("a model was loaded for nothing"))
    for command, *place in (
        ("review", "--out", scan),
        ("review", "--out", record),
        ("replay", "--mask", scan),
        ("replay", "--mask", tmp_path / "mask.txt"),
        ("convert", "--out", scan),
    ):
        capsys.readouterr()
        assert cli.main([command, str(record), *map(str, place)]) == cli.BAD_INPUT, (command, place)
        assert Path(place[-1]).name in capsys.readouterr().err
        assert (scan.read_bytes(), record.read_bytes()) == before
