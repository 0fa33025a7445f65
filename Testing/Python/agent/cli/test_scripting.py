"""What docs/scripting.md promises to scripts: the fields of every object, and the exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bright_volumes import SEGMENTER, Clicker, two_things
from ibis_agent.cli import exit_codes, runner
from ibis_agent.cli.cohort import Cohort
from ibis_agent.cli.commands import main
from ibis_agent.errors import InputError, ModelError, OutputError
from scripted_cli import ENDS, SCRIPT, a_scan, in_use, interruptible, types  # noqa: F401
from scripted_cohort import start_thread

PAGE = (Path(__file__).resolve().parents[4] / "docs/scripting.md").read_text(encoding="utf-8")


def promised(command: str, event: str) -> set[str]:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {command} | `{event}` |"))
    return {"event", *re.findall(r"`(\w+)`", row.split("|")[3])}


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    assert main([*map(str, arguments), "--json"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check(command: str, objects: list[dict[str, Any]]) -> None:
    for each in objects:
        assert set(each) == promised(command, each["event"]), each["event"]


def test_no_help_says_a_word_twice_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "cohort", "replay", "info", "mcp"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert re.search(r"(?<!-)\b([a-z]+)\s+\1\b", text) is None, command


def test_a_run_on_a_slice_says_what_is_promised(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use()
    types(monkeypatch, "", "", "", "")
    told = said(capsys, "run", scan, "--prompt", "Segment the liver", "--step", "--out", tmp_path / "out")
    assert {each["event"] for each in told} == {"asked", "live", "step", "done"}
    check("`run`", told)
    again = said(capsys, "replay", tmp_path / "out" / "trajectory.json")
    check("`replay`", again)
    assert again[0]["equal"] is True


def test_a_run_over_a_volume_says_what_is_promised(
    use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import nibabel

    use()
    monkeypatch.setattr(runner, "load_segmenter", lambda _: SEGMENTER)
    monkeypatch.setattr(runner, "load_policy", lambda *_: Clicker())
    voxels = np.stack([np.where(each, 200, 10) for each in two_things()]).astype(np.int16).transpose()
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 3.0, 1.0])), tmp_path / "made.nii.gz")
    asked = ["--prompt", "Segment the liver", "--volume", "--follow", "memory", "--window", "0", "255"]
    told = said(capsys, "run", tmp_path / "made.nii.gz", *asked, "--out", tmp_path / "out")
    assert {each["event"] for each in told} == {"asked", "action", "slice", "done"}
    check("`run --volume`", told)


def test_a_cohort_says_what_is_promised_and_7_where_a_scan_failed(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use()
    (scan.parent / "bad.nii.gz").write_bytes(b"not a scan")
    run = Cohort.run
    monkeypatch.setattr(
        Cohort, "run", lambda self, workers, start, tell: run(self, workers, start_thread, tell)
    )
    asked = ["cohort", f"{scan.parent}/*.nii.gz", "--prompt", "Segment the liver", "--out", tmp_path / "out"]
    told = said(capsys, *asked, code=exit_codes.SOME_FAILED)
    assert [each["event"] for each in told] == ["scan", "scan", "done"]
    check("`cohort`", told)


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (InputError("x"), 2), (ModelError("x"), 3), (OutputError("x"), 4), (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1), (OSError("x"), 2),
    ],
)  # fmt: skip
def test_every_failure_is_an_object_with_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, problem: BaseException, code: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr("ibis_agent.cli.info.inspect", fails)
    told = said(capsys, "info", "anything", code=code)
    check("all", told)
    assert told[0]["exit_code"] == code


def test_a_paused_run_ends_with_5(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(["?", "?", "?", "?", *SCRIPT, ENDS])
    told = said(
        capsys,
        "run",
        scan,
        "--prompt",
        "Segment the liver",
        "--out",
        tmp_path / "out",
        code=exit_codes.PAUSED,
    )
    assert told[-1]["status"] == "paused"


def test_the_page_and_the_help_list_the_same_exit_codes() -> None:
    listed = [int(row) for row in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert listed == [int(row) for row in re.findall(r"^  (\d+) ", exit_codes.EXIT_CODES, re.MULTILINE)]
    known = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert set(listed) == known
