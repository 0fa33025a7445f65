"""A folder of results belongs to one run at a time, also where many begin at once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ibis_agent.cli import commands as cli
from ibis_agent.cli.claim import LOCK_NAME, Claim, new_folder
from ibis_agent.errors import OutputError
from scripted_cli import a_scan, in_use, interruptible, run  # noqa: F401

LOGIC = str(Path(__file__).resolve().parents[4] / "Logic")


def test_no_two_runs_that_begin_at_once_get_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "out" / "ct-axial-4"), range(64)))
    assert len(set(folders)) == 64 and all(each.is_dir() for each in folders)
    assert {each.name for each in folders} == {"ct-axial-4", *(f"ct-axial-4-{n}" for n in range(2, 65))}


@contextlib.contextmanager
def another_run(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has claimed the folder."""
    program = "import sys, os; from pathlib import Path; from ibis_agent.cli.claim import Claim\n"
    program += "claim = Claim(Path(sys.argv[1])); print('claimed', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": LOGIC},
    )
    assert other.stdout is not None and other.stdout.readline()
    try:
        yield other
    finally:
        other.communicate()


def test_a_claimed_folder_is_refused_to_others_until_it_is_given_back(tmp_path: Path) -> None:
    with another_run(tmp_path):
        with pytest.raises(OutputError, match=r"another run.*--out"):
            Claim(tmp_path)
        assert (tmp_path / LOCK_NAME).exists()
    assert not (tmp_path / LOCK_NAME).exists(), "its end gives it back"
    mine = Claim(tmp_path)
    mine.release()
    mine.release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_run_that_was_killed_leaves_no_claim(tmp_path: Path) -> None:
    with another_run(tmp_path) as other:
        other.kill()
        other.wait()
        Claim(tmp_path).release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        new_folder(tmp_path / "file" / "below")


def test_a_run_into_a_folder_that_another_is_writing_is_refused_before_anything_is_done(
    tmp_path: Path, use: Any, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    (tmp_path / "out").mkdir()
    with another_run(tmp_path / "out"):
        assert run(scan, "--out", tmp_path / "out") == cli.BAD_OUTPUT
        assert "another run is writing" in capsys.readouterr().err
        assert [each.name for each in (tmp_path / "out").iterdir()] == [LOCK_NAME]
    assert run(scan, "--out", tmp_path / "out") == cli.OK
    assert not (tmp_path / "out" / LOCK_NAME).exists()


def test_runs_that_nobody_named_a_folder_for_have_one_each(
    tmp_path: Path, use: Any, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        use()
        assert run(scan) == cli.OK
    made = sorted(each.name for each in (tmp_path / "ibis-out").iterdir())
    assert made == ["ct-axial-4", "ct-axial-4-2", "ct-axial-4-3"]
    assert all((tmp_path / "ibis-out" / name / "mask.nii.gz").is_file() for name in made)
