"""The command line with a policy that plays a script and a segmenter that draws discs, lest models be tested, too."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.cli import commands as cli
from ibis_agent.cli import request, runner
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.policy.qwen25 import source
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.segmenter.contract import Abilities, PictureSegmenter
from scripted_policy import ScriptedPolicy

ROOT = Path(__file__).resolve().parents[2]
SHAPE, AFFINE = (40, 30, 8), np.array([[2.0, 0, 0, -40], [0, 2.0, 0, -30], [0, 0, 4.0, 5], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Found:
    """What a segmenter gives; see segmenter.Prediction."""

    mask: np.ndarray
    logits: np.ndarray
    score: float
    scores: np.ndarray | None = None


class DiscSegmenter(PictureSegmenter):
    """A disc about every positive click without those about negative ones; the discs grow with the logits."""

    identity = {"name": "discs", "sha256": "d15c"}  # noqa: RUF012
    can = Abilities(starting_mask=True)

    def started(self, mask: np.ndarray) -> Found:
        return Found(mask, np.ones((4, 4), np.float32), 1.0)

    def embed(self, rgb: np.ndarray) -> tuple[int, int]:
        return rgb.shape[0], rgb.shape[1]

    def predict(
        self, embedding: Any, clicks: Sequence[Click], previous_logits: np.ndarray | None = None
    ) -> Found:
        height, width = embedding
        rows, columns = np.mgrid[:height, :width]
        before = 0.0 if previous_logits is None else float(previous_logits[0, 0])
        mask = np.zeros((height, width), bool)
        for click in clicks:
            near = np.hypot(rows - click.y * height, columns - click.x * width) < 4 + before
            mask = mask | near if click.positive else mask & ~near
        return Found(mask, np.full((4, 4), before + 0.5, np.float32), 0.9)


def says(x: float, y: float, positive: bool = True, thinking: str = "there it is") -> str:
    return format_reply(Reply(thinking, Click(x, y, positive)))


ENDS = format_reply(Reply("it fits", Terminate("The liver is in this slice.")))
SCRIPT = [says(0.25, 0.5), says(0.5, 0.5, thinking="more of it"), says(0.7, 0.5, False, "too much"), ENDS]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell's background job ignores Ctrl-C, and so would the programs that are started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(name="scan")
def a_scan(tmp_path: Path) -> Path:
    path = tmp_path / "ct.nii.gz"
    values = np.random.default_rng(3).integers(-1000, 1000, SHAPE, np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


@pytest.fixture(name="use")
def in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., ScriptedPolicy]:
    """`use(replies)` makes the command play these replies; the policy it returns keeps what was asked."""
    folder = tmp_path / "policy"
    folder.mkdir()
    card = ModelCard(name="scripted", orientation=request.Orientation.RADIOLOGICAL, note="only a script")
    save_card(card, folder)
    monkeypatch.setattr(source, "demo_folder", lambda: folder)
    monkeypatch.setattr(request, "_check_models", lambda *_: None)
    monkeypatch.setattr(runner, "load_segmenter", lambda _: DiscSegmenter())

    def play(replies: Sequence[str] = SCRIPT) -> ScriptedPolicy:
        policy = ScriptedPolicy(replies, card)
        monkeypatch.setattr(runner, "load_policy", lambda *_: policy)
        return policy

    return play


def run(scan: Path, *options: object, question: str = "Segment the liver") -> int:
    return cli.main(["run", str(scan), "--prompt", question, *map(str, options)])


def types(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def recorded(folder: Path) -> Trajectory:
    return Trajectory.load(folder / "trajectory.json")
