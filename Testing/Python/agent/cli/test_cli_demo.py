"""The command line with the demo models, as another process: a run, its replay, Ctrl-C, info."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import pytest
from ibis_agent.cli import commands as cli
from ibis_agent.errors import ModelError
from ibis_agent.record.trajectory import Trajectory

ROOT = Path(__file__).resolve().parents[4]


def recorded(folder: Path) -> Trajectory:
    return Trajectory.load(folder / "trajectory.json")


@pytest.fixture(scope="module")
def demo_models() -> None:
    """Skip where the demo models are not in this checkout."""
    try:
        policies.find().check()
        segmenters.find().inspect()
    except ModelError:
        pytest.skip("the demo models are not in this checkout")


def command(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ibis_agent", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "Logic"), "PYTHONUNBUFFERED": "1"},
        # A shell's background job ignores Ctrl-C, and what it starts would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantom") / "scan.nii.gz"
    subprocess.run(
        [sys.executable, "-m", "training.phantoms", "--seed", "7", "--out", path], cwd=ROOT, check=True
    )
    return path


def test_the_demo_run_ends_with_a_mask_that_replays_bit_for_bit(
    demo_models: None, phantom: Path, tmp_path: Path
) -> None:
    ran = command("run", phantom, "--prompt", "Segment the liver", "--out", tmp_path / "out")
    out, error = ran.communicate(timeout=900)
    assert ran.returncode == cli.OK, error
    assert "Point (0." in out and "not for patients" in out
    kept = recorded(tmp_path / "out")
    assert kept.steps and kept.mask.any()
    again = command("replay", tmp_path / "out" / "trajectory.json")
    out, error = again.communicate(timeout=900)
    assert again.returncode == cli.OK, out + error


def test_ctrl_c_in_a_real_run_keeps_its_steps(demo_models: None, phantom: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = command(
        "run", phantom, "--prompt", "Segment the liver", "--out", out, "--step", stdin=subprocess.PIPE
    )
    while not (out / "trajectory.json").exists() and ran.poll() is None:
        time.sleep(0.1)
    ran.send_signal(signal.SIGINT)
    _, error = ran.communicate(timeout=300)
    assert ran.returncode == cli.INTERRUPTED and "Traceback" not in error
    assert "1 step is kept" in error and len(recorded(out).steps) == 1


def test_info_says_that_the_demo_models_load(demo_models: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == cli.OK
    told = json.loads(capsys.readouterr().out)
    assert all(facts["loads"]["loads"] for facts in told.values()) and len(told) == 2
    assert told["Demo policy"]["model"]["parameters"] > 10**5
    assert "not for patients" in told["Demo policy"]["note"]
