"""`ibis-agent run --volume` at the terminal: step by step, left and gone on with, stopped, replayed, reviewed.

The network is an exact one that finds bright things that touch (bright_volumes).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from bright_volumes import SEGMENTER, Clicker, disc, two_things
from ibis_agent.actions import Reply, Terminate, format_reply
from ibis_agent.cli import commands as cli
from ibis_agent.cli import request, runner
from ibis_agent.cli.info import inspect
from ibis_agent.cli.session import Session, Stopped
from ibis_agent.cli.terminal import Screen
from ibis_agent.mask.masks import encode_rle
from ibis_agent.record import published
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Watch
from scripted_policy import ScriptedPolicy


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    voxels = np.stack([np.where(each, 200, 10) for each in two_things()]).astype(np.int16).transpose()
    path = tmp_path / "made.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, scan_file: Path) -> Callable[..., str]:
    """Run the command with typed lines; what it printed."""
    monkeypatch.setattr(request, "_check_models", lambda *_: None)
    monkeypatch.setattr(runner, "load_segmenter", lambda asked: SEGMENTER)
    monkeypatch.setattr(runner, "load_policy", lambda folder, asked: Clicker())

    def command(*arguments: str, typed: str = "", code: int = 0) -> str:
        out = io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        monkeypatch.setattr("sys.stdout", out)
        given = ["run", str(scan_file), "--volume", "--follow", "memory", "--window", "0", "255", *arguments]
        if "--resume" in arguments:
            given = [each for each in given if each not in ("--window", "0", "255")]
        assert cli.main(given) == code
        return out.getvalue()

    return command


def kinds(recorded: Trajectory) -> list[tuple[str, int]]:
    return [(each.kind, each.index) for each in recorded.actions]


def test_step_by_step_at_the_terminal_the_person_corrects_any_slice_and_undoes(
    terminal: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    typed = "?\nall\n20 + 5 5 px\n4 - 16 16 px\n4g\nu\nu\n99 + 0.5 0.5\nb\na\n"
    said = terminal("--prompt", "Segment the liver", "--step", "--out", str(out), typed=typed)
    assert "add a positive click on slice 57" in said and "propagated from slice" in said
    assert "not in the range" in said and "now after action" in said
    recorded = Trajectory.load(out / "trajectory.json")
    assert recorded.actions[-1].index != 4 and recorded.mask_of(4).any()
    facts = inspect(out / "trajectory.json")["Trajectory"]
    assert facts["object"].startswith("in slices 4 to 15, ") and facts["object"].endswith(" mL")
    assert (out / "review.html").is_file() and (out / "mask.nii.gz").is_file()


def test_a_click_is_moved_at_the_terminal_and_the_later_ones_there_go(
    terminal: Callable[..., str], tmp_path: Path
) -> None:
    typed = "20 + 5 5 px\n20 + 16 16 px\n20.1 - 6 7 px\n20.3 + 6 7 px\nq\n"
    said = terminal("--prompt", "Segment the liver", "--step", "--out", str(tmp_path / "out"), typed=typed)
    assert "click 1 moved" in said and "no such click on this slice (got 3)" in said
    recorded = Trajectory.load(tmp_path / "out" / "trajectory.json")
    assert recorded.actions[-1].index == 20 and recorded.actions[-1].by == "person"
    assert [each.positive for each in recorded.actions[-1].clicks] == [False]


def test_what_is_nowhere_leaves_no_mask_of_an_earlier_question(
    terminal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    terminal(
        "--prompt", "Segment the liver", "--out", str(out), "--mask-format", "nii.gz", "--mask-format", "nrrd"
    )
    assert np.asanyarray(nibabel.load(out / "mask.nii.gz").dataobj).any() and (out / "mask.nrrd").is_file()
    never = ScriptedPolicy([format_reply(Reply("Nothing.", Terminate("It is not there.")))] * 40)
    monkeypatch.setattr(runner, "load_policy", lambda folder, asked: never)
    said = terminal("--prompt", "Segment the spleen", "--out", str(out))
    assert "It is not there." in said and not (out / "mask.nrrd").exists()
    assert not np.asanyarray(nibabel.load(out / "mask.nii.gz").dataobj).any()


def test_a_run_that_was_left_is_resumed_with_its_scan(
    terminal: Callable[..., str], tmp_path: Path, scan_file: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    own = ["--looks", "1", "--max-turns", "4"]
    terminal("--prompt", "Segment the liver", *own, "--step", "--out", str(first), typed="\n\n\nq\n")
    left = Trajectory.load(first / "trajectory.json")
    assert left.status == "ready" and len(left.actions) == 4
    terminal("--resume", str(first / "trajectory.json"), "--out", str(second))
    ended = Trajectory.load(second / "trajectory.json")
    assert ended.status == "ended" and kinds(ended)[:4] == kinds(left)
    assert ended.settings == left.settings and left.settings.looks == 1
    whole = tmp_path / "whole"
    terminal("--prompt", "Segment the liver", "--out", str(whole))
    assert np.array_equal(Trajectory.load(whole / "trajectory.json").volume(), ended.volume())
    terminal("--resume", str(second / "trajectory.json"), "--plane", "sagittal", code=2)
    kept = (second / "mask.nii.gz").stat().st_mtime_ns
    terminal("--resume", str(second / "trajectory.json"), "--out", str(second), code=2)  # it has ended
    assert (second / "mask.nii.gz").stat().st_mtime_ns == kept, "its results are left as they are"


def test_resuming_with_other_models_than_recorded_is_told(
    terminal: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "first" / "trajectory.json"
    terminal("--prompt", "Segment the liver", "--step", "--out", str(path.parent), typed="all\nb\nq\n")
    assert "note" not in terminal("--resume", str(path), "--out", str(tmp_path / "same"))
    record = json.loads(path.read_text())
    for role in ("policy", "segmenter"):
        record["models"][role] = {"name": f"an older {role}", "sha256": "0" * 64}
    other = next(each for each in record["slices"] if each["picture"]["geometry"]["index"] == 6)
    other["mask_rle"] = encode_rle(disc(3))
    path.write_text(json.dumps(record))
    said = terminal("--resume", str(path), "--out", str(tmp_path / "other"))
    for role in ("policy", "segmenter"):
        assert f"not the recorded {role}" in said and f"an older {role}" in said
    assert re.search("these slices differ from the record: 6(?![,0-9])", " ".join(said.split()))


def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(
    terminal: Callable[..., str], tmp_path: Path, scan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request.Request(
        scan=scan_file,
        question="Segment the liver",
        window=(0, 255),
        out=tmp_path / "out",
        volume=True,
        follow="memory",
    )
    session = Session(runner.Runner(asked), Screen(io.StringIO()))
    session.load()
    on_progress = session._watch.progress
    stopping = Watch(
        session._watch.action,
        lambda progress, found: (on_progress(progress, found), setattr(session.stopper, "asked", True)),
        cancelled=lambda: session.stopper.asked,
    )
    session._watch = stopping
    with pytest.raises(Stopped, match=r"made.nii.gz --resume"):
        session.go()
    recorded = Trajectory.load(tmp_path / "out" / "trajectory.json")
    assert recorded.actions[-1].stopped and len(recorded.actions[-1].ways) == 1


def test_a_range_and_a_region_given_at_the_terminal_bound_the_mask(
    terminal: Callable[..., str], tmp_path: Path
) -> None:
    region = ["--roi", "0", "20", "8", "31", "0", "23"]
    terminal("--prompt", "Segment the liver", "--out", str(tmp_path / "out"), "--range", "6", "12", *region)
    mask = np.asanyarray(nibabel.load(tmp_path / "out" / "mask.nii.gz").dataobj) != 0
    truth = np.stack(two_things()).transpose()
    inside = np.zeros_like(truth)
    inside[:21, 8:, 6:13] = True
    assert np.array_equal(mask, truth & inside) and mask.any()
    said = terminal("--prompt", "Segment the liver", "--looks", "-1", code=cli.BAD_INPUT)
    assert not said
    terminal("--prompt", "Segment the liver", "--range", "6", "99", code=cli.BAD_INPUT)


def test_a_range_of_one_slice_leaves_a_mask_in_the_whole_scan(
    terminal: Callable[..., str], tmp_path: Path
) -> None:
    terminal("--prompt", "Segment the liver", "--out", str(tmp_path / "out"), "--range", "8", "8")
    mask = np.asanyarray(nibabel.load(tmp_path / "out" / "mask.nii.gz").dataobj) != 0
    truth = np.stack(two_things()).transpose()
    truth[:, :, :8] = truth[:, :, 9:] = False
    assert np.array_equal(mask, truth) and mask.any()


def test_the_record_of_a_volume_is_replayed_and_reviewed_by_the_other_commands(
    terminal: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    terminal("--prompt", "Segment the liver", "--out", str(out), "--no-review")
    record, again, page = out / "trajectory.json", tmp_path / "again.nii.gz", tmp_path / "page.html"
    assert not (out / "review.html").exists()
    assert cli.main(["replay", str(record), "--mask", str(again)]) == cli.OK
    masks = [np.asanyarray(nibabel.load(each).dataobj) for each in (out / "mask.nii.gz", again)]
    assert np.array_equal(*masks) and masks[0].any()
    assert cli.main(["review", str(record), "--out", str(page)]) == cli.OK
    assert "Segment the liver" in page.read_text("utf-8")
    changed = json.loads(record.read_text("utf-8"))
    row = next(each for each in changed["slices"] if each["mask_rle"])
    row["mask_rle"] = encode_rle(disc(2))
    record.write_text(json.dumps(changed), "utf-8")
    assert cli.main(["replay", str(record)]) == cli.DIFFERENT


def test_a_volume_whose_voxels_have_no_size_is_told_in_voxels_and_pixels(
    terminal: Callable[..., str], scan_file: Path, tmp_path: Path
) -> None:
    image = nibabel.load(scan_file)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    raw = bytearray(image.to_bytes())
    raw[80:92] = bytes(12)  # pixdim along i, j, k
    scan_file.write_bytes(gzip.compress(bytes(raw)))
    out = tmp_path / "out"
    said = terminal("--prompt", "Segment the liver", "--out", str(out))
    assert "no voxel size" in said and " voxels in slices" in said and " px" in said
    assert "mm²" not in said and "mL" not in said
    record = json.loads((out / "trajectory.json").read_text())
    assert record["volume"]["ml"] is None
    assert {row["area_mm2"] for row in record["slices"] if row["area_px"]} == {None}
    assert " mL" not in inspect(out / "trajectory.json")["Trajectory"]["object"]
    assert Trajectory.load(out / "trajectory.json").ml is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_whatever_ends_a_volume_run_it_is_gone_on_with_from_its_last_action(
    terminal: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    class Ended(Clicker):
        def reply(self, *asked: object) -> str:
            said = super().reply(*asked)  # type: ignore[arg-type]
            if len(self.turns) == 3:
                os.kill(os.getpid(), getattr(signal, name))
            return said

    whole, out = tmp_path / "whole", tmp_path / "out"
    terminal("--prompt", "Segment the liver", "--out", str(whole))
    before = signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        with monkeypatch.context() as ended:
            ended.setattr(runner, "load_policy", lambda folder, asked: Ended())
            terminal("--prompt", "Segment the liver", "--out", str(out), code=cli.INTERRUPTED)
    finally:
        assert signal.signal(getattr(signal, name), before) is signal.default_int_handler
    assert "2 actions are kept" in capsys.readouterr().err
    assert len(Trajectory.load(out / "trajectory.json").actions) == 2
    given = ["--resume", str(out / "trajectory.json"), "--out", str(out)]
    terminal(*given)
    ended_run, straight = (Trajectory.load(each / "trajectory.json") for each in (out, whole))
    assert kinds(ended_run) == kinds(straight) and np.array_equal(ended_run.volume(), straight.volume())
    assert {each.name for each in out.iterdir()} == {"trajectory.json", "mask.nii.gz", "review.html"}


def test_a_volume_run_that_was_killed_is_gone_on_with_without_saying_that_it_is_a_volume(
    terminal: Callable[..., str], tmp_path: Path, scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    terminal("--prompt", "Segment the liver", "--out", str(whole))
    asked = request.Request(
        scan=scan_file, question="Segment the liver", window=(0, 255), out=out, volume=True, follow="memory"
    )
    killed = runner.Runner(asked)
    killed.load()
    for _ in range(9):
        killed.do(killed.run.step)
    killed.give_back()  # as the end of a process does; nothing else is written
    record = out / "trajectory.json"
    assert (out / "trajectory.json.journal").is_file()
    assert inspect(record)["Trajectory"]["actions"].startswith("9, ")
    assert cli.main(["replay", str(record)]) == cli.OK
    assert cli.main(["run", "--resume", str(record)]) == cli.BAD_INPUT
    assert "made.nii.gz" in capsys.readouterr().err, "the scan is not in the record"
    assert cli.main(["run", str(scan_file), "--resume", str(record), "--quiet"]) == cli.OK
    ended, straight = (Trajectory.load(each / "trajectory.json") for each in (out, whole))
    assert kinds(ended) == kinds(straight) and np.array_equal(ended.volume(), straight.volume())
    assert not (out / "trajectory.json.journal").exists()


def test_a_volume_is_converted_to_the_published_format_slice_by_slice(
    terminal: Callable[..., str], tmp_path: Path
) -> None:
    out, theirs = tmp_path / "out", tmp_path / "published.json"
    terminal("--prompt", "Segment the liver", "--step", "--out", str(out), typed="all\n9 + 5 5 px\na\n")
    assert cli.main(["convert", str(out / "trajectory.json"), "--out", str(theirs)]) == cli.OK
    recorded = Trajectory.load(out / "trajectory.json")
    clicked = sorted({each.index for each in recorded.actions if each.kind == "click"})
    found = published.load(theirs)
    assert [each.nii_data["slice_idx"] for each in found if each.nii_data] == clicked and len(clicked) > 1
    assert all(each.steps and each.steps[-1].mask.any() for each in found)
