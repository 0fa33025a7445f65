"""The command line as a person uses it: a run and its files, the person's word between steps, Ctrl-C, replay.

The policy plays a script and the segmenter is a small exact one, so that what is tested is the command. With the
real models, as another process: test_cli_demo.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent import __main__ as command
from ibis_agent import cli, request, runner, terminal
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import InputError, ModelError, OutputError
from ibis_agent.geometry import Orientation
from ibis_agent.model_card import ModelCard, save_card
from ibis_agent.policy import ScriptedPolicy
from ibis_agent.trajectory import Trajectory
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHAPE, AFFINE = (40, 30, 8), np.array([[2.0, 0, 0, -40], [0, 2.0, 0, -30], [0, 0, 4.0, 5], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Found:
    """What a segmenter gives; see segmenter.Prediction."""

    mask: np.ndarray
    logits: np.ndarray
    score: float


class DiscSegmenter:
    """A disc about every positive click without those about negative ones; the discs grow with the logits."""

    identity = {"name": "discs", "sha256": "d15c"}  # noqa: RUF012

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


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "ct.nii.gz"
    values = np.random.default_rng(3).integers(-1000, 1000, SHAPE, np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., ScriptedPolicy]:
    """`use(replies)` makes the command play these replies; the policy it returns keeps what was asked."""
    folder = tmp_path / "policy"
    folder.mkdir()
    card = ModelCard(name="scripted", orientation=request.Orientation.RADIOLOGICAL, note="only a script")
    save_card(card, folder)
    monkeypatch.setattr(request, "demo_policy", lambda: folder)
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


# ---- a run and its files ---------------------------------------------------------------------------------


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
    formats = [part for name in request.MASK_FORMATS for part in ("--mask-format", name)]
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
    assert "overwrite the scan" in capsys.readouterr().err
    assert scan.read_bytes() == before


def test_without_out_every_run_gets_a_folder_of_its_own(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ct-axial-4", "ct-axial-4-2", "ct-axial-4-3"):
        use()
        assert run(scan) == cli.OK
        assert (tmp_path / "ibis-out" / name / "trajectory.json").is_file()


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
    assert [line["event"] for line in lines] == ["step"] * 4 + ["done"]
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


# ---- what fails on the way -------------------------------------------------------------------------------


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
            if name == "ibis_agent.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "ibis_agent.cli")
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


# ---- the person's word between steps ---------------------------------------------------------------------


def by_hand(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str
) -> tuple[int, Trajectory | None]:
    types(monkeypatch, *lines)
    code = run(scan, "--out", tmp_path / "out", "--step")
    file = tmp_path / "out" / "trajectory.json"
    return code, Trajectory.load(file) if file.exists() else None


def test_enter_goes_on_to_the_end_and_accepts_there(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, "", "", "", "")
    assert code == cli.OK and kept is not None
    assert len(kept.steps) == 4 and kept.status == "ended"


def test_accept_ends_the_run_with_the_mask_of_that_step(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, "", "a")
    assert code == cli.OK and kept is not None
    assert [step.by for step in kept.steps] == ["policy", "policy", "person"]
    assert kept.status == "ended" and (tmp_path / "out" / "mask.nii.gz").is_file()


def test_back_and_on_again_gives_what_the_policy_says_next(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    policy = use([*SCRIPT[:3], says(0.1, 0.1, thinking="another way"), ENDS])
    code, kept = by_hand(scan, tmp_path, monkeypatch, "", "", "b 2", "", "q")
    assert code == cli.OK and kept is not None
    assert [step.thinking for step in kept.steps] == ["there it is", "another way"]
    assert [turn.number for turn in policy.turns] == [1, 2, 3, 2]


def test_an_own_click_in_pixels_falls_on_that_pixel(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    _, kept = by_hand(scan, tmp_path, monkeypatch, "- 39 29 px", "+ 0.5, 0.25", "a")
    assert kept is not None
    first, second = kept.steps[1], kept.steps[2]
    assert first.by == "person" and isinstance(first.action, Click) and not first.action.positive
    assert kept.picture.geometry.pixel(first.action.x, first.action.y) == (29, 39)
    assert second.action == Click(0.5, 0.25, True)


def test_replace_puts_the_persons_click_in_place_of_a_step_and_drops_the_rest(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    _, kept = by_hand(scan, tmp_path, monkeypatch, "", "", "2 + 0.3 0.3", "a")
    assert kept is not None
    assert [step.action for step in kept.steps] == [Click(0.25, 0.5), Click(0.3, 0.3), Terminate("")]


def test_undo_and_redo_go_through_what_was_done(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    _, kept = by_hand(scan, tmp_path, monkeypatch, "+ .9 .9", "b", "u", "u", "r", "q")
    assert kept is not None and [step.by for step in kept.steps] == ["policy", "person"]


def test_reject_tells_the_policy(use: Any, scan: Path, tmp_path: Path, monkeypatch: Any) -> None:
    policy = use()
    by_hand(scan, tmp_path, monkeypatch, "x", "", "q")
    assert "Positive Point (0.2500, 0.5000)" in policy.turns[1].note


def test_discard_leaves_nothing(use: Any, scan: Path, tmp_path: Path, monkeypatch: Any) -> None:
    use()
    assert by_hand(scan, tmp_path, monkeypatch, "", "d") == (cli.OK, None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "garbage",
    ["what?", "+", "+ 2 2", "+ nan inf", "- 40 3 px", "b 9999999999", "99 + .1 .1", "0 + .1 .1", "u", "\x00"],
)
def test_what_is_not_understood_is_explained_and_asked_again(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], garbage: str
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, *(["u"] if garbage == "u" else []), garbage, "?", "q")
    assert code == cli.OK and kept is not None and "reject: take back" in capsys.readouterr().out


def test_the_end_of_the_input_keeps_everything(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use()
    code, kept = by_hand(scan, tmp_path, monkeypatch, "")
    assert code == cli.OK and kept is not None and len(kept.steps) == 2
    assert (tmp_path / "out" / "mask.nii.gz").is_file()


def test_after_a_pause_the_person_can_click_or_ask_again(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    use(["?", "?", ENDS])
    code, kept = by_hand(scan, tmp_path, monkeypatch, "+ .5 .5", "", "")
    assert code == cli.OK and kept is not None
    assert [step.by for step in kept.steps] == ["person", "policy"] and kept.status == "ended"


@given(st.text(max_size=60))
def test_no_typed_text_does_more_than_be_refused(text: str) -> None:
    try:
        terminal.read_command(text, 30, 40)
    except InputError as error:
        assert str(error)


# ---- going on, replay, review ----------------------------------------------------------------------------


def test_a_stopped_run_goes_on_where_it_stood(use: Any, scan: Path, tmp_path: Path, monkeypatch: Any) -> None:
    use()
    assert run(scan, "--out", tmp_path / "whole") == cli.OK
    use(SCRIPT[:2])
    assert run(scan, "--out", tmp_path / "out") == cli.BAD_MODEL
    use(SCRIPT[2:])
    assert cli.main(["run", "--resume", str(tmp_path / "out" / "trajectory.json")]) == cli.OK
    whole, parts = recorded(tmp_path / "whole"), recorded(tmp_path / "out")
    assert [step.action for step in whole.steps] == [step.action for step in parts.steps]
    for one, other in zip(whole.steps, parts.steps, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
    assert (tmp_path / "out" / "mask.nii.gz").read_bytes() == (
        tmp_path / "whole" / "mask.nii.gz"
    ).read_bytes()


def test_a_run_that_ended_is_not_resumed_alone_but_by_hand(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    file = str(tmp_path / "out" / "trajectory.json")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    use()
    with monkeypatch.context() as without:
        without.setattr(runner, "load_segmenter", lambda _: pytest.fail("a model was loaded for nothing"))
        assert cli.main(["run", "--resume", file]) == cli.BAD_INPUT
    assert "has ended" in capsys.readouterr().err
    assert cli.main(["run", "--resume", file, "--max-turns", "9"]) == cli.BAD_INPUT, "not by its turns"
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    types(monkeypatch, "b", "+ .1 .1", "a")
    assert cli.main(["run", "--resume", file, "--step"]) == cli.OK
    assert [step.by for step in recorded(tmp_path / "out").steps][-2:] == ["person", "person"]


def test_a_resumed_run_that_is_stopped_before_its_first_step_stays_as_it_was(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--max-turns", 2)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    policy = use()

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, "reply", interrupted)
    file = str(tmp_path / "out" / "trajectory.json")
    assert cli.main(["run", "--resume", file, "--max-turns", "9"]) == cli.INTERRUPTED
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("question", ["", "肝"])
def test_a_recorded_question_that_this_policy_cannot_be_asked_is_refused_before_it_is_loaded(
    use: Any,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    question: str,
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--max-turns", 2)
    file = tmp_path / "out" / "trajectory.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "question": question, "status": "ready"}))
    save_card(
        ModelCard(name="english", orientation=Orientation.RADIOLOGICAL, script="LATIN"), tmp_path / "policy"
    )
    monkeypatch.setattr(runner, "load_segmenter", lambda _: pytest.fail("a model was loaded for nothing"))
    capsys.readouterr()
    assert cli.main(["run", "--resume", str(file)]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert str(file) in error and "question" in error and "new run" in error


@pytest.mark.parametrize("option", [["--slice", "2"], ["--plane", "axial"], ["--prompt", "another"]])
def test_a_resumed_run_cannot_be_asked_for_another_picture_or_question(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    assert cli.main(["run", "--resume", str(tmp_path / "out" / "trajectory.json"), *option]) == cli.BAD_INPUT
    assert "trajectory.json" in capsys.readouterr().err


def test_replay_rebuilds_the_masks_and_says_when_they_differ(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    file = str(tmp_path / "out" / "trajectory.json")
    mask = tmp_path / "again.nii.gz"
    capsys.readouterr()
    assert cli.main(["replay", file, "--mask", str(mask)]) == cli.OK
    assert capsys.readouterr().out.count("the same mask") == 4
    assert mask.read_bytes() == (tmp_path / "out" / "mask.nii.gz").read_bytes()

    class Other(DiscSegmenter):
        identity = {"name": "other", "sha256": "0"}  # noqa: RUF012

        def predict(self, embedding: Any, clicks: Any, previous_logits: Any = None) -> Found:
            found = super().predict(embedding, clicks, previous_logits)
            return Found(np.roll(found.mask, 1), found.logits, found.score)

    monkeypatch.setattr(runner, "load_segmenter", lambda _: Other())
    assert cli.main(["replay", file]) == cli.DIFFERENT
    printed = capsys.readouterr().out
    assert "another segmenter" in printed and "pixels" in printed


def test_review_writes_the_page_beside_the_trajectory_or_where_it_is_wanted(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--no-review")
    file = str(tmp_path / "out" / "trajectory.json")
    assert not (tmp_path / "out" / "review.html").exists()
    capsys.readouterr()
    assert cli.main(["review", file]) == cli.OK
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "review.html")
    assert cli.main(["review", file, "--out", str(tmp_path / "page.html")]) == cli.OK
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "out" / "review.html").read_bytes()


def test_convert_goes_to_the_published_format_and_back(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out", "--window", -160, 240)
    theirs, ours = tmp_path / "published.json", tmp_path / "again.json"
    assert cli.main(["convert", str(tmp_path / "out" / "trajectory.json"), "--out", str(theirs)]) == cli.OK
    steps = json.loads(theirs.read_text())["trajectory"]
    assert [step["positive"] for step in steps] == [True, True, False]
    assert cli.main(["convert", str(theirs), "--out", str(ours), "--scans", str(scan.parent)]) == cli.OK
    first, again = recorded(tmp_path / "out"), Trajectory.load(ours)
    assert again.question == first.question and again.answer == first.answer
    one, other = (each.picture.geometry.embed_mask(each.mask) for each in (first, again))
    np.testing.assert_array_equal(one, other)
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.json").write_text("[]")
    capsys.readouterr()
    for arguments, said in (
        ([theirs, "--out", ours, "--scans", tmp_path / "empty"], "ct.nii.gz"),
        ([theirs, "--out", theirs, "--scans", scan.parent], "overwrite"),
        ([theirs, "--out", ours, "--scans", scan.parent, "--prompt", "a" * 10_000], "longer"),
        ([tmp_path / "none.json", "--out", ours], "no trajectory"),
    ):
        before = theirs.read_bytes(), ours.read_bytes()
        assert cli.main(["convert", *map(str, arguments)]) == cli.BAD_INPUT
        assert said in capsys.readouterr().err
        assert (theirs.read_bytes(), ours.read_bytes()) == before


def test_info_tells_of_a_scan_and_of_a_trajectory(
    use: Any, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    run(scan, "--out", tmp_path / "out")
    capsys.readouterr()
    assert cli.main(["info", str(scan), "--json"]) == cli.OK
    assert json.loads(capsys.readouterr().out)["Scan"]["spacing"] == "2 × 2 × 4 mm"
    assert cli.main(["info", str(tmp_path / "out" / "trajectory.json")]) == cli.OK
    assert "Segment the liver" in capsys.readouterr().out


# ---- the terminal ----------------------------------------------------------------------------------------


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
    monkeypatch.setattr(runner.Run, "description", lambda _: 1 / 0)
    assert run(scan, "--out", tmp_path / "out") == cli.BUG
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error and error.splitlines()[-1].startswith(
        "ibis-agent: this is an error in"
    )


def test_a_full_disk_in_mid_run_keeps_the_last_whole_trajectory(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use()
    save = runner.Run.save

    def full_after_two(self: runner.Run) -> Path:
        if len(self.episode.steps) > 2:
            raise OutputError("cannot be written: no space left on device", file=self.job.folder)
        return save(self)

    monkeypatch.setattr(runner.Run, "save", full_after_two)
    assert run(scan, "--out", tmp_path / "out") == cli.BAD_OUTPUT
    assert len(recorded(tmp_path / "out").steps) == 2
    assert "no space left" in capsys.readouterr().err
