"""Several structures in one run: one file of labels, measures of each, overlaps told, and going on after a stop.

The policy looks for the grey of the structure that it is asked for; the segmenter finds bright things that touch.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bright_volumes import SEGMENTER
from dicom_files import write_series
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.cli import commands as cli
from ibis_agent.cli import request, runner
from ibis_agent.cli.request import Request
from ibis_agent.cli.several import Several
from ibis_agent.policy.card import ModelCard, load_card, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.qwen25 import source
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.geometry import Orientation
from scripted_cli import DiscSegmenter
from scripted_policy import ScriptedPolicy

SIDE, SLICES = 32, 12
# Of every structure: its grey in HU, its rows, its columns and its slices.
PHANTOM = {
    "liver": (140, (2, 12), (2, 13), (1, 9)),
    "spleen": (150, (3, 9), (22, 29), (3, 8)),
    "left kidney": (160, (17, 24), (23, 29), (2, 7)),
    "right kidney": (170, (17, 23), (3, 8), (2, 6)),
    "aorta": (180, (18, 22), (14, 18), (0, 12)),
}
QUESTIONS = ("liver and spleen", "both kidneys", "aorta")
TAGS = {"PatientName": "Test^Pat", "PatientID": "7", "PatientBirthDate": "", "PatientSex": "O",
        "StudyDate": "20260101", "StudyTime": "120000", "AccessionNumber": "", "StudyID": "1",
        "ReferringPhysicianName": "", "FrameOfReferenceUID": "1.2.3.9"}  # fmt: skip


def truth() -> np.ndarray:
    """(slices, rows, columns): 0, or the number of the structure from 1."""
    labels = np.zeros((SLICES, SIDE, SIDE), np.uint8)
    for number, (_, rows, columns, slices) in enumerate(PHANTOM.values(), 1):
        labels[slice(*slices), slice(*rows), slice(*columns)] = number
    return labels


def values() -> np.ndarray:
    greys = np.array([-100, *(each[0] for each in PHANTOM.values())])
    noise = np.random.default_rng(4).integers(-20, 20, (SLICES, SIDE, SIDE))
    return np.where(truth() > 0, greys[truth()], -100 + noise)


class Seeker(ScriptedPolicy):
    """Clicks the structure that it is asked for where its grey is to be seen, and ends when it is marked."""

    def __init__(self, fails_at: str = "") -> None:
        super().__init__(
            [], ModelCard(name="seeker", orientation=Orientation.RADIOLOGICAL, overlay_alpha=0.9)
        )
        self.fails_at = fails_at
        self.asked: list[str] = []

    def reply(self, turn: Turn, on_text: Any = None, cancelled: Any = None) -> str:
        name = turn.question.removeprefix("Segment the ").removeprefix("the ")
        self.asked.append(name)
        if name == self.fails_at:
            raise KeyboardInterrupt
        grey = round((PHANTOM[name][0] + 255) / 2)  # in a window from -255 to 255
        seen = (np.abs(turn.picture.astype(int) - grey) <= 1).all(axis=2)
        if not seen.any():
            said = f"The {name} is segmented." if turn.has_mask else f"I see no {name}."
            return format_reply(Reply("I look.", Terminate(said)))
        rows, columns = np.nonzero(seen)
        middle = len(rows) // 2
        click = Click((columns[middle] + 0.5) / SIDE, (rows[middle] + 0.5) / SIDE)
        return format_reply(Reply(f"The {name} is bright.", click))


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    return write_series(tmp_path / "ct", values() + 1024, **TAGS)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """`terminal(*arguments)` runs the command and gives what it printed. The card is the demo's, with whole slices."""
    folder = tmp_path / "policy"
    folder.mkdir()
    save_card(replace(load_card(source.demo_folder()), frame="slice"), folder)
    monkeypatch.setattr(source, "demo_folder", lambda: folder)
    monkeypatch.setattr(request, "_check_models", lambda *_: None)
    monkeypatch.setattr(runner, "load_segmenter", lambda asked: SEGMENTER)

    def command(*arguments: object, code: int = 0, policy: Any = None, typed: str = "") -> str:
        monkeypatch.setattr(runner, "load_policy", lambda folder, asked: policy or Seeker())
        out = io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        monkeypatch.setattr("sys.stdout", out)
        assert cli.main(["run", *map(str, arguments)]) == code
        return out.getvalue()

    return command


def prompts(*questions: str) -> list[str]:
    return [part for question in questions for part in ("--prompt", question)]


VOLUME = ("--volume", "--follow", "memory", "--window", "-255", "255", "--looks", "0")


def test_five_structures_of_a_dicom_ct_come_out_as_the_phantom_is_to_the_voxel(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    highdicom = pytest.importorskip("highdicom")
    import SimpleITK as sitk

    out = tmp_path / "out"
    formats = [part for each in ("nii.gz", "seg.nrrd", "dicom-seg") for part in ("--mask-format", each)]
    said = terminal(dicom, *prompts(*QUESTIONS), *VOLUME, *formats, "--out", out, "--json")
    events = [json.loads(line) for line in said.splitlines()]
    summary = next(each for each in events if each["event"] == "structures")
    names = [each["name"] for each in summary["structures"]]
    assert names == ["Liver", "Spleen", "Left kidney", "Right kidney", "Aorta"]

    image = nibabel.load(out / "labels.nii.gz")
    labels = np.asarray(image.dataobj)
    # The series goes from z = 20 up, its rows to the back and its columns to the left: RAS is the other way round.
    place = np.linalg.inv(image.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    made = np.zeros((SLICES, SIDE, SIDE), np.uint8)
    for z, row, column in np.ndindex(made.shape):
        at = place @ np.array([-10 + column * 1.0, 5 + row * 2.0, 20 + z * 3.0, 1.0])
        made[z, row, column] = labels[tuple(np.rint(at[:3]).astype(int))]
    np.testing.assert_array_equal(made, truth())

    for number, each in enumerate(summary["structures"], 1):
        inside = truth() == number
        found = each["measurements"]
        assert found["voxels"] == inside.sum() and found["parts"] == 1
        assert found["volume_ml"] == pytest.approx(inside.sum() * 1.0 * 2.0 * 3.0 / 1000)
        assert found["area"] == pytest.approx(inside.sum(axis=(1, 2)).max() * 2.0)
        assert found["mean"] == pytest.approx(values()[inside].mean(), abs=1e-3)
        assert found["deviation"] == pytest.approx(values()[inside].std(ddof=1), abs=1e-3)
        own = np.asarray(nibabel.load(out / each["folder"] / "mask.nii.gz").dataobj)
        np.testing.assert_array_equal(own != 0, labels == number)
    with (out / "measures.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["voxels"]) for row in rows] == [int((truth() == n).sum()) for n in range(1, 6)]

    written = highdicom.seg.segread(out / "labels.seg.dcm")
    assert [each.segment_label for each in written.SegmentSequence] or written.number_of_segments == 5
    described = [written.get_segment_description(n) for n in range(1, 6)]
    assert [each.segment_label for each in described] == names
    assert [each.segmented_property_type.meaning for each in described[:2]] == ["Liver", "Spleen"]
    uids = sorted(
        (float(dataset.ImagePositionPatient[2]), dataset.SOPInstanceUID) for dataset in series(dicom)
    )
    pixels = written.get_pixels_by_source_instance([uid for _, uid in uids], combine_segments=True)
    np.testing.assert_array_equal(pixels, truth())

    segmentation = sitk.ReadImage(str(out / "labels.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(segmentation).transpose(), labels)
    assert [segmentation.GetMetaData(f"Segment{n}_Name") for n in range(5)] == names
    assert [segmentation.GetMetaData(f"Segment{n}_LabelValue") for n in range(5)] == list("12345")
    assert "SCT^10200004^Liver" in segmentation.GetMetaData("Segment0_Tags")
    assert len({segmentation.GetMetaData(f"Segment{n}_Color") for n in (0, 1, 4)}) == 3
    assert json.loads((out / "labels.json").read_text())["labels"] == {
        "background": 0, **{name: n for n, name in enumerate(names, 1)}
    }  # fmt: skip
    page = (out / "index.html").read_text()
    assert all(f'href="{each["folder"]}/review.html"' in page for each in summary["structures"])
    assert all((out / each["folder"] / "review.html").is_file() for each in summary["structures"])


def series(folder: Path) -> list[Any]:
    import pydicom

    return [pydicom.dcmread(file) for file in folder.iterdir()]


def test_a_stopped_run_goes_on_at_the_structure_that_was_interrupted(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    terminal(dicom, *prompts(*QUESTIONS), *VOLUME, "--out", whole)
    terminal(
        dicom, *prompts(*QUESTIONS), *VOLUME, "--out", out, policy=Seeker(fails_at="left kidney"), code=130
    )
    said = capsys.readouterr().err
    assert "2 of 5 structures are done" in said and f"--resume {out / 'structures.json'}" in said
    assert not (out / "labels.nii.gz").exists()
    policy = Seeker()
    terminal(dicom, "--resume", out / "structures.json", policy=policy)
    assert set(policy.asked) == {"left kidney", "right kidney", "aorta"}
    for name in ("labels.nii.gz", "labels.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    rows = [[row[key] for key in ("structure", "voxels", "volume_ml")] for row in table(out)]
    assert rows == [[row[key] for key in ("structure", "voxels", "volume_ml")] for row in table(whole)]
    assert "all structures are done" in fails(terminal, capsys, dicom, "--resume", out)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "measures.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def fails(
    terminal: Callable[..., str], capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2
) -> str:
    terminal(*arguments, code=code)
    return capsys.readouterr().err


def test_a_run_that_was_killed_within_a_structure_goes_on_from_its_last_action(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    terminal(dicom, *prompts(*QUESTIONS), *VOLUME, "--out", out)
    record = json.loads((out / "aorta" / "trajectory.json").read_text())
    record |= {"status": "ready", "reason": "", "actions": record["actions"][:2]}
    (out / "aorta" / "trajectory.json").write_text(json.dumps(record))
    policy = Seeker()
    before = Trajectory.load(out / "aorta" / "trajectory.json").actions
    terminal(dicom, "--resume", out, policy=policy)
    after = Trajectory.load(out / "aorta" / "trajectory.json")
    assert set(policy.asked) == {"aorta"} and after.status == "ended"
    assert [each.words for each in after.actions[:2]] == [each.words for each in before]


def test_an_unknown_structure_is_refused_before_anything_is_written(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "does not know the pancreas" in fails(
        terminal, capsys, dicom, *prompts("the liver", "the pancreas"), "--out", out
    )
    assert not out.exists()


def test_a_resumed_run_keeps_its_scan_and_what_it_was_asked(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    terminal(dicom, *prompts("liver and spleen"), *VOLUME, "--out", out)
    other = write_series(tmp_path / "other", np.flip(values(), axis=2) + 1024, **TAGS)
    assert "does not belong to the scan" in fails(terminal, capsys, other, "--resume", out)
    assert "needs the scan" in fails(terminal, capsys, "--resume", out)
    assert "looks" in fails(terminal, capsys, dicom, "--resume", out, "--volume", "--looks", "2")
    index = out / "structures.json"
    index.write_text(index.read_text().replace('"volume": true', '"volume": "yes"'))
    assert "volume" in fails(terminal, capsys, dicom, "--resume", out)


class Discs(DiscSegmenter):
    """The first disc scores lower than the second."""

    def predict(self, embedding: Any, clicks: Any, previous_logits: Any = None) -> Any:
        made = super().predict(embedding, clicks, previous_logits)
        return type(made)(made.mask, made.logits, 0.5 + clicks[0].x / 10)


def test_overlaps_in_a_slice_go_to_the_higher_score_and_are_said(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = [format_reply(Reply("here", Click(x, 0.5))) for x in (0.4, 0.5)]
    ends = [format_reply(Reply("done", Terminate(f"The {name} is there."))) for name in ("liver", "spleen")]
    policy = ScriptedPolicy([replies[0], ends[0], replies[1], ends[1]], ModelCard(name="scripted"))
    monkeypatch.setattr(runner, "load_segmenter", lambda asked: Discs())
    out = tmp_path / "out"
    said = terminal(dicom, *prompts("liver", "spleen"), "--slice", 6, "--out", out, policy=policy)
    liver, spleen = (Trajectory.load(out / name / "trajectory.json").mask for name in ("liver", "spleen"))
    both = int((liver & spleen).sum())
    assert both and f"Liver and Spleen overlapped in {both} pixels" in said
    assert f"Spleen keeps {both}" in said
    labels = np.asarray(nibabel.load(out / "labels.nii.gz").dataobj)
    assert (labels == 2).sum() == spleen.sum() and (labels == 1).sum() == (liver & ~spleen).sum()
    assert [int(row["voxels"]) for row in table(out)] == [(liver & ~spleen).sum(), spleen.sum()]
    assert said.count("Liver") > 1 and "overlapped" in (out / "index.html").read_text()


def test_from_python_the_caller_does_each_run(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    asked = Request(
        dicom, "the liver and the aorta", window=(-255, 255), volume=True, looks=0, out=tmp_path / "o"
    )
    several = Several(asked)
    several.begin(Seeker(), SEGMENTER)
    for each in several.runs():
        each.do(each.run.run)
    written = several.finish()
    assert written["labels"] == tmp_path / "o" / "labels.nii.gz" and not several.left
    assert [each["status"] for each in several.summary(written)["structures"]] == ["ended", "ended"]


def test_the_features_of_a_slice_are_made_once_for_all_structures(dicom: Path, tmp_path: Path) -> None:
    import ibis_agent.segmenter as segmenters

    segmenter: Any = segmenters.open(device="cpu")
    several = Several(Request(dicom, "the liver and the spleen and the aorta", index=5, out=tmp_path / "o"))
    several.begin(None, segmenter)  # a person clicks
    for n, each in enumerate(several.runs()):
        each.do(partial(each.run.add, Click(0.3 + n / 10, 0.5)))
    assert n == 2 and segmenter.kept.made == 1


def test_files_of_others_in_the_folder_stay(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("index.html", "labels.nrrd"):
        (out / name).write_text("somebody's")
        assert name in fails(terminal, capsys, dicom, *prompts("aorta", "spleen"), *VOLUME, "--out", out)
        assert [(each.name, each.read_text()) for each in out.iterdir()] == [(name, "somebody's")]
        (out / name).unlink()
    (tmp_path / "case.json").write_text('{"Modality": "CT"}')
    mask = tmp_path / "case.nii.gz"
    said = fails(terminal, capsys, dicom, *prompts("aorta", "spleen"), *VOLUME, "--mask", mask)
    assert "case.json" in said and (tmp_path / "case.json").read_text() == '{"Modality": "CT"}'


def test_the_scan_is_never_overwritten_by_its_labels(
    tmp_path: Path, terminal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    scan = tmp_path / "labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values().transpose().astype(np.int16), np.eye(4)), scan)
    before = scan.read_bytes()
    said = fails(terminal, capsys, scan, *prompts("aorta", "spleen"), *VOLUME, "--out", tmp_path)
    assert "labels.nii.gz" in said and "overwrite its own input" in said and scan.read_bytes() == before


def test_a_mask_among_earlier_results_is_not_removed_with_them(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    import SimpleITK as sitk

    out = tmp_path / "out"
    asked = [dicom, *prompts("aorta", "spleen"), *VOLUME, "--out", out]
    terminal(*asked)
    mine = out / "labels.nrrd"
    sitk.WriteImage(sitk.ReadImage(out / "labels.nii.gz"), mine)
    before = mine.read_bytes()
    terminal(*asked, "--exclude", mine, "--exclude-label", "aorta")
    assert mine.read_bytes() == before
    assert set(np.unique(nibabel.load(out / "labels.nii.gz").dataobj)) == {0, 2}


def test_what_was_killed_after_its_last_structure_still_gets_its_labels(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    out, policy = tmp_path / "out", Seeker()
    terminal(dicom, *prompts("aorta", "spleen"), *VOLUME, "--out", out)
    whole = (out / "labels.nii.gz").read_bytes()
    for name in ("labels.nii.gz", "labels.json", "measures.csv", "index.html"):
        (out / name).unlink()
    terminal(dicom, "--resume", out, policy=policy)
    assert (out / "labels.nii.gz").read_bytes() == whole and not policy.asked


def test_structures_of_an_earlier_run_in_the_folder_are_not_taken_for_those_of_this_one(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    out, policy = tmp_path / "out", Seeker()
    terminal(dicom, *prompts("aorta", "spleen"), *VOLUME, "--out", out)
    stopped = Seeker(fails_at="aorta")
    terminal(dicom, *prompts("aorta", "spleen"), *VOLUME, "--out", out, policy=stopped, code=130)
    terminal(dicom, "--resume", out, policy=policy)
    assert set(policy.asked) == {"aorta", "spleen"}


def test_the_report_has_a_group_for_every_structure_that_was_found_also_after_a_stop(
    dicom: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    highdicom = pytest.importorskip("highdicom")
    out, stopped = tmp_path / "out", Seeker(fails_at="aorta")
    asked = (*prompts("right kidney", "spleen", "aorta"), *VOLUME, "--range", 6, 9)  # no right kidney there
    terminal(dicom, *asked, "--report", "--out", out, policy=stopped, code=130)
    terminal(dicom, "--resume", out)
    with (out / "measures.csv").open(newline="") as stream:
        measures = {row["structure"]: row for row in csv.DictReader(stream)}
    seg = highdicom.seg.segread(out / "labels.seg.dcm")
    groups = highdicom.sr.srread(out / "report.dcm").content.get_volumetric_roi_measurement_groups()
    assert [each.tracking_identifier for each in groups] == ["Spleen", "Aorta"]
    for number, group in enumerate(groups, 1):
        name = seg.get_segment_description(number).segment_label
        assert group.tracking_identifier == name and group.finding_type.meaning == name
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert group.referenced_segment[0].ReferencedSOPSequence[0].ReferencedSegmentNumber == number
        found = {each.name.meaning: each.value for each in group.get_measurements()}
        assert found["Volume"] == pytest.approx(float(measures[name]["volume_ml"]), abs=1e-3)
        assert found["Area"] == pytest.approx(float(measures[name]["area"]), abs=1e-3)
    assert not list(out.glob("*/report.dcm"))
