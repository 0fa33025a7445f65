"""Trajectories to learn from: the published simulation, slips that are recovered from, and runs that were
stopped."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ibis_agent.actions import Box, Click, Prompt, Terminate, parse_reply
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import box_around, decode_rle, iou
from ibis_agent.record import published
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.segmenter.contract import Abilities
from PIL import Image

from training.common.pictures import Choice, Shown, Source, phantom_groups
from training.common.placing import box_iou
from training.trajectories import options as trajectory_options
from training.trajectories.expert import Recipe, turns_of, work
from training.trajectories.generate import Sample, make, read_trajectories
from training.trajectories.turns import action_of
from training.trajectories.wrong_clicks import KINDS, wrong_click

ROOT = Path(__file__).resolve().parents[3]


class Discs:
    """A segmenter without weights: discs around the positive clicks, without those around the negative ones.

    A box gives all that is in it, and nothing of before.
    """

    can = Abilities(boxes=True)

    def __init__(self, radius: float = 9.0, stop_after: int | None = None) -> None:
        self.identity = {"name": "discs", "sha256": "0" * 64, "architecture": "none"}
        self.radius, self.stop_after, self.embedded = radius, stop_after, 0

    def embed(self, rgb: np.ndarray) -> tuple[int, int]:
        self.embedded += 1
        if self.stop_after is not None and self.embedded > self.stop_after:
            raise KeyboardInterrupt
        return rgb.shape[0], rgb.shape[1]

    def predict(self, embedding: Any, clicks: list[Prompt], previous: Any = None) -> Any:
        height, width = embedding
        rows, columns = np.ogrid[:height, :width]
        mask = np.zeros((height, width), bool)
        for click in clicks:
            if isinstance(click, Box):
                inside = (columns + 0.5 > click.x0 * width) & (columns + 0.5 < click.x1 * width)
                mask = inside & (rows + 0.5 > click.y0 * height) & (rows + 0.5 < click.y1 * height)
                continue
            assert isinstance(click, Click)
            away = (rows + 0.5 - click.y * height) ** 2 + (columns + 0.5 - click.x * width) ** 2
            mask = mask | (away <= self.radius**2) if click.positive else mask & (away > self.radius**2 / 4)
        return SimpleNamespace(mask=mask, logits=np.zeros((4, 4), np.float32), score=0.5)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A volume with three structures, one of them in the lower slices only."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(5)
    labels = np.zeros((60, 50, 12), np.uint8)
    x, y = np.ogrid[:60, :50]
    labels[((x - 18) ** 2 + (y - 20) ** 2 < 90)] = 1
    labels[((x - 42) ** 2 + (y - 30) ** 2 < 110)] = 2
    labels[26:34, 38:48, :6] = 3
    voxels = (labels * 60.0 + rng.normal(0, 5, labels.shape)).astype(np.int16)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), folder / "scan.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), folder / "scan_labels.nii.gz")
    (folder / "labels.json").write_text(
        json.dumps({"1": "liver", "2": "spleen", "3": "aorta", "4": "stomach"})
    )
    return folder


def made(source: Path | None, out: Path, *options: str, segmenter: Any = None) -> dict[str, Any]:
    """The command, with a segmenter in its hand."""
    given = [*([str(source)] if source else []), "--out", str(out), *options]
    args = trajectory_options.arguments().parse_args(given)
    groups, problems = trajectory_options.groups_for(args)
    return make(trajectory_options.work_of(args), groups, problems, args.workers, args.strict, segmenter)


def samples(out: Path) -> list[Sample]:
    return list(read_trajectories(out))


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(out)): each.read_bytes() for each in sorted(out.rglob("*")) if each.is_file()
    }


def test_each_turn_is_what_the_segmenter_makes_of_the_clicks_before_it(
    data_set: Path, tmp_path: Path
) -> None:
    segmenter = Discs()
    report = made(
        data_set,
        tmp_path / "out",
        "--planes",
        "axial",
        "sagittal",
        "--per-plane",
        "3",
        "--mistake-share",
        "0.5",
        segmenter=segmenter,
    )
    found = samples(tmp_path / "out")
    assert report["questions"] == len(found) > 10 and segmenter.embedded <= 6
    for sample in found:
        shape = sample["height"], sample["width"]
        truth = decode_rle(sample["target_rle"], shape)
        rgb = np.array(Image.open(tmp_path / "out" / sample["image"]).convert("RGB"))
        assert rgb.shape == (*shape, 3)
        clicks: list[Click] = []
        mask = np.zeros(shape, bool)
        for number, turn in enumerate(sample["turns"], 1):
            assert turn["number"] == number
            assert np.array_equal(decode_rle(turn["mask_before_rle"], shape), mask)
            assert turn["iou_before"] == pytest.approx(iou(mask, truth))
            reply = parse_reply(turn["reply"])
            assert reply.thinking == turn["thinking"]
            if turn["kind"] == "click":
                assert turn["x"] is not None and turn["y"] is not None
                click = Click(turn["x"], turn["y"], bool(turn["positive"]))
                assert reply.action == click, "what is written is what was clicked"
                clicks.append(click)
                mask = segmenter.predict(shape, clicks).mask
            else:
                assert reply.action == Terminate(turn["answer"] or "")
            assert turn["iou_after"] == pytest.approx(iou(mask, truth))
        assert sample["turns"][-1]["kind"] == "terminate"


def test_the_same_seed_gives_the_same_files_and_another_one_others(data_set: Path, tmp_path: Path) -> None:
    options = ("--per-plane", "2", "--mistake-share", "0.5")
    made(data_set, tmp_path / "a", *options, segmenter=Discs())
    made(data_set, tmp_path / "b", *options, segmenter=Discs())
    made(data_set, tmp_path / "c", *options, "--seed", "1", segmenter=Discs())
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and a["trajectories.jsonl"] != c["trajectories.jsonl"]


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_left_alone(data_set: Path, tmp_path: Path) -> None:
    options = ("--per-plane", "5", "--mistake-share", "0.5", "--ours")
    made(data_set, tmp_path / "alone", *options, segmenter=Discs())
    for stop_after in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            made(data_set, tmp_path / "stopped", *options, segmenter=Discs(stop_after=stop_after))
        assert not (tmp_path / "stopped" / "trajectories.jsonl").exists()
    last = Discs()
    made(data_set, tmp_path / "stopped", *options, segmenter=last)
    assert last.embedded == 2, "three of the five were there"
    assert contents(tmp_path / "stopped") == contents(tmp_path / "alone")


def test_two_processes_killed_on_the_way_end_as_one_left_alone(tmp_path: Path, parity: Path) -> None:
    """The real segmenter, the real command, the real kill."""
    options = ["--phantoms", "4", "--seed", "4", "--mistake-share", "0.5", "--max-steps", "2"]
    options += ["--segmenter", str(parity / "segmenter.pt"), "--least-iou", "0", "--device", "cpu"]
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "training.trajectories", *options, "--out", str(killed)]
    environment = {**os.environ, "PYTHONPATH": "Logic", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not list(killed.glob("parts/*-00000.json")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "trajectories.jsonl").exists() and list(killed.glob("parts/*.json"))
    made(None, killed, *options)
    made(None, tmp_path / "alone", *options)
    assert contents(killed) == contents(tmp_path / "alone")


def test_slices_of_a_scan_with_a_long_name_have_pictures_of_their_own(data_set: Path, tmp_path: Path) -> None:
    for file in list(data_set.glob("scan*")):
        file.rename(data_set / file.name.replace("scan", "1.2.840." + "9" * 90))
    made(data_set, tmp_path / "out", "--per-plane", "3", segmenter=Discs())
    pictures = {sample["image"] for sample in samples(tmp_path / "out")}
    assert len(pictures) == 3 and all((tmp_path / "out" / each).is_file() for each in pictures)


def test_a_folder_with_other_options_is_not_mixed_with_these(data_set: Path, tmp_path: Path) -> None:
    made(data_set, tmp_path / "out", "--per-plane", "1", segmenter=Discs())
    with pytest.raises(InputError, match=r"other settings or data.*recipe"):
        made(data_set, tmp_path / "out", "--per-plane", "1", "--iou-threshold", "0.9", segmenter=Discs())


def test_the_published_generators_clicks_and_masks_come_out_of_the_whole_command(
    parity: Path, data: Path, tmp_path: Path
) -> None:
    runs = json.loads((parity / "trajectories.json").read_text())
    for n, recorded in ((0, runs[0]), (1, runs[8])):
        folder = data if recorded["type"] == "nii" else parity
        options = ["--image", str(folder / recorded["file"]), "--mask", str(folder / recorded["mask_file"])]
        options += [
            "--as-published",
            "--iou-threshold",
            str(recorded["iou_threshold"]),
            "--absent-share",
            "0",
        ]
        options += [
            "--max-steps",
            str(recorded["max_steps"]),
            "--orientation",
            "upstream",
            "--least-area",
            "0",
        ]
        options += ["--model-path", str(parity / "segmenter.pt"), "--device", "cpu"]
        where = recorded["nii_data"]
        if where:
            options += ["--slice-axis", where["slice_dir"], "--slice-idx", str(where["slice_idx"])]
            options += ["--mask-value", str(where["mask_number"])]
            options += ["--window-min", str(where["window"][0]), "--window-max", str(where["window"][1])]
        made(None, tmp_path / str(n), *options)
        written = json.loads((tmp_path / str(n) / "published.json").read_text())
        assert len(written) == 1
        for key in ("file", "type", "mask_file", "nii_data", "img_data"):
            assert written[0][key] == recorded[key], key
        ours = published.load(tmp_path / str(n) / "published.json")[0]
        assert [step.sign_recovered for step in ours.steps] == [False] * len(recorded["trajectory"])
        for step, theirs in zip(ours.steps, recorded["trajectory"], strict=True):
            assert [step.column, step.row] == theirs["coords_original"]
            assert np.count_nonzero(step.mask != decode_rle(theirs["mask_rle"], ours.shape)) <= 3


def test_our_own_form_holds_the_same_run(data_set: Path, tmp_path: Path) -> None:
    made(data_set, tmp_path / "out", "--slices", "3", "--ours", segmenter=Discs())
    for sample in samples(tmp_path / "out"):
        name = f"{Path(sample['image']).stem}-{sample['structure']}.json"
        ours = Trajectory.load(tmp_path / "out" / "trajectories" / name)
        assert ours.question == sample["question"] and ours.status == "ended"
        assert [step.reply for step in ours.steps] == [turn["reply"] for turn in sample["turns"]]
        assert ours.replay(Discs()).differences == ()


def test_slices_planes_structures_and_values_are_chosen(data_set: Path, tmp_path: Path) -> None:
    def keys(name: str, *options: str) -> list[str]:
        every = ("--absent-share", "0", "--least-iou", "0")
        made(data_set, tmp_path / name, *every, *options, segmenter=Discs())
        return [sample["id"].removeprefix("scan/") for sample in samples(tmp_path / name)]

    assert keys("one", "--slices", "2,9") == [
        "axial-002/liver",
        "axial-002/spleen",
        "axial-002/aorta",
        "axial-009/liver",
        "axial-009/spleen",
    ]
    assert keys("every", "--every", "4", "--structures", "aorta") == ["axial-000/aorta", "axial-004/aorta"]
    assert keys("value", "--mask-value", "2", "--planes", "z", "--per-plane", "1") == ["z-006/spleen"]
    assert keys("large", "--slices", "2", "--least-area", "0.1") == ["axial-002/spleen"]
    drawn = keys("drawn", "--slices", "2,3,4,5", "--per-picture", "1")
    assert len(drawn) == 4 and len({each.split("/")[1] for each in drawn}) > 1


def test_the_share_of_questions_about_what_is_not_there_is_as_wanted(data_set: Path, tmp_path: Path) -> None:
    options = ("--absent-share", "0.4", "--absent", "brain", "knee", "--slices", "all")
    report = made(data_set, tmp_path / "out", *options, segmenter=Discs())
    absent = [sample for sample in samples(tmp_path / "out") if not sample["target_rle"]]
    assert report["absent"] == len(absent) and 0.3 < len(absent) / report["questions"] < 0.5
    assert {sample["structure"] for sample in absent} <= {"brain", "knee", "stomach", "aorta"}
    for sample in absent:
        assert [turn["kind"] for turn in sample["turns"]] == ["terminate"]
        assert sample["structure"] in (sample["turns"][0]["answer"] or "")


def test_every_question_with_a_mistake_has_a_recovery_and_only_the_mistake_is_not_learnt(
    data_set: Path, tmp_path: Path
) -> None:
    options = ("--mistake-share", "1", "--slices", "shown", "--absent-share", "0")
    report = made(data_set, tmp_path / "out", *options, segmenter=Discs())
    found = samples(tmp_path / "out")
    wrong = [[turn["mistake"] for turn in sample["turns"] if turn["mistake"]] for sample in found]
    assert sum(len(each) == 1 for each in wrong) > 0.9 * len(found)
    assert set(report["mistakes"]) == set(KINDS) and sum(report["mistakes"].values()) == sum(map(len, wrong))
    for sample in found:
        for turn, following in zip(sample["turns"], [*sample["turns"][1:], None], strict=True):
            assert turn["learn"] == (turn["mistake"] is None)
            if turn["mistake"]:
                assert following is not None and following["learn"], "a mistake is followed by its recovery"


def test_an_expert_that_begins_with_boxes_draws_them_about_the_structure_and_clicks_on(
    data_set: Path, tmp_path: Path
) -> None:
    options = (
        "--slices",
        "shown",
        "--absent-share",
        "0",
        "--iou-threshold",
        "0.9",
        "--decimals",
        "3",
        "--ours",
    )
    made(data_set, tmp_path / "all", "--box-share", "1", *options, segmenter=Discs(radius=5))
    found, off = samples(tmp_path / "all"), []
    for sample in found:
        shape = sample["height"], sample["width"]
        truth = decode_rle(sample["target_rle"], shape)
        first, *others = sample["turns"]
        box = parse_reply(first["reply"]).action
        assert isinstance(box, Box) and box == action_of(first) and box_iou(box, truth) > 0.5
        off.append(max(abs(getattr(box, edge) - getattr(box_around(truth), edge)) for edge in ("x0", "y1")))
        assert {turn["kind"] for turn in others} <= {"click", "terminate"}
        if others:
            made_of_it = Discs(radius=5).predict(shape, [box]).mask
            assert np.array_equal(decode_rle(others[0]["mask_before_rle"], shape), made_of_it)
        assert "box" in first["thinking"] or "frame" in first["thinking"]
    assert any(turn["kind"] == "click" for sample in found for turn in sample["turns"])
    assert 0.005 < max(off) < 0.2, "drawn by hand, not to the pixel"
    ours = next((tmp_path / "all" / "trajectories").glob("*.json"))
    assert isinstance(Trajectory.load(ours).steps[0].action, Box)
    made(data_set, tmp_path / "some", "--box-share", "0.5", *options, segmenter=Discs())
    kinds = {sample["turns"][0]["kind"] for sample in samples(tmp_path / "some")}
    assert kinds == {"box", "click"}


def test_a_box_can_follow_a_first_click_that_was_not_enough(data_set: Path, tmp_path: Path) -> None:
    options = ("--slices", "shown", "--absent-share", "0", "--box-later", "1", "--least-iou", "0.4")
    made(data_set, tmp_path / "out", *options, segmenter=Discs(radius=4))
    found = samples(tmp_path / "out")
    assert any(sample["turns"][1]["kind"] == "box" for sample in found)
    for sample in found:
        kinds = [turn["kind"] for turn in sample["turns"]]
        assert kinds[0] == "click" and kinds.count("box") <= 1
        assert (kinds[1] == "box") == (sample["turns"][1]["iou_before"] < 0.4), sample["id"]


def test_a_segmenter_without_boxes_is_not_asked_for_them(data_set: Path, tmp_path: Path) -> None:
    segmenter = Discs()
    segmenter.can = Abilities()
    with pytest.raises(InputError, match=r"does not accept boxes.*discs.*--box-share"):
        made(data_set, tmp_path / "out", "--box-share", "0.5", segmenter=segmenter)


def test_mistakes_are_of_the_kind_that_was_asked_for(data_set: Path, tmp_path: Path) -> None:
    options = ("--mistake-share", "1", "--mistake-kinds", "neighbour", "--slices", "2", "--absent-share", "0")
    report = made(data_set, tmp_path / "out", *options, segmenter=Discs())
    assert set(report["mistakes"]) == {"neighbour"}
    none = made(data_set, tmp_path / "none", "--slices", "2", segmenter=Discs())
    assert none["mistakes"] == {}


def test_wrong_clicks_are_wrong_in_their_own_way() -> None:
    truth, other = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[8:20, 8:20], other[8:20, 24:34] = True, True
    for seed in range(20):
        rng = np.random.default_rng(seed)
        beside = wrong_click("beside", None, truth, {"o": other}, [], rng)
        assert beside is not None and beside.positive
        row, column = int(beside.y * 40), int(beside.x * 40)
        assert not truth[row, column] and not other[row, column]
        assert 4 <= row < 24 and 4 <= column < 24, "near the structure"
        neighbour = wrong_click("neighbour", None, truth, {"o": other}, [], rng)
        assert neighbour is not None and other[int(neighbour.y * 40), int(neighbour.x * 40)]
    sign = wrong_click("sign", None, truth, {}, [], rng)
    assert sign is not None and not sign.positive and truth[int(sign.y * 40), int(sign.x * 40)]
    assert wrong_click("repeat", None, truth, {}, [], rng) is None
    assert wrong_click("repeat", None, truth, {}, [Click(0.1, 0.2)], rng) == Click(0.1, 0.2)
    assert wrong_click("neighbour", None, truth, {}, [], rng) is None


TRUTH = np.zeros((40, 50), bool)
TRUTH[5:35, 5:17] = True


def run(recipe: Recipe, radius: float = 6.0) -> Any:
    rgb = np.zeros((*TRUTH.shape, 3), np.uint8)
    return work(Discs(radius), TRUTH.shape, rgb, TRUTH, {}, recipe, np.random.default_rng(0))


def test_a_run_that_never_gets_good_enough_ends_at_its_best_or_goes_on_or_is_left_out() -> None:
    never = Recipe(iou_threshold=0.999, max_steps=12, patience=0)
    best = run(never)
    kept = run(replace(never, unfinished="keep"))
    ious = [step.iou for step in kept.steps]
    assert len(best.steps) == int(np.argmax(ious)) + 1 and best.ended
    assert len(kept.steps) == 12 and not kept.ended
    assert [turn["kind"] for turn in turns_of(kept, "liver", TRUTH, never, np.random.default_rng(0))] == [
        "click"
    ] * 12
    assert "below --iou-threshold 0.999" in run(replace(never, unfinished="drop")).reason
    left = run(replace(never, least_iou=0.99))
    assert f"IoU {max(ious):.2f}, below --least-iou 0.99" in left.reason
    patient = run(replace(never, unfinished="keep", patience=2))
    assert len(patient.steps) < 12 and max(s.iou for s in patient.steps) >= 0.9 * max(ious)


def test_the_expert_does_not_click_on_one_place_twice_unless_told_to() -> None:
    class Deaf(Discs):
        def predict(self, embedding: Any, clicks: list[Prompt], previous: Any = None) -> Any:
            return super().predict(embedding, clicks[:1], previous)

    rgb = np.zeros((*TRUTH.shape, 3), np.uint8)
    recipe = Recipe(iou_threshold=0.99, max_steps=4, unfinished="keep", patience=0)
    places = []
    for repeats in (False, True):
        found = work(
            Deaf(),
            TRUTH.shape,
            rgb,
            TRUTH,
            {},
            replace(recipe, repeats=repeats),
            np.random.default_rng(0),
        )
        assert found is not None
        places.append({(step.click.x, step.click.y) for step in found.steps})
    assert len(places[0]) == 4 and len(places[1]) == 2


def test_coordinates_have_the_decimals_asked_for_and_stay_inside() -> None:
    for decimals in (2, 3, 4):
        for step in run(Recipe(decimals=decimals, mistake_share=0.0)).steps:
            assert step.click.x == round(step.click.x, decimals)
            assert TRUTH[int(step.click.y * 40), int(step.click.x * 50)] or not step.click.positive
    thin = np.zeros((40, 500), bool)
    thin[10:30, 202] = True  # no multiple of a hundredth lies in this column
    rgb = np.zeros((40, 500, 3), np.uint8)
    found = work(
        Discs(),
        thin.shape,
        rgb,
        thin,
        {},
        Recipe(decimals=2, unfinished="keep", max_steps=1),
        np.random.default_rng(0),
    )
    assert found is not None and int(found.steps[0].click.x * 500) == 202


def test_masks_of_one_scan_in_files_of_their_own_are_asked_about_together(
    data_set: Path, tmp_path: Path
) -> None:
    labels = np.asarray(nib.load(data_set / "scan_labels.nii.gz").dataobj)
    affine = nib.load(data_set / "scan_labels.nii.gz").affine
    for patient in ("s1", "s2"):
        masks = tmp_path / "many" / patient / "segmentations"
        masks.mkdir(parents=True)
        (masks.parent / "ct.nii.gz").write_bytes((data_set / "scan.nii.gz").read_bytes())
        for value, name in ((1, "liver"), (2, "kidney_left")):
            nib.save(nib.Nifti1Image((labels == value).astype(np.uint8), affine), masks / f"{name}.nii.gz")
    segmenter = Discs()
    options = ("--slices", "3", "--absent-share", "0", "--mistake-share", "1", "--mistake-kinds", "neighbour")
    report = made(tmp_path / "many", tmp_path / "out", *options, segmenter=segmenter)
    assert [sample["id"] for sample in samples(tmp_path / "out")] == [
        f"{patient}/axial-003/{name}" for patient in ("s1", "s2") for name in ("left kidney", "liver")
    ]
    assert segmenter.embedded == 2 and report["mistakes"] == {"neighbour": 4}
    written = json.loads((tmp_path / "out" / "published.json").read_text())
    assert [(each["file"], each["mask_file"]) for each in written][1] == (
        "s1/ct.nii.gz",
        "s1/segmentations/liver.nii.gz",
    )
    back = published.to_trajectory(published.load(tmp_path / "out" / "published.json")[1], tmp_path / "many")
    assert back.picture.rgb.shape == (50, 60, 3)


def test_bad_data_is_named_in_the_report_and_the_rest_is_used(data_set: Path, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), data_set / "other_labels.nii.gz")
    (data_set / "other.nii.gz").write_bytes(b"nothing")
    (data_set / "lonely.nii.gz").write_bytes(b"nothing")
    report = made(data_set, tmp_path / "out", "--per-plane", "1", segmenter=Discs())
    assert report["questions"] > 0
    assert report["problems"]["kinds"] == {"missing": 1, "unreadable": 1}
    assert {each["case"] for each in report["problems"]["each"]} == {"lonely", "other"}
    with pytest.raises(InputError, match="no mask for it"):
        made(data_set, tmp_path / "strict", "--per-plane", "1", "--strict", segmenter=Discs())
    (data_set / "lonely.nii.gz").unlink()
    with pytest.raises(InputError, match="other"):
        made(data_set, tmp_path / "strict", "--per-plane", "1", "--strict", segmenter=Discs())
    assert not (tmp_path / "strict" / "trajectories.jsonl").exists()


def test_a_scan_that_the_published_form_cannot_name_is_counted(data_set: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for name in ("scan", "scan_labels"):
        sitk.WriteImage(sitk.ReadImage(str(data_set / f"{name}.nii.gz")), str(data_set / f"{name}.nrrd"))
        (data_set / f"{name}.nii.gz").unlink()
    options = ("--slices", "2", "--absent-share", "0", "--least-iou", "0")
    report = made(data_set, tmp_path / "out", *options, segmenter=Discs())
    assert report["questions"] == report["without_published_form"] == 3
    assert json.loads((tmp_path / "out" / "published.json").read_text()) == []


def test_masks_in_black_are_read_so_for_pictures(tmp_path: Path) -> None:
    values = np.full((30, 40), 255, np.uint8)
    values[8:20, 10:24] = 0
    grey = np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "b.png")
    options = ("--image", str(tmp_path / "a.png"), "--mask", str(tmp_path / "b.png"), "--reverse-mask")
    made(None, tmp_path / "out", *options, segmenter=Discs())
    sample = samples(tmp_path / "out")[0]
    assert np.array_equal(decode_rle(sample["target_rle"], (30, 40)), values == 0)
    assert json.loads((tmp_path / "out" / "published.json").read_text())[0]["img_data"]["reverse"] is True
    with Image.open(tmp_path / "out" / sample["image"]) as image:
        assert np.array_equal(np.array(image), grey)


@pytest.mark.parametrize(
    "options",
    [
        ("--absent-share", "2"),
        ("--mistake-share", "-0.1"),
        ("--slices", "three"),
        ("--question", "Segment it"),
        ("--window-min", "3"),
        ("--phantoms", "3"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    options: tuple[str, ...], data_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        made(data_set, tmp_path / "out", *options, segmenter=Discs())
    assert not (tmp_path / "out").exists()


def test_phantoms_are_turned_and_chosen_from_like_scans() -> None:
    group = phantom_groups(1, 7)[0]
    usual, mirrored = (
        Source(group, Choice(orientation=name)).show(("picture", 0)) for name in ("radiological", "upstream")
    )
    assert isinstance(usual, Shown) and isinstance(mirrored, Shown)
    assert np.array_equal(usual.truths["liver"], mirrored.truths["liver"][:, ::-1])
    chosen = Source(group, Choice(structures=("liver", "spine"), window=(0, 100))).show(("picture", 0))
    assert isinstance(chosen, Shown) and set(chosen.truths) | set(chosen.absent) == {"liver", "spine"}
    assert chosen.picture.window == (0, 100)


def test_phantoms_of_two_seeds_are_different_people() -> None:
    first, second = ({group.phantom for group in phantom_groups(50, seed)} for seed in (1, 2))
    assert len(first) == 50 and not first & second


def test_the_picture_in_our_form_is_the_picture_beside(data_set: Path, tmp_path: Path) -> None:
    made(data_set, tmp_path / "out", "--slices", "3", "--ours", segmenter=Discs())
    sample = samples(tmp_path / "out")[0]
    name = f"{Path(sample['image']).stem}-{sample['structure']}.json"
    record = json.loads((tmp_path / "out" / "trajectories" / name).read_text())
    inside = np.array(Image.open(io.BytesIO(base64.b64decode(record["picture"]["png"]))).convert("RGB"))
    with Image.open(tmp_path / "out" / sample["image"]) as image:
        assert np.array_equal(np.array(image.convert("RGB")), inside)
