"""How commands end: a line and status 1 for what is wrong, 130 for Ctrl-C, and no work before what can be checked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ibis_agent.errors import Cancelled, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from PIL import Image

from training import check_cases
from training.bench import rollouts as bench_rollouts
from training.bench import steps as bench
from training.bench import volume as bench_volume
from training.common.commands import STOPPED, ending
from training.demo import (
    dataset,
    train_memory,
    train_policy,
    train_segmenter,
)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("is bad", file="a.nii", remedy="Correct it."), "error: a.nii: is bad. Correct it.", ""),
        (Cancelled("stopped at update 3"), STOPPED, "stopped at update 3."),
        (KeyboardInterrupt(), STOPPED, "gone"),
    ],
)
def test_a_command_ends_with_a_line_and_its_status(
    error: BaseException, status: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, ending("gone"):
        raise error
    assert ended.value.code == status and capsys.readouterr().err.strip() == said


def test_a_graphics_card_without_room_is_said_and_other_faults_are_not_hidden() -> None:
    with pytest.raises(SystemExit, match="out of memory"), ending():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="sizes"), ending():
        raise RuntimeError("sizes do not match")


def test_ctrl_c_while_cases_are_read_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / name)
    (tmp_path / "labels.json").write_text(json.dumps({"255": "liver"}))

    def impatient(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(check_cases, "load_case", impatient)
    monkeypatch.setattr(sys, "argv", ["check_cases", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        check_cases.main()
    assert ended.value.code == STOPPED


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (bench, ["--json", "no/such/folder/f.json"], "there is no such folder"),
        (bench_volume, ["--json", "."], "is a folder, not a file"),
        (bench_rollouts, ["--json", "no/such/folder/f.json"], "there is no such folder"),
        (dataset, ["--count", "0"], "must be at least 1"),
        (dataset, ["--clips", "0"], "must be at least 1"),
        (train_memory, ["--start", "nowhere.pt"], "there is no such checkpoint"),
        (train_memory, ["--start", __file__, "--clips", "nowhere"], "contains no slices"),
        (train_policy, ["--data", "nowhere"], "contains no slices"),
        (train_policy, ["--start", "nowhere"], "config.json is missing"),
        (train_segmenter, ["--data", "nowhere"], "contains no slices"),
        (train_segmenter, ["--start", "nowhere.safetensors"], "there is no such file"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    command: ModuleType, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit, match=said):
        command.main()
    assert not list(tmp_path.iterdir())
