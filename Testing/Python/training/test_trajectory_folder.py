"""A folder of trajectories over time: finished, added to, shared out, and honest about what is left out."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Box, Terminate
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import encode_rle
from PIL import Image

from training.common.pictures import Choice, Shown, Source, phantom_groups
from training.trajectories import generate, options, reasoning_checks, templates
from training.trajectories.turns import turn_row

ROOT = Path(__file__).resolve().parents[3]


class Truthful:
    """A segmenter that gives the pixels around a click that are about as bright; quick, and never perfect."""

    def __init__(self) -> None:
        self.identity = {"name": "truthful", "sha256": "0", "architecture": "none"}
        self.embedded = 0

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        self.embedded += 1
        return rgb

    def predict(self, rgb: np.ndarray, clicks: Any, previous: Any = None) -> Any:
        grey = rgb[:, :, 0].astype(int)
        mask = np.zeros(grey.shape, bool)
        rows, columns = np.ogrid[: grey.shape[0], : grey.shape[1]]
        for click in clicks:
            row, column = int(click.y * grey.shape[0]), int(click.x * grey.shape[1])
            near = (rows - row) ** 2 + (columns - column) ** 2 < 400
            alike = near & (abs(grey - grey[row, column]) < 20)
            mask = mask | alike if click.positive else mask & ~alike
        return type("P", (), {"mask": mask, "logits": None, "score": 0.5})()


def _made(out: Path, count: int, segmenter: Any = None, shard: str = "1/1", *more: str) -> dict[str, Any]:
    given = [
        "--phantoms",
        str(count),
        "--seed",
        "5",
        "--out",
        str(out),
        "--per-picture",
        "2",
        "--max-steps",
        "2",
    ]
    args = options.arguments().parse_args([*given, "--shard", shard, *more])
    groups, problems = options.groups_for(args)
    return generate.make(
        options.work_of(args), groups, problems, segmenter=segmenter or Truthful(), shard=args.shard
    )


def _files(out: Path) -> dict[str, bytes]:
    return {str(each.relative_to(out)): each.read_bytes() for each in out.rglob("*") if each.is_file()}


def test_a_finished_folder_is_not_begun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = _made(tmp_path / "a", 2)
    before = _files(tmp_path / "a")
    again = Truthful()
    assert _made(tmp_path / "a", 2, again) == report
    assert again.embedded == 0 and _files(tmp_path / "a") == before
    assert "already finished" in capsys.readouterr().err


def test_scans_that_came_later_are_added_and_what_was_there_stays(tmp_path: Path) -> None:
    _made(tmp_path / "grown", 2)
    before = (tmp_path / "grown" / generate.NAME).read_bytes()
    added = Truthful()
    report = _made(tmp_path / "grown", 3, added)
    assert added.embedded == 1
    assert (tmp_path / "grown" / generate.NAME).read_bytes().startswith(before)
    assert report == _made(tmp_path / "whole", 3)
    assert _files(tmp_path / "grown") == _files(tmp_path / "whole")


def test_scans_cannot_be_taken_away_from_a_folder(tmp_path: Path) -> None:
    _made(tmp_path / "a", 2)
    with pytest.raises(InputError, match=r"no longer among the scans.*phantom-5-00001"):
        _made(tmp_path / "a", 1)


def test_shards_do_their_own_scans_and_the_last_one_puts_all_together(tmp_path: Path) -> None:
    one, two = Truthful(), Truthful()
    assert _made(tmp_path / "parts", 3, one, "1/2") == {}
    assert not (tmp_path / "parts" / generate.NAME).exists()
    assert _made(tmp_path / "parts", 3, two, "2/2") == _made(tmp_path / "whole", 3)
    assert (one.embedded, two.embedded) == (2, 1)
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")


def test_every_question_that_is_left_out_has_a_reason(tmp_path: Path) -> None:
    report = _made(tmp_path / "a", 3, None, "1/1", "--least-iou", "0.99")
    left = report["left_out"]["each"]
    assert left and all("below --least" in each["reason"] or "--per-" in each["reason"] for each in left)
    assert any("below --least-iou 0.99" in each["reason"] for each in left)


def test_what_a_picture_shows_and_nobody_asks_for_has_a_reason_too(tmp_path: Path) -> None:
    report = _made(tmp_path / "a", 3, None, "1/1", "--per-picture", "1", "--least-area", "0.02")
    asked = {
        tuple(each["id"].split("/"))
        for each in generate.read_trajectories(tmp_path / "a")
        if each["target_rle"]
    }
    left = {(each["picture"], each["structure"]): each["reason"] for each in report["left_out"]["each"]}
    assert not asked & left.keys()
    for group in phantom_groups(3, 5):
        shown = Source(group, Choice(least_area=0.02)).show(("picture", 0))
        assert isinstance(shown, Shown)
        there = {(group.key, name) for name in (*shown.truths, *shown.traces)}
        assert there <= asked | left.keys()
        assert all("pixels, below --least-area 0.02" in left[group.key, name] for name in shown.traces)
    assert any("--per-picture 1" in reason for reason in left.values())


def test_an_end_on_a_mask_that_is_not_good_is_not_called_a_good_one() -> None:
    for style in templates.STYLES:
        for seed in range(20):
            thoughts, answers = [], []
            for overlap in (0.70, 0.79, 0.80, 0.95):
                rng = np.random.default_rng(seed)
                moment = templates.Moment("liver", Terminate(""), False, True, overlap)
                thoughts.append(templates.thinking(moment, style, rng))
                answers.append(templates.answer("liver", True, style, rng, overlap))
            assert thoughts[0] == thoughts[1] != thoughts[2] == thoughts[3]
            assert answers[0] == answers[1] != answers[2] == answers[3]
            assert "covers the liver well" not in thoughts[0]


def test_a_teacher_may_not_praise_a_mask_that_is_not_good() -> None:
    sample = {"target_rle": "something", "turns": [], "question": "Segment the liver"}
    praise = json.dumps({"thinking": "The green area covers the liver well.", "step": "terminate"})
    for overlap, refused in ((0.7, True), (0.9, False)):
        turn = {"number": 2, "kind": "terminate", "iou_before": overlap}
        if refused:
            with pytest.raises(ValueError, match="praises"):
                reasoning_checks.checked(praise, sample, turn)
        else:
            assert reasoning_checks.checked(praise, sample, turn)
        told = reasoning_checks.messages_for(sample, turn, np.zeros((8, 8, 3), np.uint8))
        assert ("not exact" in str(told)) == refused


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, sys, time\n"
        "from training.common.processes import end_with_parent\n"
        "def work(out):\n"
        "    end_with_parent()\n"
        "    open(out, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    context.Process(target=work, args=(sys.argv[1],)).start()\n"
        "    time.sleep(600)\n"
    )
    note = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "Logic")])}
    parent = subprocess.Popen([sys.executable, str(script), str(note)], env=environment)
    while not (note.is_file() and note.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    worker = int(note.read_text())
    parent.kill()
    parent.wait()
    gone = Path(f"/proc/{worker}")
    for _ in range(1200):
        if not gone.exists() or "\nState:\tZ" in (gone / "status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlived its parent")


def test_a_teacher_is_shown_the_box_and_argues_for_it() -> None:
    truth = np.zeros((64, 64), bool)
    truth[40:60, 40:60] = True
    turn = turn_row(1, np.zeros_like(truth), 0.0, Box(0.6, 0.6, 0.95, 0.95), "Old words.", 0.7, None)
    sample = {"target_rle": encode_rle(truth), "turns": [turn], "question": "Segment the liver"}
    _, asked = reasoning_checks.messages_for(sample, turn, np.zeros((64, 64, 3), np.uint8))
    url = asked["content"][0]["image_url"]["url"]
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
    rows, columns = np.nonzero(seen[:, :, 0] > 100)
    scale = reasoning_checks.SIDE
    edges = (columns.min() / scale, rows.min() / scale, columns.max() / scale, rows.max() / scale)
    assert np.abs(np.array(edges) - (0.6, 0.6, 0.95, 0.95)).max() < 0.01 and '"box"' in str(asked)
    words = (
        "The liver lies in the lower right part of the picture, and a box around all of it tells its reach."
    )
    for step, thinking, refused in (
        ("box", words, ""),
        ("positive", words, "another step than box"),
        ("box", "A positive point in the middle of the liver should do it.", "contradicts"),
        ("box", "In the upper left part of the picture lies the liver; I frame it.", "another place"),
    ):
        answer = json.dumps({"thinking": thinking, "step": step})
        if refused:
            with pytest.raises(ValueError, match=refused):
                reasoning_checks.checked(answer, sample, turn)
        else:
            assert reasoning_checks.checked(answer, sample, turn) == thinking
