"""A folder of results belongs to one run at a time, also where many begin at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ibis_agent.cli.claim import LOCK_NAME, Claim, new_folder
from ibis_agent.errors import OutputError

LOGIC = str(Path(__file__).resolve().parents[4] / "Logic")


def test_no_two_runs_that_begin_at_once_get_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "out" / "ct-axial-4"), range(64)))
    assert len(set(folders)) == 64 and all(each.is_dir() for each in folders)
    assert {each.name for each in folders} == {"ct-axial-4", *(f"ct-axial-4-{n}" for n in range(2, 65))}


def test_a_claimed_folder_is_refused_to_others_until_it_is_given_back(tmp_path: Path) -> None:
    first = Claim(tmp_path)
    with pytest.raises(OutputError, match=r"another run.*--out"):
        Claim(tmp_path)
    first.release()
    first.release()
    Claim(tmp_path).release()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_run_that_was_killed_leaves_no_claim(tmp_path: Path) -> None:
    program = "import sys, os; from pathlib import Path; from ibis_agent.cli.claim import Claim\n"
    program += "claim = Claim(Path(sys.argv[1])); print('claimed', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": LOGIC},
    )
    assert other.stdout is not None and other.stdout.readline()
    with pytest.raises(OutputError):
        Claim(tmp_path)
    other.kill()
    other.communicate()
    Claim(tmp_path).release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        new_folder(tmp_path / "file" / "below")
