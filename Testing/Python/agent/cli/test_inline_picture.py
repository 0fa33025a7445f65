"""`run --step` shows the slice with its mask between the lines, where the terminal can show a picture."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.cli import commands as cli
from ibis_agent.cli import inline_picture
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.picture import overlay
from PIL import Image
from scripted_cli import a_scan, in_use, interruptible, run, types  # noqa: F401

NOISE = np.random.default_rng(1).integers(
    0, 256, (90, 70, 3), dtype=np.uint8
)  # more than one piece of base64


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(text: str) -> list[np.ndarray]:
    """The pictures in what was written, as kitty puts them together."""
    pictures, pieces = [], ""
    for more, piece in re.findall(r"\033_G[^;]*m=([01]);([^\033]*)\033\\", text):
        pieces += piece
        if more == "0":
            pictures.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(pieces)))))
            pieces = ""
    return pictures


def test_kitty_gets_the_picture_in_pieces_of_at_most_4096_bytes() -> None:
    text = inline_picture.escapes(NOISE, "kitty")
    np.testing.assert_array_equal(shown(text)[0], NOISE)
    assert max(map(len, re.findall(r";([^\033;]*)\033", text))) <= 4096
    assert text.count("q=2") == 1  # or it would answer into the person's input


def test_iterm2_gets_it_in_one_with_its_size() -> None:
    size, data = re.findall(
        r"\033\]1337;File=inline=1;size=(\d+);[^:]*:([^\a]*)\a", inline_picture.escapes(NOISE, "iterm2")
    )[0]
    png = base64.b64decode(data)
    assert len(png) == int(size)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), NOISE)


@pytest.mark.parametrize(
    ("environment", "understood"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({}, None),
    ],
)
def test_a_terminal_is_known_by_the_names_it_gives_itself(
    environment: dict[str, str], understood: str | None
) -> None:
    assert inline_picture.protocol(environment) == understood


def test_every_step_is_shown_with_its_mask(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use()
    types(monkeypatch, "", "", "a")
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setattr("sys.stdout", out := Terminal())
    assert run(scan, "--out", tmp_path / "out", "--step") == cli.OK
    kept = Trajectory.load(tmp_path / "out" / "trajectory.json")
    expected = [overlay(kept.picture.rgb, step.mask) for step in kept.steps[:3]]
    found = shown(out.getvalue())
    assert len(found) == 3
    for picture, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(picture, wanted)


def test_a_pipe_gets_no_picture(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    types(monkeypatch, "", "a")
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert run(scan, "--out", tmp_path / "out", "--step") == cli.OK
    assert "\033_G" not in capsys.readouterr().out
