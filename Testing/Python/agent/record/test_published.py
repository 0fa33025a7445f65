"""Trajectories in the published format: both ways, against recorded ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from chained_segmenter import ChainedSegmenter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ibis_agent.actions import Click, Terminate
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import encode_rle
from ibis_agent.record import published
from ibis_agent.record.published import PublishedStep, PublishedTrajectory, from_trajectory, to_trajectory
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.run import Run
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut
from PIL import Image


@pytest.fixture
def foreign() -> dict[str, Any]:
    """A published object without signs: one click, then one inside the mask and one outside of it."""
    first, second = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    first[1:3, 1:4] = True
    second[1:3, 1:3] = True
    steps = [((2, 1), first), ((3, 2), second), ((5, 3), second | (np.arange(6) == 5))]
    return {
        "file": "a.png",
        "type": "img",
        "mask_file": "b.png",
        "nii_data": None,
        "img_data": {"format": "png", "size": [6, 4], "reverse": False},
        "iou_threshold": 0.9,
        "trajectory": [
            {
                "step": number,
                "coords_norm": [x / 6, y / 4],
                "coords_original": [x, y],
                "mask_rle": encode_rle(mask),
            }
            for number, ((x, y), mask) in enumerate(steps)
        ],
    }


def read(record: Any, tmp_path: Path) -> list[PublishedTrajectory]:
    (tmp_path / "published.json").write_text(json.dumps(record))
    return published.load(tmp_path / "published.json")


def test_recorded_trajectories_are_written_as_they_were_read(parity: Path, tmp_path: Path) -> None:
    recorded = json.loads((parity / "trajectories.json").read_text())
    published.save(tmp_path / "again.json", published.load(parity / "trajectories.json"))
    written = json.loads((tmp_path / "again.json").read_text())
    for ours in written:
        for step in ours["trajectory"]:
            assert isinstance(step.pop("positive"), bool)
    assert written == recorded


def test_missing_signs_are_recovered_and_said_so(foreign: dict[str, Any], tmp_path: Path) -> None:
    (found,) = read(foreign, tmp_path)
    assert [step.positive for step in found.steps] == [True, False, True]
    assert [step.sign_recovered for step in found.steps] == [True] * 3
    foreign["trajectory"][1]["positive"] = True  # against the rule: the file's own word counts
    (found,) = read(foreign, tmp_path)
    assert [step.positive for step in found.steps] == [True, True, True]
    assert sum(step.sign_recovered for step in found.steps) == 2


def test_recovered_signs_are_those_of_the_simulation(parity: Path) -> None:
    # A click of the published simulation lies in the missed part (positive) or in the wrong part (negative).
    for each in published.load(parity / "trajectories.json"):
        if each.kind == "img":
            truth = np.array(Image.open(parity / each.mask_file).convert("L")) > 0
            for step in each.steps:
                assert step.positive == truth[step.row, step.column]


@given(st.data())
def test_signs_pixels_and_masks_come_back(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    step = st.builds(
        PublishedStep,
        st.integers(0, shape[1] - 1),
        st.integers(0, shape[0] - 1),
        st.booleans(),
        hnp.arrays(bool, shape),
    )
    steps = tuple(data.draw(st.lists(step, max_size=4)))
    image = {"format": "png", "size": [shape[1], shape[0]], "reverse": True}
    given_one = PublishedTrajectory(
        "x.png", "img", (shape[0], shape[1]), steps, "m.png", None, image, "Wo?", "Dort."
    )
    text = json.dumps(given_one.to_json(), allow_nan=False)
    again = published._object_from(published.Fields(json.loads(text)))
    assert again.to_json() == given_one.to_json()
    for one, other in zip(again.steps, steps, strict=True):
        assert (one.column, one.row, one.positive) == (other.column, other.row, other.positive)
        assert np.array_equal(one.mask, other.mask) and not one.sign_recovered


def test_a_recorded_trajectory_becomes_one_of_ours_and_replays_exactly(
    parity: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    import ibis_agent.segmenter as segmenters

    segmenter = segmenters.open(parity / "segmenter.pt", device="cpu")
    for each in published.load(parity / "trajectories.json"):
        ours = to_trajectory(each, parity if each.kind == "img" else data, "Segment it")
        ours.save(tmp_path / "ours.json")
        for difference in Trajectory.load(tmp_path / "ours.json").replay(segmenter).differences:
            assert difference.pixels <= 3, "at most, where a CPU rounds differently; none did so far"
        back = from_trajectory(ours, each.file, each.mask_file, (each.nii_data or {}).get("mask_number"))
        ours_again, theirs = back.to_json(), each.to_json()
        if each.nii_data and each.nii_data["window"] is None:
            theirs["nii_data"]["window"] = ours_again["nii_data"]["window"]  # percentiles, now as numbers
        for key in ("file", "type", "mask_file", "nii_data", "img_data", "trajectory"):
            assert ours_again[key] == theirs[key]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR"])
@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_a_radiological_run_is_written_in_the_published_orientation(
    codes: str, plane: str, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(3).normal(0, 100, (10, 11, 12)).astype(np.float32)
    affine = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(tuple(codes)), voxels.shape)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    scan = load_scan(tmp_path / "scan.nii.gz")
    picture = cut(scan, plane, 4, (-100, 100), Orientation.RADIOLOGICAL)
    episode = Run.on_picture(picture, "liver", None, _AnySize())
    for click in (Click(0.11, 0.9), Click(0.72, 0.33, positive=False)):
        episode.add(click)
    episode.finish("There.")
    turned = from_trajectory(Trajectory.of(episode, scan.path))
    upstream = cut(
        scan, "xyz"[picture.geometry.axis], picture.geometry.index, (-100, 100), Orientation.UPSTREAM
    )
    assert turned.shape == upstream.rgb.shape[:2] and turned.answer == "There."
    for theirs, ours in zip(turned.steps, episode.steps, strict=False):
        assert isinstance(ours.action, Click)
        x, y = (theirs.column + 0.5) / turned.shape[1], (theirs.row + 0.5) / turned.shape[0]
        assert upstream.geometry.to_voxel(x, y) == picture.geometry.to_voxel(ours.action.x, ours.action.y)
        volumes = [
            geometry.embed_mask(mask)
            for geometry, mask in ((upstream.geometry, theirs.mask), (picture.geometry, ours.mask))
        ]
        assert np.array_equal(*volumes)
    back = to_trajectory(turned, tmp_path)
    assert [step.action for step in back.steps][-1] == Terminate("There.")
    assert np.array_equal(back.picture.rgb, upstream.rgb)


class _AnySize(ChainedSegmenter):
    """Random masks of the picture's own size."""

    def embed(self, rgb: np.ndarray) -> Any:
        self.shape = rgb.shape[:2]
        return super().embed(rgb)

    def predict(self, embedding: Any, clicks: Any, previous: Any = None) -> Any:
        found = super().predict(embedding, clicks, previous)
        found.mask = np.random.default_rng(len(clicks)).random(self.shape) > 0.6
        return found


def test_scans_that_the_published_programs_cannot_read_are_refused(tmp_path: Path) -> None:
    voxels = np.random.default_rng(3).normal(0, 100, (6, 6, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    picture = cut(load_scan(tmp_path / "scan.nii.gz"))
    episode = Run.on_picture(picture, "liver", None, _AnySize())
    with pytest.raises(InputError, match="Save the scan as NIfTI"):
        from_trajectory(Trajectory.of(episode, "study.nrrd"))


def test_only_files_inside_the_folder_are_opened(
    parity: Path, foreign: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copyfile(parity / "liver_14.png", tmp_path / "outside.png")
    (tmp_path / "inside").mkdir()
    for name in (str(tmp_path / "outside.png"), "../outside.png", "..\\outside.png", "", ".."):
        foreign["file"] = name
        (found,) = read(foreign, tmp_path)
        with pytest.raises(InputError, match="is missing"):
            to_trajectory(found, tmp_path / "inside")


def test_a_scan_of_another_size_is_refused(foreign: dict[str, Any], tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    (found,) = read(foreign, tmp_path)
    with pytest.raises(InputError, match="differs from the record"):
        to_trajectory(found, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(type="dcm"), "type"),
        (lambda r: r.update(img_data=None), "img_data"),
        (lambda r: r["img_data"].update(size=[6]), r"img_data\.size"),
        (lambda r: r["img_data"].update(size=[6, 0.5]), "size"),
        (lambda r: r["img_data"].update(size=[6, 10**9]), "size"),
        (lambda r: r.update(trajectory={}), "trajectory"),
        (lambda r: r["trajectory"][0].update(coords_original=[6, 0]), r"trajectory\[0\]\.coords_original"),
        (lambda r: r["trajectory"][0].update(coords_original=[0, 1.5]), "coords_original"),
        (lambda r: r["trajectory"][2].update(mask_rle="abc"), r"trajectory\[2\]\.mask_rle"),
        (lambda r: r["trajectory"][1].update(positive="yes"), r"trajectory\[1\]\.positive"),
        (lambda r: r.pop("file"), "file is missing"),
    ],
)
def test_damage_is_named(change: Any, said: str, foreign: dict[str, Any], tmp_path: Path) -> None:
    change(foreign)
    with pytest.raises(InputError, match=said) as caught:
        read([foreign], tmp_path)
    assert caught.value.file == str(tmp_path / "published.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slice_dir", "w"),
        ("slice_idx", 30),
        ("slice_idx", -1),
        ("slice_size", [122, 101]),
        ("size", [122, 101]),
        ("window", ["low", "high"]),
        ("window", [240, -160]),
    ],
)
def test_slices_that_contradict_themselves_are_named(
    key: str, value: Any, parity: Path, tmp_path: Path
) -> None:
    record = json.loads((parity / "trajectories.json").read_text())[0]
    record["nii_data"][key] = value
    with pytest.raises(InputError, match=r"nii_data"):
        read(record, tmp_path)
