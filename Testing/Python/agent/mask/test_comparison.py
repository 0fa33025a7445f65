"""Two masks compared: figures that are known, the command, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from ibis_agent.cli.commands import main
from ibis_agent.errors import InputError
from ibis_agent.mask.comparison import compare
from recorded_runs import LPS, SHAPE, body, slice_record, volume_record
from scipy.spatial.distance import cdist


def cube(shift: int = 0) -> np.ndarray:
    mask = np.zeros((20, 20, 20), bool)
    mask[4:12, 5:13, 4 + shift : 12 + shift] = True
    return mask


def surface(mask: np.ndarray, steps: tuple[float, ...]) -> np.ndarray:
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(mask.ndim):
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return np.argwhere(padded & ~inner) * steps


def test_equal_masks_agree_wholly() -> None:
    found = compare(cube(), cube(), (1.0, 1.0, 1.0))
    assert (found.dice, found.iou, found.hd95, found.mean_distance, found.difference) == (1, 1, 0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_are_those_of_all_pairs_of_surface_voxels(seed: int) -> None:
    rng, steps = np.random.default_rng(seed), (0.7, 1.1, 3.0)
    a, b = cube(), cube(2)
    a[rng.integers(0, 20, 9), rng.integers(0, 20, 9), rng.integers(0, 20, 9)] = True
    b[:3, 18:, 18:] = True
    distances = cdist(surface(a, steps), surface(b, steps))
    one, other = distances.min(1), distances.min(0)
    found = compare(a, b, steps)
    assert found.hd95 == pytest.approx(max(np.percentile(one, 95), np.percentile(other, 95)))
    assert found.mean_distance == pytest.approx(np.concatenate([one, other]).mean())
    assert found.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_sizes_are_in_millilitres_square_millimetres_or_pixels() -> None:
    a, b = cube(), cube()
    b[4:12, 5:13, 4] = False
    found = compare(a, b, (1.0, 2.0, 2.5))
    assert (found.size_a, found.size_unit) == (512 * 5 / 1000, "mL")
    assert found.difference == pytest.approx(-64 * 5 / 1000)
    assert compare(a[6], b[6], (2.0, 2.5)).size_unit == "mm²" and compare(a[6], b[6]).size_unit == "px"


def test_an_empty_mask_has_no_distance() -> None:
    found = compare(cube(), np.zeros_like(cube()), (1.0, 1.0, 1.0))
    assert found.hd95 is None and found.dice == 0 and "empty" in dict(found.lines())["HD95"]
    with pytest.raises(InputError, match="shape"):
        compare(cube(), cube()[1:])


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """A folder with the record of a run over a volume."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "trajectory.json").write_text(json.dumps(volume_record()))
    return folder


def reference(path: Path, mask: np.ndarray, affine: np.ndarray = LPS) -> Path:
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), path)
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert main(["compare", *map(str, arguments), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_run_over_a_volume_is_compared_with_a_reference(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = body()
    truth[4:9, 3:7, 9] = False
    found = told(capsys, run, reference(tmp_path / "truth.nii.gz", truth))
    mask = body()
    mask[..., 0] = False  # the slice that the run did not meet
    assert found["dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()), abs=1e-6)
    assert found["size_a"] == pytest.approx(mask.sum() * 12 / 1000)
    page = Path(found["page"])
    assert page == run / "comparison.html" and page.read_text("utf-8").count("<script") == 2


def test_a_label_of_a_reference_is_chosen(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.full(SHAPE, 3, np.uint8)
    labels[body()] = 7
    path = tmp_path / "labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, LPS), path)
    assert told(capsys, run, path, "--label", 7, "--no-page")["dice"] == 1
    assert main(["compare", str(run), str(path), "--label", "9"]) == 2
    assert "label" in capsys.readouterr().err


def test_a_run_on_one_slice_is_compared_in_that_slice_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = slice_record()
    (tmp_path / "trajectory.json").write_text(json.dumps(made))
    everything = np.ones((40, 24, 5), bool)
    affine = np.diag([1.5, 3.0, 5.0, 1.0])
    found = told(capsys, tmp_path / "trajectory.json", reference(tmp_path / "all.nii", everything, affine))
    assert found["size_b"] == 24 * 40 * 4.5 and found["size_unit"] == "mm²"
    assert found["size_a"] == pytest.approx(made["steps"][-1]["area_mm2"])


def test_a_reference_stored_the_other_way_round_is_laid_on_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = body().astype(np.uint8)
    turned = nibabel.Nifti1Image(truth, LPS).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    straight = told(capsys, run, reference(tmp_path / "straight.nii.gz", truth))
    other = told(capsys, run, tmp_path / "turned.nii.gz")
    assert other["dice"] == straight["dice"] > 0.5
    assert told(capsys, tmp_path / "turned.nii.gz", run)["dice"] == straight["dice"]


def test_masks_of_other_grids_and_broken_records_are_refused_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = LPS.copy()
    shifted[0, 3] = 8
    other = reference(tmp_path / "shifted.nii", body(), shifted)
    smaller = reference(tmp_path / "smaller.nii", body()[1:])
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for b, word in (
        (other, "grid"),
        (smaller, "grid"),
        (broken, "trajectory"),
        (tmp_path / "no.nii", "no such"),
    ):
        assert main(["compare", str(run), str(b)]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


def test_what_is_no_mask_is_not_compared_as_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = body().astype(np.float32)
    for values, said in (
        (np.where(mask > 0, 1, np.nan), "NaN"),
        (np.where(mask > 0, 0.9, 0.02), "whole numbers"),
        (np.where(mask > 0, 40, -1000), "negative"),
    ):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), LPS), tmp_path / "b.nii.gz")
        assert main(["compare", str(run), str(tmp_path / "b.nii.gz")]) == 2
        told = capsys.readouterr().err
        assert said in told and "b.nii.gz" in told and not (run / "comparison.html").exists()


def test_labels_that_are_taken_as_one_are_told_and_a_label_may_be_called_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reference(tmp_path / "labels.nii.gz", np.where(body(), 7, 3))
    (tmp_path / "labels.json").write_text('{"7": "liver", "3": "spleen"}')
    assert told(capsys, run, path, "--no-page")["labels_b"] == "3, 7"
    assert told(capsys, run, path, "--no-page", "--label", "Liver") == {
        **told(capsys, run, path, "--no-page", "--label", 7),
        "dice": 1.0,
        "labels_b": "",
    }
    assert main(["compare", str(run), str(run), "--label", "7"]) == 2
    assert "both are runs" in capsys.readouterr().err


def test_archives_are_compared_in_their_own_millimetres(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((4, 10, 12), np.uint8)
    labels[1:3, 3:6, 4:8] = 1
    for name, mask in (("a", labels), ("b", np.roll(labels, 1, axis=0))):
        images = np.arange(labels.size, dtype=np.uint8).reshape(labels.shape)
        np.savez(tmp_path / f"{name}.npz", imgs=images, gts=mask, spacing=[1.0, 1.0, 3.0])
    assert main(["compare", *(str(tmp_path / f"{name}.npz") for name in "ab"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dice"] == 0.5 and (told["hd95"], told["unit"]) == (3.0, "mm")
    assert Path(told["page"]).is_file()


def test_a_page_never_takes_the_place_of_another_kind_of_file(run: Path, tmp_path: Path) -> None:
    truth = reference(tmp_path / "truth.nii.gz", body())
    for out in (run / "trajectory.json", truth):
        before = out.read_bytes()
        assert main(["compare", str(run), str(truth), "--out", str(out)]) == 2
        assert out.read_bytes() == before
