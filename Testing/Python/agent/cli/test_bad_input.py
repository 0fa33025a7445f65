"""What a stranger hands in, through the command: every kind of bad input named in the project's plan.

Each ends with a code other than 0 and one line that names the file, the value and the remedy, before any model
is loaded, and leaves every folder as it was.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from ibis_agent import files
from ibis_agent.cli import commands as cli
from ibis_agent.cli import runner
from ibis_agent.policy.card import ModelCard, load_card, save_card
from ibis_agent.policy.qwen25 import local as policy
from ibis_agent.segmenter.sam2 import architecture
from ibis_agent.segmenter.sam2 import config as sam2_config
from PIL import Image
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[4]
SHAPE, AFFINE = (20, 16, 6), np.diag([2.0, 2.0, 4.0, 1.0])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy's folder and a segmenter's checkpoint that pass every look, with random weights."""
    import torch

    folder = tmp_path_factory.mktemp("models")
    tiny = folder / "policy"
    tiny.mkdir()
    # Enough for every look at a folder; none of these tests may come to the point of loading it.
    save_file({"model.embed_tokens.weight": np.zeros((64, 8), np.float32)}, tiny / "model.safetensors")
    (tiny / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tiny / "tokenizer.json").write_text("{}")
    save_card(ModelCard(name="tiny", script="LATIN", window=(-160, 240)), tiny)
    settings = sam2_config.read_settings(ROOT / "Logic/ibis_agent/demo/segmenter/model.yaml")
    torch.save({"model": architecture.build(settings).state_dict()}, folder / "segmenter.pt")
    shutil.copy(ROOT / "Logic/ibis_agent/demo/segmenter/model.yaml", folder / "segmenter.yaml")
    return {"policy": tiny, "segmenter": folder / "segmenter.pt"}


@pytest.fixture
def refused(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """`refused([arguments], code, *words)` runs the command and returns its one line."""

    def loads(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded although the input is bad")

    for module, name in (
        (runner, "load_policy"),
        (runner, "load_segmenter"),
        (architecture, "load"),
    ):
        monkeypatch.setattr(module, name, loads)
    monkeypatch.setattr(policy.LocalPolicy, "load", loads)

    def check(scan: object, *options: object, code: int = cli.BAD_INPUT, words: tuple[str, ...] = ()) -> str:
        arguments = [str(scan), *map(str, options)]
        for option, value in (
            ("--prompt", "Segment the liver"),
            ("--out", tmp_path / "out"),
            ("--policy", models["policy"]),
            ("--segmenter", models["segmenter"]),
        ):
            if option not in arguments:
                arguments += [option, str(value)]
        before = everything_in(tmp_path)
        capsys.readouterr()
        try:
            ended = cli.main(["run", *arguments])
        except SystemExit as left:
            ended = int(left.code or 0)
        out, line = capsys.readouterr()
        assert ended == code, line
        assert not out and line.count("\n") == 1 and line.startswith("ibis-agent: "), (out, line)
        assert len(line) < 700, line
        for word in words:
            assert word in line, f"{word!r} is not in {line!r}"
        assert everything_in(tmp_path) == before
        return line

    return check


def everything_in(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (
            path.stat().st_size if path.is_file() else -1,
            path.stat().st_mtime_ns if path.is_file() else 0,
        )
        for path in folder.rglob("*")
    }


def volume(
    tmp_path: Path, values: np.ndarray | None = None, affine: np.ndarray = AFFINE, name: str = "ct.nii.gz"
) -> Path:
    if values is None:
        values = np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16)
    path = tmp_path / name
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_the_same_call_with_good_input_gets_as_far_as_loading(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests below would prove nothing."""
    reached = []
    monkeypatch.setattr(runner.Runner, "load", lambda run: reached.append(run.task.question) or 1 / 0)
    options = ["--policy", str(models["policy"]), "--segmenter", str(models["segmenter"])]
    assert cli.main(["run", str(volume(tmp_path)), "--prompt", "the liver", *options, "--quiet"]) == cli.BUG
    assert reached == ["the liver"]


def test_a_missing_file(refused: Any, tmp_path: Path) -> None:
    refused(tmp_path / "no.nii.gz", words=("no.nii.gz", "no such file", "Check the path"))


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.nrrd", "ct.mha", "ct.npz", "ct.png", "ct.jpg"])
def test_an_empty_file(refused: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, words=(name, "empty"))


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.nrrd", "ct.mha", "ct.npz", "ct.png", "ct.jpg"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_a_truncated_file(refused: Any, tmp_path: Path, name: str, keep: float) -> None:
    import SimpleITK as sitk

    path = tmp_path / name
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 8), np.uint8)
    if name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(values, AFFINE), path)
    elif name.endswith((".nrrd", ".mha")):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    elif name.endswith(".npz"):
        np.savez_compressed(path, imgs=values, spacing=np.ones(3))
    else:
        Image.fromarray(values[..., :3]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    refused(path, words=(name,))


def test_mislabelled_files(refused: Any, tmp_path: Path) -> None:
    png = tmp_path / "a.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(png)
    nifti = volume(tmp_path, name="b.nii.gz")
    for source, name in (
        (png, "really_png.nii.gz"),
        (nifti, "really_nifti.png"),
        (nifti, "really_nifti.nrrd"),
    ):
        shutil.copy(source, tmp_path / name)
        refused(tmp_path / name, words=(name,))
    for name, content in (
        ("text.jpg", b"hello there"),
        ("page.nii.gz", b"<!doctype html>"),
        ("zip.npz", b"PK\3\4"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, words=(name,))
    (tmp_path / "inside.nii.gz").write_bytes(gzip.compress(b"not a NIfTI file at all" * 40))
    refused(tmp_path / "inside.nii.gz", words=("inside.nii.gz",))


def test_a_name_that_no_file_can_have(refused: Any, tmp_path: Path) -> None:
    refused(tmp_path / ("n" * 300 + ".png"), words=("nnn", "Check the path"))


def test_a_kind_of_file_that_cannot_be_read(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.4")
    refused(tmp_path / "notes.pdf", words=("notes.pdf", ".pdf", "NIfTI"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_numbers(refused: Any, tmp_path: Path, bad: float) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    values[4, 5, 3] = bad
    refused(volume(tmp_path, values), "--slice", 3, words=("ct.nii.gz", "1 of 320", "NaN"))


def test_a_constant_slice(refused: Any, tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.int16)
    values[:, :, 0] = np.arange(16)
    refused(
        volume(tmp_path, values), "--slice", 3, words=("ct.nii.gz", "slice 3", "constant", "another slice")
    )


def test_a_4d_volume(refused: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (*SHAPE, 3), np.int16)
    refused(volume(tmp_path, values), words=("ct.nii.gz", "3"))


def test_an_rgb_volume(refused: Any, tmp_path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(volume(tmp_path, np.zeros(SHAPE, kind)), words=("ct.nii.gz",))


@pytest.mark.parametrize(
    "shape, plane", [((1, 16, 6), "axial"), ((20, 1, 6), "axial"), ((20, 16, 1), "sagittal")]
)
def test_a_volume_one_voxel_thin_across_the_picture(
    refused: Any, tmp_path: Path, shape: tuple[int, int, int], plane: str
) -> None:
    values = np.random.default_rng(0).integers(0, 99, shape, np.int16)
    refused(volume(tmp_path, values), "--plane", plane, words=("ct.nii.gz", "thin", "another plane"))


@pytest.mark.parametrize("affine", ["sheared", "singular", "not a number"])
def test_an_affine_that_cannot_be(refused: Any, tmp_path: Path, affine: str) -> None:
    path = volume(tmp_path, name="ct.nii")
    header = bytearray(path.read_bytes())
    rows = np.diag([2.0, 2.0, 4.0, 1.0])[:3].astype("<f4")
    if affine == "sheared":
        rows[0, 1] = 0.8
    elif affine == "singular":
        rows[2] = 0
    else:
        rows[1, 1] = np.nan
    header[252:256] = np.array([0, 2], "<i2").tobytes()  # no qform, sform "aligned"
    header[280:328] = rows.tobytes()
    path.write_bytes(bytes(header))
    refused(path, words=("ct.nii", "affine" if affine != "sheared" else "sheared"))


@pytest.mark.parametrize(
    "bad, words",
    [
        ("not a number", ("slice 4", "NaN", "without them")),
        ("constant", ("the volume is constant", "give a window")),
        ("far from the window", ("single grey", "-160 to 240", "values from -900.9 to -900")),
        ("thin", ("thin", "another plane")),
    ],
)
def test_a_whole_volume_that_cannot_be_seen(
    refused: Any, tmp_path: Path, bad: str, words: tuple[str, ...]
) -> None:
    values = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.float32)
    if bad == "not a number":
        values[3, 2, 4] = np.nan
    elif bad == "constant":
        values[:] = 0
    elif bad == "far from the window":
        values = -900 - abs(values) / 1000
    else:
        values = values[:1]
    refused(volume(tmp_path, values), "--volume", words=("ct.nii.gz", *words))


def test_a_slice_in_which_the_policy_s_window_shows_nothing(refused: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(SHAPE, np.float32) - 900
    refused(volume(tmp_path, values), words=("ct.nii.gz", "single grey", "-160 to 240", "Give a window"))


@pytest.mark.parametrize("index", [-1, 6, 10**12])
def test_a_slice_outside_the_volume(refused: Any, tmp_path: Path, index: int) -> None:
    refused(volume(tmp_path), f"--slice={index}", words=("ct.nii.gz", str(index), "from 0 to 5"))


@pytest.mark.parametrize("low, high", [("40", "40"), ("240", "-160"), ("nan", "100"), ("-inf", "inf")])
def test_a_window_of_no_width_or_reversed(refused: Any, tmp_path: Path, low: str, high: str) -> None:
    refused(volume(tmp_path), "--window", low, high, words=("window", "smaller first"))


def test_half_a_window(refused: Any, tmp_path: Path) -> None:
    refused(volume(tmp_path), "--window", "40", words=("--window",))


def test_a_plane_slice_or_window_for_a_photograph(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(path)
    for option in (["--plane", "coronal"], ["--slice", "3"], ["--window", "0", "9"]):
        refused(path, *option, words=("photo.png", "Leave the"))


def test_a_dicom_folder_of_several_series(refused: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2000, (4, 16, 20), np.int16)
    folder = write_series(tmp_path / "dicom", values, "a", series="1.2.3")
    write_series(folder, values, "b", series="1.2.4")
    refused(folder, words=("dicom", "1.2.3", "1.2.4", "--series"))
    refused(folder, "--series", "1.2.5", words=("dicom", "1.2.5"))


def test_a_folder_without_dicom_files(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", words=("folder",))
    (tmp_path / "folder" / "readme.txt").write_text("nothing to see")
    refused(tmp_path / "folder", words=("folder",))


@pytest.mark.parametrize("question", ["", "   \n\t ", "\u200b\u200e"])
def test_an_empty_question(refused: Any, tmp_path: Path, question: str) -> None:
    refused(volume(tmp_path), "--prompt", question, words=("question is empty", "Segment the liver"))


def test_a_question_of_ten_thousand_characters(refused: Any, tmp_path: Path) -> None:
    refused(
        volume(tmp_path), "--prompt", "a liver " * 1250, words=("question", "characters", "9999", "Shorten")
    )


@pytest.mark.parametrize("question", ["حدد الكبد", "סמן את הכבד", "Segment الكبد"])
def test_a_right_to_left_question_to_a_policy_that_reads_english_only(
    refused: Any, tmp_path: Path, question: str
) -> None:
    refused(volume(tmp_path), "--prompt", question, words=("script", question, "English"))


def test_a_question_with_control_characters(refused: Any, tmp_path: Path) -> None:
    line = refused(volume(tmp_path), "--prompt", "Segment\x1b[2J the liver", words=("not text", "Remove it"))
    assert "\x1b" not in line


def test_no_question_and_no_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str], models: Any) -> None:
    options = ["--policy", str(models["policy"])]
    assert cli.main(["run", str(volume(tmp_path)), *options]) == cli.BAD_INPUT
    assert "--prompt" in capsys.readouterr().err
    assert cli.main(["run", "--prompt", "the liver", *options]) == cli.BAD_INPUT
    assert "there is no scan" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--max-turns", "0"], ["--max-repeats", "1"], ["--history", "-1"], ["--device", "tpu"]]
)
def test_limits_and_devices_that_cannot_be(refused: Any, tmp_path: Path, option: list[str]) -> None:
    refused(volume(tmp_path), f"{option[0]}={option[1]}", words=(option[1],))


@pytest.fixture
def broken(models: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A copy of the good policy, to be broken."""
    yield Path(shutil.copytree(models["policy"], tmp_path / "policy"))


def test_a_policy_that_is_not_there_or_no_policy(refused: Any, tmp_path: Path) -> None:
    scan = volume(tmp_path)
    refused(scan, "--policy", tmp_path / "nowhere", code=cli.BAD_MODEL, words=("nowhere",))
    refused(scan, "--policy", scan, code=cli.BAD_MODEL, words=("ct.nii.gz", "folder"))
    (tmp_path / "hollow").mkdir()
    refused(scan, "--policy", tmp_path / "hollow", code=cli.BAD_MODEL, words=("hollow", "config.json"))


def test_a_policy_of_another_architecture(refused: Any, tmp_path: Path, broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    refused(
        volume(tmp_path),
        "--policy",
        broken,
        code=cli.BAD_MODEL,
        words=("config.json", "llama", "vision-language"),
    )


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_policy(refused: Any, tmp_path: Path, broken: Path, keep: float) -> None:
    file = broken / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    words = ("model.safetensors", "cut off", "Download")
    refused(volume(tmp_path), "--policy", broken, code=cli.BAD_MODEL, words=words)


def test_a_half_downloaded_policy(refused: Any, tmp_path: Path, broken: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (broken / "model.safetensors").rename(broken / "model-00001-of-00002.safetensors")
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    words = ("1 of 2", "model-00002-of-00002.safetensors", "Download")
    refused(volume(tmp_path), "--policy", broken, code=cli.BAD_MODEL, words=words)
    (broken / "model-00002-of-00002.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(volume(tmp_path), "--policy", broken, code=cli.BAD_MODEL, words=("Git LFS",))


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return Path.touch, (self.where,)


def test_a_policy_that_is_a_pickle_with_code(refused: Any, tmp_path: Path, broken: Path) -> None:
    sprung = tmp_path / "sprung"
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    words = ("pickle", "pytorch_model.bin", "safetensors")
    refused(volume(tmp_path), "--policy", broken, code=cli.BAD_MODEL, words=words)
    assert not sprung.exists()


@pytest.mark.parametrize("card", ["", "{", "[1]", '{"overlay_alpha": 7}', '{"orientaton": "upstream"}'])
def test_a_policy_with_a_broken_card(refused: Any, tmp_path: Path, broken: Path, card: str) -> None:
    (broken / "ibis_model.json").write_text(card)
    refused(volume(tmp_path), "--policy", broken, code=cli.BAD_MODEL, words=("ibis_model.json",))


@pytest.mark.parametrize("whole_file", [True, False])
def test_a_segmenter_that_is_a_pickle_with_code(refused: Any, tmp_path: Path, whole_file: bool) -> None:
    import torch

    sprung, file = tmp_path / "sprung", tmp_path / "sam.pt"
    if whole_file:
        file.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"model": {"weight": torch.zeros(3), "trap": Trap(sprung)}}, file)
    refused(volume(tmp_path), "--segmenter", file, code=cli.BAD_MODEL, words=("sam.pt",))
    assert not sprung.exists()


def test_a_segmenter_of_another_architecture(refused: Any, tmp_path: Path) -> None:
    import torch

    torch.save(
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet.pt"
    )
    refused(volume(tmp_path), "--segmenter", tmp_path / "resnet.pt", code=cli.BAD_MODEL, words=("resnet.pt",))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6, 0.99])
def test_a_truncated_segmenter(refused: Any, tmp_path: Path, models: dict[str, Path], keep: float) -> None:
    whole = models["segmenter"].read_bytes()
    (tmp_path / "sam.pt").write_bytes(whole[: int(len(whole) * keep)])
    refused(volume(tmp_path), "--segmenter", tmp_path / "sam.pt", code=cli.BAD_MODEL, words=("sam.pt",))


def test_a_segmenter_that_is_a_web_page_a_pointer_or_not_there(refused: Any, tmp_path: Path) -> None:
    scan = volume(tmp_path)
    refused(scan, "--segmenter", tmp_path / "no.pt", code=cli.BAD_MODEL, words=("no.pt",))
    for content in (b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid x"):
        (tmp_path / "sam.pt").write_bytes(content)
        refused(scan, "--segmenter", tmp_path / "sam.pt", code=cli.BAD_MODEL, words=("sam.pt",))


def test_an_output_folder_that_is_a_file_or_below_one(refused: Any, tmp_path: Path) -> None:
    scan = volume(tmp_path)
    for out in (scan, scan / "below", tmp_path / ("n" * 300)):
        refused(scan, "--out", out, code=cli.BAD_OUTPUT, words=(str(out)[:120], "hoose"))


def test_an_output_folder_without_the_right_to_write(refused: Any, tmp_path: Path) -> None:
    scan, folder = volume(tmp_path), tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc/ibis-test")  # root may write anywhere but there
        if not Path("/proc").is_dir():
            pytest.skip("this user may write everywhere")
    refused(scan, "--out", folder, code=cli.BAD_OUTPUT, words=(str(folder), "cannot be written"))


def test_a_disk_that_is_nearly_full(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(volume(tmp_path), code=cli.BAD_OUTPUT, words=("free space", "MiB"))


def test_a_disk_that_is_full(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = volume(tmp_path)
    monkeypatch.setattr(os, "fsync", _no_space)
    refused(scan, code=cli.BAD_OUTPUT, words=("no space left", "Free some space"))


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_mask_of_a_kind_that_cannot_be_written(refused: Any, tmp_path: Path) -> None:
    scan = volume(tmp_path)
    for name in ("mask.stl", "mask", "mask.png"):
        refused(scan, "--mask", tmp_path / name, words=(name, ".nii.gz"))
    (tmp_path / "folder.nii.gz").mkdir()
    refused(
        scan, "--mask", tmp_path / "folder.nii.gz", code=cli.BAD_OUTPUT, words=("folder.nii.gz", "a folder")
    )
    photograph = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(photograph)
    refused(photograph, "--mask-format", "nii.gz", words=("picture", ".png"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": "other"}', '{"schema": "ibis-trajectory/1"}', "\x00"]
)
@pytest.mark.parametrize("command", ["replay", "review", "info", "resume"])
def test_what_is_no_trajectory(
    text: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: dict[str, Path]
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    arguments = [command, str(file)]
    if command == "resume":
        arguments = ["run", "--resume", str(file), "--policy", str(models["policy"])]
    assert cli.main(arguments) == cli.BAD_INPUT
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "broken.json" in line
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


def test_prompts_from_a_folder_that_is_no_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Path
) -> None:
    before = load_card(broken)
    assert cli.main(["import-prompts", str(tmp_path / "nowhere"), str(broken)]) == cli.BAD_INPUT
    assert "nowhere" in capsys.readouterr().err
    assert load_card(broken) == before


def test_a_stranger_sees_one_line_and_no_trace(tmp_path: Path, models: dict[str, Path]) -> None:
    values = np.full(SHAPE, np.nan, np.float32)
    scan, trap = volume(tmp_path, values), tmp_path / "trap.pt"
    trap.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    good = volume(tmp_path, name="good.nii.gz")
    before = everything_in(tmp_path)
    for arguments, code, word in (
        ([scan, "--segmenter", models["segmenter"]], cli.BAD_INPUT, "NaN"),
        ([good, "--segmenter", trap], cli.BAD_MODEL, "trap.pt"),
        ([good, "--segmenter", models["segmenter"], "--slice", "99"], cli.BAD_INPUT, "from 0 to 5"),
    ):
        command = [
            sys.executable,
            "-m",
            "ibis_agent",
            "run",
            *arguments,
            "--prompt",
            "x",
            "--out",
            tmp_path / "out",
        ]
        done = subprocess.run(
            [*map(str, command), "--policy", str(models["policy"])],
            env={**os.environ, "PYTHONPATH": str(ROOT / "Logic")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1 and word in done.stderr and done.stdout == ""
        assert everything_in(tmp_path) == before


def test_the_demo_policy_reads_english_questions_only() -> None:
    card = policies.find("demo").card
    assert card.script == "LATIN" and card.max_question < 10_000 and "not for patients" in card.note
