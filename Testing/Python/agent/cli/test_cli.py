"""The command line as a person uses it: a run and its files, what fails on the way, the terminal.

Step by step: test_cli_steps; going on, replay, review: test_cli_records. With the real models, as another process:
test_cli_demo.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent import __main__ as command
from ibis_agent.actions import Reply, Terminate, format_reply
from ibis_agent.cli import commands as cli
from ibis_agent.cli import request, runner, terminal
from ibis_agent.cli.description import describe
from ibis_agent.errors import ModelError, OutputError
from ibis_agent.mask import MASK_FORMATS
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.scan.geometry import Orientation
from PIL import Image
from scan_files import save_nifti
from scripted_cli import AFFINE, SCRIPT, SHAPE, a_scan, in_use, interruptible, recorded, run, says  # noqa: F401
from scripted_policy import ScriptedPolicy


def test_a_run_leaves_mask_trajectory_and_review_page(use: Any, scan: Path, tmp_path: Path) -> None:
    use()
    out = tmp_path / "new" / "out"
    assert run(scan, "--slice", 3, "--out", out) == cli.OK
    assert {path.name for path in out.iterdir()} == {"mask.nii.gz", "trajectory.json", "review.html"}
    kept = recorded(out)
    assert [step.number for step in kept.steps] == [1, 2, 3, 4]
    assert kept.answer == "The liver is in this slice." and kept.source == "ct.nii.gz"
    image = nib.load(out / "mask.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE)
    voxels = np.asarray(image.dataobj)
    assert voxels.shape == SHAPE
    np.testing.assert_array_equal(kept.picture.geometry.extract(voxels) != 0, kept.mask)
    assert voxels[:, :, :3].sum() == voxels[:, :, 4:].sum() == 0
    assert kept.mask.any()


def test_thoughts_and_clicks_are_printed_with_area_change_and_seconds(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    assert run(scan, "--out", tmp_path / "out") == cli.OK
    printed = capsys.readouterr().out
    masks = [step.mask.sum() * 4 for step in recorded(tmp_path / "out").steps]
    assert "research use only" in printed and "only a script" in printed
    assert "there it is" in printed and "<think>" not in printed and "<action>" not in printed
    assert f"+ Positive Point (0.2500, 0.5000)  area {masks[0]} mm²" in printed
    assert all(len(line) <= 100 for line in printed.splitlines() if str(tmp_path) not in line)
    assert f"({masks[1] - masks[0]:+} mm²)" in printed and f"({masks[2] - masks[1]:+} mm²)" in printed
    assert "- Negative Point (0.7000, 0.5000)" in printed and " s (policy" in printed
    assert "The liver is in this slice." in printed
    assert str(tmp_path / "out" / "mask.nii.gz") in printed


def test_every_mask_format_holds_the_same_mask(use: Any, scan: Path, tmp_path: Path) -> None:
    import SimpleITK as sitk

    use()
    names = [name for name in MASK_FORMATS if name not in ("dicom-seg", "rtstruct")]
    formats = [part for name in names for part in ("--mask-format", name)]
    assert run(scan, "--out", tmp_path / "out", *formats) == cli.OK
    reference = np.asarray(nib.load(tmp_path / "out" / "mask.nii.gz").dataobj)
    for name in ("mask.nrrd", "mask.seg.nrrd"):
        image = sitk.ReadImage(str(tmp_path / "out" / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), reference)
    assert image.GetMetaData("Segment0_Name") == "Liver"
    picture = np.asarray(Image.open(tmp_path / "out" / "mask.png")) != 0
    np.testing.assert_array_equal(picture, recorded(tmp_path / "out").mask)


def test_a_photograph_gives_a_png_in_its_own_pixels(use: Any, tmp_path: Path) -> None:
    photograph = tmp_path / "slice.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)).save(photograph)
    use()
    assert run(photograph, "--out", tmp_path / "out") == cli.OK
    assert np.asarray(Image.open(tmp_path / "out" / "mask.png")).shape == (30, 50)


def test_the_mask_can_go_to_a_file_of_its_own(use: Any, scan: Path, tmp_path: Path) -> None:
    use()
    assert run(scan, "--out", tmp_path / "out", "--mask", tmp_path / "deep" / "liver.seg.nrrd") == cli.OK
    assert (tmp_path / "deep" / "liver.seg.nrrd").is_file()
    assert not list((tmp_path / "out").glob("mask*"))


def test_the_scan_itself_is_never_overwritten(
    use: Any, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    before = scan.read_bytes()
    assert run(scan, "--mask", scan) == cli.BAD_INPUT
    assert "overwrite its own input" in capsys.readouterr().err
    assert scan.read_bytes() == before


def test_without_out_every_run_gets_a_folder_of_its_own(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ct-axial-4", "ct-axial-4-2", "ct-axial-4-3"):
        use()
        assert run(scan) == cli.OK
        assert (tmp_path / "ibis-out" / name / "trajectory.json").is_file()


@pytest.mark.parametrize("volume", [False, True])
def test_the_results_folder_of_a_dicom_folder_has_every_part_of_its_name(
    tmp_path: Path, volume: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 1000, (2, 12, 12))
    folder = write_series(tmp_path / "1.2.840.113", pixels)
    made = request.check(request.Request(scan=folder, question="Segment the liver", volume=volume)).folder
    assert made.name.startswith("1.2.840.113-axial")


def test_plane_slice_window_and_orientation_choose_the_picture(use: Any, scan: Path, tmp_path: Path) -> None:
    policy = use()
    options = ("--plane", "coronal", "--slice", 7, "--window", "-1e2", "240", "--orientation", "upstream")
    assert run(scan, "--out", tmp_path / "out", *options) == cli.OK
    kept = recorded(tmp_path / "out").picture
    assert kept.window == (-100.0, 240.0)
    assert (kept.geometry.plane, kept.geometry.index) == ("coronal", 7)
    values = np.clip(np.rot90(np.asarray(nib.load(scan).dataobj)[:, 7, :]), -100, 240)
    expected = ((values + 100) / 340 * 255).astype(np.uint8)
    np.testing.assert_array_equal(policy.turns[0].picture[..., 0], expected)


@pytest.mark.parametrize("lowest", [-1000, 0], ids=["ct", "mr"])
def test_a_policy_s_window_for_ct_is_not_used_on_what_cannot_be_ct(
    use: Any, tmp_path: Path, lowest: int
) -> None:
    use()
    card = ModelCard(name="scripted", orientation=Orientation.RADIOLOGICAL, window=(-160.0, 240.0))
    save_card(card, tmp_path / "policy")
    path = tmp_path / "unnamed.nii.gz"
    values = np.random.default_rng(3).integers(lowest, 1000, SHAPE, np.int16)
    values[::3] = lowest  # air
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    run(path, "--out", tmp_path / "out", "--max-turns", 1)
    low, high = recorded(tmp_path / "out").picture.window
    assert (low, high) == (-160, 240) if lowest < 0 else (0 <= low < 50 and 950 < high <= 1000)


def test_history_on_the_command_line_goes_before_the_card_s(use: Any, scan: Path, tmp_path: Path) -> None:
    policy = use()
    assert run(scan, "--out", tmp_path / "out", "--history", 1) == cli.OK
    assert [len(turn.past) for turn in policy.turns] == [0, 1, 1, 1]


def test_the_limit_of_turns_ends_a_run_and_keeps_its_mask(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    assert run(scan, "--out", tmp_path / "out", "--max-turns", 2) == cli.OK
    assert len(recorded(tmp_path / "out").steps) == 2
    assert "limit of 2 turns" in capsys.readouterr().out


def test_the_same_action_over_and_over_ends_a_run(use: Any, scan: Path, tmp_path: Path) -> None:
    use([says(0.5, 0.5)] * 9)
    assert run(scan, "--out", tmp_path / "out", "--max-repeats", 4) == cli.OK
    assert len(recorded(tmp_path / "out").steps) == 3


def test_two_unreadable_replies_pause_the_run_and_keep_the_mask(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use([SCRIPT[0], "no idea", "still none"])
    assert run(scan, "--out", tmp_path / "out") == cli.PAUSED
    kept = recorded(tmp_path / "out")
    assert kept.status == "paused" and len(kept.steps) == 1 and kept.mask.any()
    assert (tmp_path / "out" / "mask.nii.gz").is_file()
    assert "could not be read" in capsys.readouterr().out


def test_json_prints_one_object_a_line_and_nothing_else(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    assert run(scan, "--out", tmp_path / "out", "--json") == cli.OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["asked", *["step"] * 4, "done"]
    asked = lines.pop(0)
    assert (
        asked["file"] == str(scan) and asked["scan"] == scan.name and asked["question"] == "Segment the liver"
    )
    assert asked["plane"] == "axial" and isinstance(asked["slice"], int) and len(asked["window"]) == 2
    assert "sha256" in asked["policy"] and "sha256" in asked["segmenter"]
    assert lines[0]["action"] == "Positive Point (0.2500, 0.5000)" and lines[0]["thinking"] == "there it is"
    assert lines[-1]["files"]["mask"] == str(tmp_path / "out" / "mask.nii.gz")
    assert lines[-1]["area_mm2"] == pytest.approx(lines[-1]["area_px"] * 4)


def test_quiet_prints_nothing(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    assert run(scan, "--out", tmp_path / "out", "--quiet") == cli.OK
    assert capsys.readouterr() == ("", "")


def test_escapes_in_a_thought_do_not_reach_the_terminal(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\033]0;owned\a\033[2Jlook\u202ehere\x9b31m"
    answer = format_reply(Reply("done", Terminate(evil)))
    use([says(0.5, 0.5, thinking=evil), answer])
    assert run(scan, "--out", tmp_path / "out", question=f"Segment {'the liver'}") == cli.OK
    printed = capsys.readouterr().out
    assert not set(printed) & {"\033", "\a", "\x9b", "\u202e"}
    assert "look" in printed
    assert recorded(tmp_path / "out").steps[0].thinking == evil


def test_ctrl_c_in_mid_thought_keeps_the_steps_so_far(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = use()

    def interrupted(turn: Any, on_text: Any = None, cancelled: Any = None) -> str:
        if turn.number == 3:
            on_text("<think>I was just ab")
            raise KeyboardInterrupt
        return ScriptedPolicy.reply(policy, turn, on_text, cancelled)

    monkeypatch.setattr(policy, "reply", interrupted)
    out = tmp_path / "my results"
    assert run(scan, "--out", out) == cli.INTERRUPTED
    assert [path.name for path in out.iterdir()] == ["trajectory.json"]
    assert len(recorded(out).steps) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2 steps" in error
    assert shlex.split(error)[-2:] == ["--resume", str(out / "trajectory.json")], "as it can be typed"


def test_ctrl_c_that_comes_when_a_step_is_done_is_not_forgotten(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    save, pressed = runner.Runner.save, list[int]()

    def and_press(self: runner.Runner) -> Path:
        path = save(self)
        if len(self.run.steps) == 2 and not pressed:
            pressed.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return path

    monkeypatch.setattr(runner.Runner, "save", and_press)
    assert run(scan, "--out", tmp_path / "out") == cli.INTERRUPTED
    assert "2 steps are kept" in capsys.readouterr().err and len(recorded(tmp_path / "out").steps) == 2


def test_a_stopped_run_leaves_no_mask_of_an_earlier_one_beside_its_record(
    use: Any, scan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    use()
    assert run(scan, "--out", out) == cli.OK
    use(SCRIPT[:1])
    assert run(scan, "--out", out) == cli.BAD_MODEL
    assert [path.name for path in out.iterdir()] == ["trajectory.json"] and len(recorded(out).steps) == 1
    use()
    assert run(scan, "--out", out) == cli.OK and len(list(out.iterdir())) == 3


def test_ctrl_c_while_loading_leaves_nothing(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "load_policy", interrupted)
    assert run(scan, "--out", tmp_path / "a" / "b") == cli.INTERRUPTED
    assert not (tmp_path / "a").exists()
    assert "nothing was written" in capsys.readouterr().err


def test_ctrl_c_while_the_command_itself_is_read_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "ibis_agent.cli.commands":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "ibis_agent.cli.commands")
    monkeypatch.setattr(sys, "argv", ["ibis-agent", "info", "policy"])
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    assert command.main() == cli.INTERRUPTED
    assert capsys.readouterr().err == "ibis-agent: stopped; nothing was written\n"


def test_ctrl_c_while_the_results_are_written_does_not_halve_them(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use()
    write = runner.write_mask

    def pressing(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(*arguments)

    monkeypatch.setattr(runner, "write_mask", pressing)
    assert run(scan, "--out", tmp_path / "out") == cli.OK
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_model_that_fails_midway_keeps_the_steps_so_far(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(SCRIPT[:2])  # the scripted policy raises a ModelError when it has no reply left
    assert run(scan, "--out", tmp_path / "out") == cli.BAD_MODEL
    assert len(recorded(tmp_path / "out").steps) == 2
    assert "no reply left" in capsys.readouterr().err


@pytest.mark.parametrize("read, kept", [("", 0), ("there", 0), ("more", 1)])
def test_a_reader_that_goes_away_ends_the_run_and_keeps_its_steps(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str, kept: int
) -> None:
    use()

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            if read in self.getvalue():
                raise BrokenPipeError
            return super().write(text)

        def fileno(self) -> int:
            return handle

    handle = os.open(tmp_path / "unread", os.O_CREAT | os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Pipe())
    assert run(scan, "--out", tmp_path / "out") == cli.UNREAD
    os.close(handle)
    assert (tmp_path / "out").exists() == bool(kept)
    assert not kept or len(recorded(tmp_path / "out").steps) == kept


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_run_without_streams_ends_like_any_other(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    use()
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys, stream, None)
    assert run(scan, "--out", tmp_path / "out", "--step") == cli.OK
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert run(tmp_path / "none.nii.gz") == cli.BAD_INPUT


def test_models_that_do_not_load_leave_no_folder_behind(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use()

    def fails(*_: object) -> None:
        raise ModelError("does not fit")

    monkeypatch.setattr(runner, "load_segmenter", fails)
    assert run(scan, "--out", tmp_path / "a" / "b", "--mask", tmp_path / "c" / "m.nii.gz") == cli.BAD_MODEL
    assert not (tmp_path / "a").exists() and not (tmp_path / "c").exists()


@given(st.text(max_size=80), st.integers(1, 7))
def test_streamed_thinking_is_the_thinking_of_the_whole_reply(thinking: str, size: int) -> None:
    whole = thinking.replace("<", "(")
    text = f"<think>{whole}</think>\n<action>Terminate</action>"
    stream = terminal.ThinkingStream()
    shown = "".join(stream.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert shown.strip() == whole.strip()


def test_streamed_text_is_broken_between_words_at_the_width() -> None:
    out = io.StringIO()
    screen = terminal.Screen(out)
    screen.width = 30
    for piece in ("one two thr", "ee four five ", "six sev", "en eight", " nine"):
        screen.flow(piece)
    screen.end_flow()
    lines = out.getvalue().splitlines()
    assert all(line.startswith("     ") and len(line) <= 30 for line in lines) and len(lines) == 2
    assert " ".join(out.getvalue().split()) == "one two three four five six seven eight nine"


def test_a_wrong_command_line_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["run", "x.png", "--prompt"], ["walk"], [], ["run", "x", "--slice", "two"]):
        with pytest.raises(SystemExit) as left:
            cli.main(wrong)
        assert left.value.code == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith("ibis-agent: ") and error.count("\n") == 1


def test_an_error_of_ours_is_told_as_such_with_its_trace(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    monkeypatch.setattr("ibis_agent.cli.description.describe", lambda _: 1 / 0)
    assert run(scan, "--out", tmp_path / "out") == cli.BUG
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error and error.splitlines()[-1].startswith(
        "ibis-agent: this is an error in"
    )


def test_a_full_disk_in_mid_run_keeps_the_last_whole_trajectory(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    save = runner.Runner.save

    def full_after_two(self: runner.Runner) -> Path:
        if len(self.run.steps) > 2:
            raise OutputError("cannot be written: no space left on device", file=self.task.folder)
        return save(self)

    monkeypatch.setattr(runner.Runner, "save", full_after_two)
    assert run(scan, "--out", tmp_path / "out") == cli.BAD_OUTPUT
    assert len(recorded(tmp_path / "out").steps) == 2
    assert "no space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "SCAN", "--prompt", "Segment the liver"],
        ["replay", "RECORD"],
        ["run", "SCAN", "--prompt", "Segment the liver", "--volume"],
    ],
)
def test_without_the_models_software_one_line_says_what_to_install(tmp_path: Path, words: list[str]) -> None:
    scan = save_nifti(tmp_path / "scan.nii.gz")
    record = Path(__file__).parents[4] / "IBISSlicer/Resources/Example/trajectory.json"
    given = [{"SCAN": str(scan), "RECORD": str(record)}.get(word, word) for word in words]
    missing = ["torch", "transformers", "sam2", "tokenizers", "safetensors", "hydra", "yaml"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r})); "
        f"from ibis_agent.cli.commands import main; sys.exit(main({given!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == cli.BAD_MODEL
    assert len(done.stderr.splitlines()) == 1 and "pip install 'ibis-agent[models]'" in done.stderr
    assert not (tmp_path / "ibis-out").exists()


def test_a_window_has_a_name(use: Any, scan: Path, tmp_path: Path) -> None:
    use()
    assert run(scan, "--window", "Lung", "--out", tmp_path / "named") == 0
    use()
    assert run(scan, "--window", "-1350", "150", "--out", tmp_path / "given") == 0
    assert recorded(tmp_path / "named").picture.window == recorded(tmp_path / "given").picture.window


def test_the_measures_are_told_in_print_record_page_and_json(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    assert run(scan, "--out", tmp_path / "out", question="How large is the liver?") == 0
    printed = " ".join(capsys.readouterr().out.split())
    made = recorded(tmp_path / "out")
    inside = np.asarray(nib.load(scan).dataobj)[
        np.asarray(nib.load(tmp_path / "out" / "mask.nii.gz").dataobj) != 0
    ]
    assert made.measurements["mean"] == pytest.approx(inside.mean(), abs=1e-3)
    assert made.measurements["deviation"] == pytest.approx(inside.std(ddof=1), abs=1e-3)
    assert made.measurements["area"] == made.mask.sum() * 4
    assert f"It measures {made.mask.sum() * 4} mm²" in printed and "in the plane" in printed
    page = (tmp_path / "out" / "review.html").read_text("utf-8")
    assert "Mean inside" in page and "It measures" in page
    use()
    assert run(scan, "--out", tmp_path / "json", "--json") == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["measurements"] == made.measurements


def test_a_dicom_scan_gets_dicom_results_that_refer_to_it(use: Any, tmp_path: Path) -> None:
    highdicom, pydicom = pytest.importorskip("highdicom"), pytest.importorskip("pydicom")
    raw = np.random.default_rng(0).integers(0, 2000, (6, 40, 30))
    folder = write_series(tmp_path / "ct", raw)
    formats = ("--mask-format", "dicom-seg", "--mask-format", "rtstruct", "--mask-format", "nii.gz")
    use()
    assert run(folder, "--out", tmp_path / "out", *formats) == 0
    mask = np.asarray(nib.load(tmp_path / "out" / "mask.nii.gz").dataobj)
    seg = highdicom.seg.segread(tmp_path / "out" / "mask.seg.dcm")
    assert (seg.pixel_array != 0).sum() == mask.sum() and seg.get_segment_description(
        1
    ).segment_label == "Liver"
    uids = {pydicom.dcmread(file).SOPInstanceUID for file in folder.iterdir()}
    rt = pydicom.dcmread(tmp_path / "out" / "mask.rtstruct.dcm")
    images = [contour.ContourImageSequence[0] for contour in rt.ROIContourSequence[0].ContourSequence]
    assert images and {image.ReferencedSOPInstanceUID for image in images} < uids


def test_dicom_results_of_another_scan_are_refused_before_any_model_is_loaded(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dicom-seg", "rtstruct"):
        assert run(scan, "--out", tmp_path / "out", "--mask-format", name) == 2
        assert "not DICOM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_prompt_of_a_cohort_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["cohort", str(tmp_path), "--out", "out", "--prompt", "the liver", "--prompt", "the spleen"])
    assert "may be given only once" in capsys.readouterr().err


def test_two_prompts_for_one_structure_are_one_run(use: Any, scan: Path, tmp_path: Path) -> None:
    use()
    assert run(scan, "--prompt", "Segment the liver", "--out", tmp_path / "out") == cli.OK
    assert (tmp_path / "out" / "mask.nii.gz").is_file() and not (
        tmp_path / "out" / "structures.json"
    ).exists()


def test_a_scan_unlike_those_of_the_training_is_warned_of_before_it_runs(tmp_path: Path) -> None:
    scan = save_nifti(tmp_path / "scan.nii.gz")

    def description(**more: Any) -> dict[str, str]:
        asked = request.Request(scan=scan, question="Segment the liver", out=tmp_path / "out", **more)
        return dict(describe(runner.Runner(asked).task))

    assert "coronal slices (trained on axial slices)" in description(plane="coronal")["caution"]
    assert "MR (trained on CT)" in description(modality="MR")["caution"]
    assert "caution" not in description(modality="CT")


@pytest.mark.parametrize("command", ["run", "cohort", "replay", "compare", "convert", "info", "mcp"])
def test_the_help_never_says_a_word_twice_in_a_row(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    words = capsys.readouterr().out.split()
    assert [word for word, after in itertools.pairwise(words) if word == after and word.isalpha()] == []
