"""Measuring whole volumes: 3D Dice of propagation and of the agent, with and without its second looks.

The network is an exact one that finds bright things that touch (bright_volumes), so that the figures are known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import numpy as np
import pytest
from bright_volumes import NOTHING, SEGMENTER, Bright, Clicker, disc
from ibis_agent.mask.masks import dice
from ibis_agent.run.settings import Settings
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import stack_of

from training import evaluate
from training.evaluation import volumes

LIMITS = Settings(follow="memory", patience_mm=12.0, looks=4)


def made(slices: list[np.ndarray]) -> tuple[Scan, np.ndarray]:
    """A scan whose object is as bright as its truth is True."""
    truth = np.stack(slices).transpose()
    voxels = np.where(truth, 200, 10).astype(np.int16)
    return Scan(voxels, np.diag([-1.0, -1.0, 3.0, 1.0]), "volume", Path("made.nii.gz"), "made", "CT"), truth


@pytest.fixture
def one_liver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every phantom is one liver in slices 2 to 17, and slices 10 and 11 are not found from their neighbours."""
    scan, truth = made([disc() if 2 <= n <= 17 else NOTHING for n in range(20)])
    monkeypatch.setattr(volumes, "phantom_scan", lambda seed: (scan, {"liver": truth}))
    monkeypatch.setattr(Bright, "blind", frozenset({10, 11}))


def test_propagation_is_measured_from_one_click_where_the_object_is_largest() -> None:
    slices = [disc(6) if n < 8 else disc(9) if n == 8 else NOTHING for n in range(20)]
    slices[18] = disc(4)  # further than the patience: never found
    scan, truth = made(slices)
    stack = stack_of(scan, window=volumes.WINDOW)
    found = truth.copy()
    found[:, :, 18] = False
    assert volumes.oracle_propagation(stack, truth, SEGMENTER, follow="memory") == pytest.approx(
        dice(found, truth)
    )
    assert dice(found, truth) < 1


def test_the_agent_is_measured_before_and_after_its_second_looks(one_liver: None) -> None:
    figures = volumes.measure_phantoms(2, 7, Clicker(), SEGMENTER, LIMITS)
    missed = dice(np.repeat([True, False], [14, 2]), np.ones(16, bool))
    assert figures["propagation"]["dsc"] == figures["propagation"]["per_structure"]["liver"]
    assert figures["propagation"]["dsc"] == pytest.approx(missed)
    agent = figures["agent"]
    assert agent["dsc_without_second_looks"] == pytest.approx(missed)
    assert (agent["dsc"], agent["looks"]) == (1.0, 2.0)
    assert agent["per_structure"]["liver"]["dsc"] == 1.0


def test_the_command_writes_the_figures_that_it_prints(
    one_liver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def policy(*_: Any) -> Any:
        return Clicker()

    monkeypatch.setattr(segmenters, "open", lambda *_: SEGMENTER)
    monkeypatch.setattr(policies, "open", policy)
    file = tmp_path / "figures.json"
    command = ["--phantom-volumes", "1", "--seed", "7", "--follow", "memory", "--json", str(file)]
    assert evaluate.main(command) == 0
    kept = json.loads(file.read_text("utf-8"))
    assert (
        set(kept["agent"]) >= {"dsc", "dsc_without_second_looks", "looks"} and kept["propagation"]["dsc"] > 0
    )
    measured = kept.pop("measured")
    assert measured["volumes"] == "1 phantoms, seed 7" and measured["segmenter"]["name"] == "bright"
    assert json.loads(capsys.readouterr().out) == kept
    assert evaluate.main([*command, "--oracle-only"]) == 0
    assert "agent" not in json.loads(file.read_text("utf-8"))
