"""Measuring an agent: the figures are right, a stopped run ends as one left alone, the page can be looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ibis_agent.segmenter as segmenters
import nibabel as nib
import numpy as np
import pytest
from browser import Browser
from ibis_agent.actions import Box, Click, Reply, Terminate, format_reply
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import encode_rle, iou
from ibis_agent.run.episode import Limits
from ibis_agent.scan.picture import Picture, PictureGeometry
from ibis_agent.segmenter.contract import Segmenter
from scripted_policy import ScriptedPolicy

from training import evaluate
from training.bench.volume import PreparedSlices, plain_predictor
from training.common.pictures import Shown
from training.common.processes import Shard
from training.evaluation import table
from training.evaluation.box import box_of, predict_box
from training.evaluation.figures import figures
from training.evaluation.measure import Measures, OnePicture, ask, measure
from training.evaluation.page import choose_worst, page
from training.evaluation.rows import read_rows
from training.evaluation.sources import Phantoms

PHANTOMS = ["--phantoms", "3", "--seed", "7", "--oracle-only"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return segmenters.open(device="cpu")


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over three phantoms that nobody stopped."""
    folder = tmp_path_factory.mktemp("alone")
    assert evaluate.main([*PHANTOMS, "--out", str(folder)]) == 0
    return folder


def click(x: float, y: float, positive: bool = True) -> str:
    return format_reply(Reply("Here.", Click(x, y, positive)))


def end(answer: str = "Done.") -> str:
    return format_reply(Reply("I see.", Terminate(answer)))


def square() -> Shown:
    """A bright square of 24 × 20 pixels in a dark picture: the liver; there is no spleen."""
    truth = np.zeros((64, 80), bool)
    truth[20:44, 30:50] = True
    grey = np.where(truth, 200, 40).astype(np.uint8)
    picture = Picture(np.repeat(grey[:, :, None], 3, axis=2), PictureGeometry.of_picture(64, 80), None)
    return Shown("square", picture, {"liver": truth}, absent=["spleen"])


def asked(structure: str = "liver", **changes: Any) -> dict[str, Any]:
    """The row of one question, answered with IoU 0.8 after two clicks unless something else is said."""
    row: dict[str, Any] = {
        "structure": structure,
        "question": f"Segment the {structure}",
        "present": True,
        "iou": 0.8,
        "dsc": 0.9,
        "clicks": 2,
        "hit": True,
        "said_absent": False,
        "unreadable": False,
        "seconds": 1.0,
        "answer": "Done.",
        "reason": "",
        "mask_rle": "",
        "steps": [],
    }
    return row | changes


def prompted(structure: str, ious: list[float], box: float) -> dict[str, Any]:
    clicks = [{"iou": each, "dsc": each, "seconds": 0.1 * (n + 1)} for n, each in enumerate(ious)]
    return {"structure": structure, "clicks": clicks, "box": {"iou": box, "dsc": box, "seconds": 0.1}}


def without_times(rows: dict[int, Any]) -> Any:
    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(each) for key, each in value.items() if not str(key).endswith("seconds")}
        return [bare(each) for each in value] if isinstance(value, list) else value

    return bare(rows)


def test_an_answer_is_judged_by_its_first_click_its_clicks_and_its_mask(segmenter: Segmenter) -> None:
    shown = square()
    view = OnePicture(segmenter, shown.picture)
    policy = ScriptedPolicy([click(0.5, 0.5), click(0.1, 0.1, False), end()])
    row = ask(shown, "liver", "Segment the liver", policy, view, Limits())
    assert row["present"] and row["hit"] and row["clicks"] == 2 and not row["said_absent"]
    assert [step["click"] for step in row["steps"]] == [[0.5, 0.5, True], [0.1, 0.1, False], None]
    assert row["iou"] == row["steps"][1]["iou"] == pytest.approx(row["dsc"] / (2 - row["dsc"]))
    assert row["answer"] == "Done." and json.dumps(row)


@pytest.mark.parametrize(("edges", "hit"), [((0.36, 0.3, 0.64, 0.7), True), ((0.0, 0.0, 1.0, 1.0), False)])
def test_a_box_counts_as_a_click_and_hits_where_it_is_around_the_structure(
    segmenter: Segmenter, edges: tuple[float, ...], hit: bool
) -> None:
    shown = square()
    box = format_reply(Reply("Here.", Box(*edges)))
    row = ask(
        shown,
        "liver",
        "Segment it",
        ScriptedPolicy([box, end()]),
        OnePicture(segmenter, shown.picture),
        Limits(),
    )
    assert (row["clicks"], row["hit"], row["said_absent"]) == (1, hit, False)
    assert [step["click"] for step in row["steps"]] == [list(edges), None]
    rows = [{"index": 0, "name": "square", "asked": [row], "prompted": []}]
    measured = {"measured": {"pictures": "one", "segmenter": {"name": "s", "sha256": "0"}}}
    seen = page(figures(rows) | measured, rows, OneSquare(2, 1))
    drawn = f"box ({', '.join(f'{edge:.3f}' for edge in edges)})"
    assert drawn in seen and "<rect" in seen


@pytest.mark.parametrize(
    ("replies", "structure", "expected"),
    [
        ([click(0.1, 0.1), end()], "liver", {"hit": False, "clicks": 1}),
        ([click(0.5, 0.5, False), end()], "liver", {"hit": False}),  # inside, but the wrong sign
        ([end("There is none.")], "liver", {"said_absent": True, "iou": 0.0, "clicks": 0}),
        ([end("There is none.")], "spleen", {"said_absent": True, "present": False, "iou": 1.0}),
        ([click(0.5, 0.5), end()], "spleen", {"said_absent": False, "hit": False, "iou": 0.0}),
        (["nonsense", "nonsense"], "liver", {"unreadable": True, "said_absent": False, "iou": 0.0}),
    ],
)
def test_misses_absences_and_nonsense_are_told_apart(
    segmenter: Segmenter, replies: list[str], structure: str, expected: dict[str, Any]
) -> None:
    shown = square()
    view = OnePicture(segmenter, shown.picture)
    row = ask(shown, structure, f"Segment the {structure}", ScriptedPolicy(replies), view, Limits())
    assert {key: row[key] for key in expected} == expected


def test_a_box_gives_the_mask_of_sam2s_own_predictor(segmenter: Segmenter) -> None:
    shown = square()
    box = box_of(shown.truths["liver"])
    assert box == (30, 20, 49, 43)
    mask, logits = predict_box(segmenter, segmenter.embed(shown.picture.rgb), box)
    theirs = plain_predictor(segmenter)
    theirs.pred_obj_scores = False  # whoever draws a box says that the object is there
    state = theirs.init_state(PreparedSlices(segmenter, shown.picture.rgb[None, :, :, 0]), 64, 80)
    _, _, found = theirs.add_new_points_or_box(state, 0, 1, box=np.array(box, np.float32))
    assert np.array_equal(mask, (found[0, 0] > 0).cpu().numpy())
    assert logits.shape == (segmenter.image_size // 4,) * 2


def test_an_empty_mask_has_no_box() -> None:
    with pytest.raises(InputError, match="no box"):
        box_of(np.zeros((4, 4), bool))


def test_what_is_asked_of_a_picture_does_not_depend_on_the_others(segmenter: Segmenter) -> None:
    how = Measures(2, 7, Limits())
    replies = [end("There is none.")] * 3
    rows = [measure(Phantoms(count, 7), 2, ScriptedPolicy(replies), segmenter, how) for count in (3, 30)]
    assert without_times(rows[0]) == without_times(rows[1])
    assert len(rows[0]["asked"]) == 3 and [each["present"] for each in rows[0]["asked"]][2] is False


def test_the_figures_have_the_published_columns() -> None:
    rows = [
        {
            "name": "a",
            "index": 0,
            "embed_seconds": 0.5,
            "asked": [
                asked(),
                asked("spleen", iou=0.2, dsc=0.3, hit=False, clicks=4),
                asked("aorta", iou=0.0, dsc=0.0, hit=False, clicks=0, said_absent=True),
                asked("lesion", present=False, iou=1.0, clicks=0, hit=False, said_absent=True),
                asked("stomach", present=False, iou=0.0, clicks=1, hit=False),
            ],
            "prompted": [
                prompted("liver", [0.7, 0.9], 0.8),
                prompted("spleen", [0.1, 0.2, 0.3, 0.4, 0.5], 0.4),
            ],
        },
        {"name": "b", "index": 1, "problem": "cannot be read"},
    ]
    found = figures(rows)
    agent = found["agent"]
    assert agent["iou"] == pytest.approx(1 / 3) and agent["dsc"] == pytest.approx(0.4)
    # One find; two false ones (spleen, stomach); two structures not found (spleen, aorta).
    assert agent["f1"] == pytest.approx(2 / (2 + 2 + 2))
    assert agent["clicks"] == 2 and agent["first_click_hit"] == pytest.approx(1 / 3)
    assert agent["absent_recall"] == 0.5 and agent["false_absence"] == pytest.approx(1 / 3)
    assert agent["seconds"] == 1.5 and agent["questions"] == 5
    # A mask that needed no third click keeps what it had.
    assert found["oracle"] == {"iou_at_1": pytest.approx(0.4), "iou_at_5": pytest.approx(0.7)}
    assert found["box"]["iou"] == pytest.approx(0.6)
    assert found["methods"]["five oracle clicks"]["clicks"] == 3.5
    assert found["methods"]["five oracle clicks"]["seconds"] == pytest.approx(0.5 + (0.2 + 0.5) / 2)
    assert found["per_structure"]["lesion"]["absent_recall"] == 1.0
    assert found["bad"] == [{"name": "b", "problem": "cannot be read"}]
    json.dumps(found, allow_nan=False)


def test_nothing_measured_gives_no_figures_rather_than_nan() -> None:
    found = figures([{"name": "b", "index": 0, "problem": "cannot be read"}])
    assert found["agent"] == {} and found["methods"] == {} and "oracle" not in found
    assert "cannot be read" in table.text(found) and "cannot be read" in table.markdown(found)


def test_names_from_elsewhere_cannot_break_the_markdown_table() -> None:
    row = {"name": "a|b\n<b>", "index": 0, "asked": [asked("x | `y`\n<img>")], "prompted": []}
    text = table.markdown(figures([row, {"name": "a|b", "index": 1, "problem": "is | bad"}]))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "<img>" not in text and len({line.replace("\\|", "").count("|") for line in tables[:3]}) == 1


def test_a_killed_run_goes_on_and_ends_as_one_left_alone(left_alone: Path, tmp_path: Path) -> None:
    assert evaluate.main([*PHANTOMS, "--out", str(tmp_path), "--shard", "1/2"]) == 0
    assert not (tmp_path / "evaluation.json").exists()
    kept = tmp_path / "rows-1-of-2.jsonl"
    kept.write_bytes(kept.read_bytes()[:-40])  # killed while it wrote the last of its two rows
    assert list(read_rows(tmp_path)) == [0]
    assert evaluate.main([*PHANTOMS, "--out", str(tmp_path), "--json", str(tmp_path / "f.json")]) == 0
    assert without_times(read_rows(tmp_path)) == without_times(read_rows(left_alone))
    ours, theirs = (json.loads((each / "evaluation.json").read_text()) for each in (tmp_path, left_alone))
    assert (
        without_times(ours)
        == without_times(theirs)
        == without_times(json.loads((tmp_path / "f.json").read_text()))
    )


def test_shards_in_folders_of_their_own_are_put_together(
    left_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(left_alone)
    settings = (left_alone / "settings.json").read_bytes()
    for number, held in ((1, (0, 2)), (2, (1,))):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "settings.json").write_bytes(settings)
        lines = "".join(json.dumps(rows[index]) + "\n" for index in held)
        (tmp_path / str(number) / f"rows-{number}-of-2.jsonl").write_text(lines)
    merge = [*PHANTOMS, "--out", str(tmp_path / "all"), "--merge"]
    with pytest.raises(SystemExit, match="1 of 3 pictures are not evaluated yet"):
        evaluate.main([*merge, str(tmp_path / "1")])
    assert evaluate.main([*merge, str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    assert read_rows(tmp_path / "all") == rows
    assert (tmp_path / "all" / "page.html").exists() and "five oracle clicks" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was evaluated with another source"):
        evaluate.main(["--phantoms", "3", "--seed", "8", *PHANTOMS[4:], *merge[5:], str(tmp_path / "1")])


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    done = []

    def impatient(_pictures: Any, index: int, *_: Any) -> dict[str, Any]:
        if done:
            raise KeyboardInterrupt
        done.append(index)
        return {"index": index, "name": "first", "prompted": [prompted("liver", [0.7], 0.8)], "asked": []}

    monkeypatch.setattr(evaluate, "measure", impatient)
    assert evaluate.main([*PHANTOMS, "--out", str(tmp_path)]) == 130
    assert list(read_rows(tmp_path)) == [0] and not (tmp_path / "evaluation.json").exists()
    assert "1 of 3" in capsys.readouterr().out


def test_the_shard_that_ends_last_writes_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(_pictures: Any, index: int, *_: Any) -> dict[str, Any]:
        if index == 0:  # meanwhile the other shard does its picture, and ends
            other = [*PHANTOMS, "--out", str(tmp_path), "--shard", "2/2"]
            assert evaluate.main(other) == 0 and not (tmp_path / "table.md").exists()
        return {"index": index, "name": str(index), "prompted": [prompted("liver", [0.7], 0.8)], "asked": []}

    monkeypatch.setattr(evaluate, "measure", measured)
    assert evaluate.main([*PHANTOMS, "--out", str(tmp_path), "--shard", "1/2"]) == 0
    assert list(read_rows(tmp_path)) == [0, 1, 2] and (tmp_path / "table.md").exists()


def test_a_folder_is_not_gone_on_with_for_something_else(left_alone: Path) -> None:
    with pytest.raises(SystemExit, match="was evaluated with another seed"):
        evaluate.main(["--phantoms", "3", "--seed", "8", "--oracle-only", "--out", str(left_alone)])


def test_a_picture_that_could_not_be_measured_is_tried_again(tmp_path: Path) -> None:
    bad, good = {"index": 0, "name": "a", "problem": "gone"}, {"index": 0, "name": "a", "asked": []}
    (tmp_path / "rows-1-of-1.jsonl").write_text(json.dumps(bad) + "\n" + json.dumps(good) + "\n")
    assert read_rows(tmp_path) == {0: good}


def test_shards_share_every_picture_once() -> None:
    assert sorted(index for n in (1, 2, 3) for index in Shard.parse(f"{n}/3").indices(8)) == list(range(8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one source is needed"),
        (["--phantoms", "2", "--data", "x"], "exactly one source is needed"),
        (["--phantoms", "0"], "--phantoms must be at least 1"),
        (["--phantoms", "2", "--seed", "10000"], "--seed must be from 0 to 9999"),
        (["--phantoms", "2", "--shard", "0/4"], "--shard needs a number"),
        (["--phantoms", "2", "--shard", "5/4", "--out", "x"], "--shard needs a number"),
        (["--phantoms", "2", "--shard", "1/4"], "Give --out"),
        (["--phantoms", "100001"], "a seed has at most 100000 phantoms"),
        (["--phantoms", "2", "--json", "."], "is a folder, not a file"),
        (["--phantoms", "2", "--json", "no/such/folder/f.json"], "there is no such folder"),
        (["--scan", "ct.nii.gz"], "--scan needs --labels"),
        (["--data", "no-such-folder", "--oracle-only"], "there is no such file or folder"),
        (["--data", ".", "--window", "5", "5"], "no width"),
        (["--phantom-volumes", "1", "--out", "x"], "volumes have no --out"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_before_any_model_loads(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.segmenters, "open", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match=message):
        evaluate.main(arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three labelled volumes: a good one, one whose labels have another size, one that is torn."""
    root = tmp_path / "data"
    root.mkdir()
    labels = np.zeros((40, 36, 9), np.uint8)
    labels[8:28, 8:28, 2:8] = 1
    labels[30:36, 30:34, 4] = 2
    grey = np.where(labels == 1, 120, 0).astype(np.int16) + np.arange(36, dtype=np.int16)[None, :, None]
    for name in ("good", "other", "torn"):
        nib.save(nib.Nifti1Image(grey, np.diag([2.0, 2.0, 5.0, 1.0])), root / f"{name}.nii.gz")
        held = labels[:, :, :-1] if name == "other" else labels
        nib.save(nib.Nifti1Image(held, np.diag([2.0, 2.0, 5.0, 1.0])), root / f"{name}_labels.nii.gz")
    (root / "torn.nii.gz").write_bytes((root / "torn.nii.gz").read_bytes()[:200])
    (root / "labels.json").write_text(json.dumps({"1": "liver", "2": "spleen"}))
    return root


def test_a_folder_is_measured_and_what_is_bad_in_it_is_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["--data", str(folder), "--oracle-only", "--out", str(out)]
    assert evaluate.main([*command, "--per-volume", "2"]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert sorted(each["name"] for each in found["bad"]) == ["other", "torn"]
    assert found["per_structure"]["liver"]["pictures"] == 2
    shown = evaluate.pictures_of(evaluate.options().parse_args(command)).show(0)
    truth, grey = shown.truths["liver"], shown.picture.rgb[:, :, 0]
    assert grey[truth].min() > grey[~truth].max()
    assert [row["name"] for row in read_rows(out).values()] == ["good/axial-003", "good/axial-006"]
    assert "other" in (out / "table.md").read_text() and "torn" in (out / "page.html").read_text()


def test_bad_data_is_refused_where_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.segmenters, "open", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match="and 1 more"):
        evaluate.main(["--data", str(folder), "--oracle-only", "--bad", "refuse"])


def test_a_labelled_scan_is_measured_slice_by_slice(data: Path) -> None:
    scan = str(data / "ct_abdomen_3mm")
    files = [
        "--scan",
        f"{scan}.nii.gz",
        "--labels",
        f"{scan}_labels.nii.gz",
        "--label-names",
        f"{scan}_labels.json",
    ]
    args = evaluate.options().parse_args(["--oracle-only", *files])
    pictures = evaluate.pictures_of(args)
    assert len(pictures) == 30
    shown = pictures.show(14)
    assert {"liver", "aorta", "spine"} <= set(shown.truths) and shown.picture.window == (-160.0, 240.0)


def test_a_labelled_scan_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    names = str(data / "ct_abdomen_3mm_labels.json")
    files = ["--scan", str(tmp_path / "gone.nii.gz"), "--labels", "gone.nii.gz", "--label-names", names]
    with pytest.raises(SystemExit, match="there is no file gone"):
        evaluate.main(["--oracle-only", *files])


def test_the_worst_answers_come_from_every_structure() -> None:
    rows = [
        {"index": n, "name": str(n), "asked": [asked(iou=n / 10), asked("spleen", iou=0.5 + n / 10)]}
        for n in range(4)
    ]
    rows.append({"index": 9, "name": "9", "asked": [asked("aorta", iou=1.0)]})
    chosen = [(row["index"], each["structure"]) for row, each in choose_worst(rows, 3)]
    assert chosen == [(0, "liver"), (1, "liver"), (0, "spleen")]


class OneSquare(Phantoms):
    def show(self, index: int) -> Shown:
        if index:
            raise InputError("cannot be read any more", file="gone.nii.gz")
        return square()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on whose words somebody tried their luck."""
    mask = np.zeros((64, 80), bool)
    mask[22:40, 30:60] = True
    steps = [
        {"thinking": "</p><script>document.title='x'</script>", "click": [0.5, 0.5, True], "iou": 0.4},
        {"thinking": "too much", "click": [0.7, 0.5, False], "iou": 0.5},
        {"thinking": "again", "click": [0.7, 0.5, False], "iou": 0.5},
        {"thinking": "done", "click": None, "iou": 0.5},
    ]
    answer = asked(iou=iou(mask, square().truths["liver"]), steps=steps, mask_rle=encode_rle(mask))
    answer["answer"] = '<img src="https://example.org/x.png">'
    gone = asked("spleen", iou=0.1, question="هل الطحال ظاهر؟")
    rows = [
        {"index": 0, "name": 'a"onload="x', "asked": [answer], "prompted": [prompted("liver", [0.7], 0.8)]},
        {"index": 1, "name": "b", "asked": [gone], "prompted": []},
    ]
    result = figures(rows) | {
        "measured": {"pictures": "two <b>pictures</b>", "segmenter": {"name": "s", "sha256": "0"}}
    }
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(result, rows, OneSquare(2, 1)), encoding="utf-8")
    return path


def test_what_a_policy_says_stays_text_on_the_page(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text and "<b>" not in text and 'onload="' not in text
    assert "gone.nii.gz" in text and "هل الطحال" in text


def test_the_page_shows_mask_outline_and_clicks_with_nothing_from_elsewhere(
    hostile: Path, browser: Browser
) -> None:
    browser.open(hostile)
    assert browser.complaints() == []
    assert browser.requests() == [] or all(url.startswith(("file:", "data:")) for url in browser.requests())
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.run(count, "article") == 2 and browser.run(count, "article svg circle") == 2
    assert browser.text("article .minus text") == "2,3−"
    assert browser.run("return document.title").startswith("two <b>pictures</b>")
    loaded = "return [...document.querySelectorAll('article image')].every(i => i.getBBox().width > 100)"
    assert browser.run(loaded) is True
    shown = "return getComputedStyle(document.querySelector('article .mask')).display"
    assert browser.run(shown) != "none"
    browser.click("#show-mask")
    assert browser.run(shown) == "none"
    browser.screenshot(hostile.with_name("page.png"))
