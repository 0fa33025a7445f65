"""A cohort: which scans it is, what it leaves, that it goes on after a kill, and that one bad scan harms no other."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import ibis_agent.policy as policies
import nibabel
import numpy as np
import pytest
import scripted_cohort
from dicom_files import write_series
from ibis_agent import files
from ibis_agent.cli.cohort import Cohort, Start, start_process
from ibis_agent.cli.cohort_result import Result
from ibis_agent.cli.cohort_scans import Entry, entries_of
from ibis_agent.cli.cohort_worker import answer, prepare
from ibis_agent.cli.commands import main
from ibis_agent.cli.request import Request
from ibis_agent.errors import InputError
from ibis_agent.record.cohort_page import write_cohort_page, write_table
from ibis_agent.segmenter.embeddings import KeptEmbeddings

PROGRAM = Path(scripted_cohort.__file__)


def write_scan(path: Path, seed: int = 0, corner: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(-900, 900, (24, 20, 6), np.int16)
    values[[0, -1, 0, -1], [0, -1, -1, 0]] = -900 if corner is None else corner
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 4.0, 1.0])), path)
    return path


@pytest.fixture(name="scans")
def four_scans(tmp_path: Path) -> Path:
    """Four scans, one of them broken."""
    folder = tmp_path / "scans"
    for n, name in enumerate(("a", "b", "sub/c")):
        write_scan(folder / f"{name}.nii.gz", n)
    (folder / "bad.nii.gz").write_bytes(b"not a scan")
    return folder


PROCESSES = partial(start_process, load=scripted_cohort.load)


def run(
    scans: Path, out: Path, workers: int = 1, start: Start = scripted_cohort.start_thread
) -> list[dict[str, str]]:
    scripted_cohort.cohort(scans, out).run(workers, start)
    return table(out)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "measures.csv").open(newline="") as stream:
        return [
            {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(stream)
        ]


def masks(out: Path) -> dict[str, np.ndarray]:
    return {
        path.parent.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(out.glob("*/mask.nii.gz"))
    }


QUESTION = "Segment the liver"


@pytest.mark.parametrize(
    "table",
    [
        f"scan;prompt\r\na.nii;{QUESTION}\r\n".encode("utf-8-sig"),
        f"Scan\tPrompt\na.nii\t{QUESTION}\n".encode("utf-16"),
        f"sep=;\n scan ;prompt;age\na.nii;{QUESTION};61\n".encode(),
    ],
)
def test_a_manifest_is_read_as_spreadsheets_write_it(tmp_path: Path, table: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(table)
    assert entries_of(str(tmp_path / "list.csv")) == [Entry("a", str(tmp_path / "a.nii"), QUESTION)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list.csv", "scan,promt\na.nii,x\n", "unknown column (got promt). Rename it to prompt"),
        ("list.csv", "scan,start masks\na.nii,b.nii\n", "Rename it to start_mask"),
        ("list.csv", "scan,prompt,scan\na.nii,x,b.nii\n", "has a duplicate column (got scan)"),
        ("list.csv", "scan,prompt\na.nii,the liver, and the spleen\n", "and the spleen"),
        ("list.csv", 'scan,prompt\n"a.nii,x\n', "cannot be read as CSV"),
        ("list.json", '[{"scan": "a.nii", "prompt": ["x"]}]', "prompt is not a text"),
        ("list.json", '[{"scan": "a.nii", "prompt": "x", "prompt": "y"}]', "'prompt' occurs twice"),
    ],
)
def test_a_manifest_that_could_be_misread_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        entries_of(str(tmp_path / name))
    assert said in str(refused.value) and name in str(refused.value)


def test_a_link_back_to_a_folder_above_is_not_followed(scans: Path) -> None:
    (scans / "sub" / "again").symlink_to(scans)
    assert [each.name for each in entries_of(str(scans))] == ["a", "b", "bad", "sub_c"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--device", "tpu"), ("--max-turns", "0"), ("--looks", "2"), ("--segmenter", "no.pt")],
)
def test_a_cohort_that_cannot_begin_leaves_its_folder_to_another(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    out = tmp_path / "out"
    assert main(
        ["cohort", str(scans), "--prompt", "Segment the liver", "--out", str(out), option, value]
    ) in (2, 3)
    assert value in capsys.readouterr().err or option == "--looks"
    assert not list(out.glob("*/result.json"))
    assert len(run(scans, out)) == 4


def test_a_folder_is_its_scans_and_its_dicom_folders(scans: Path) -> None:
    (scans / "patient").mkdir()
    write_series(scans / "patient" / "ct", np.ones((2, 4, 4)))
    (scans / "notes.txt").write_text("not a scan")
    found = entries_of(str(scans))
    assert [each.name for each in found] == ["a", "b", "bad", "patient_ct", "sub_c"]
    assert Path(found[3].scan).is_dir()


def test_a_dicom_folder_keeps_every_part_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.2.840.113", "1.2.840.114"):
        write_series(tmp_path / name, np.ones((2, 4, 4)))
    assert [each.name for each in entries_of(str(tmp_path))] == ["1.2.840.113", "1.2.840.114"]
    monkeypatch.chdir(tmp_path / "1.2.840.113")
    assert [each.name for each in entries_of(".")] == ["1.2.840.113"]


def test_a_pattern_is_what_it_matches(scans: Path) -> None:
    assert [each.name for each in entries_of(f"{scans}/**/[ac].nii.gz")] == ["a", "sub_c"]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_manifest_names_scans_beside_it_with_questions_of_their_own(tmp_path: Path, kind: str) -> None:
    rows = [
        {"scan": "x/a.nii", "name": "one", "prompt": "Where is it?"},
        {"scan": "y/a.nii", "name": "", "prompt": ""},
        {"scan": "z/a.nii", "name": "../../etc", "prompt": ""},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = entries_of(str(path))
    assert found[0] == Entry("one", str(tmp_path / "x/a.nii"), "Where is it?")
    assert found[1].name == "y_a" and "/" not in found[2].name and ".." not in found[2].name


def test_what_names_no_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file\nct.nii\n")
    for source in (tmp_path / "nothing", tmp_path / "list.csv", tmp_path / "*.nii"):
        with pytest.raises(InputError, match="scan"):
            entries_of(str(source))


def test_every_scan_has_its_folder_and_a_bad_one_is_a_line(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = run(scans, out)
    assert [row["name"] for row in rows] == ["a", "b", "bad", "sub_c"]
    assert [bool(row["error"]) for row in rows] == [False, False, True, False]
    for name in ("a", "b", "sub_c"):
        names = {path.name for path in (out / name).iterdir()}
        assert names == {"mask.nii.gz", "trajectory.json", "review.html", "result.json"}
    assert rows[0]["answer"] == "It is there." and float(rows[0]["area"]) > 0 and rows[0]["unit"] == "mm"
    page = (out / "index.html").read_text("utf-8")
    assert 'href="sub_c/review.html"' in page and "<script" not in page and "bad.nii.gz" in page
    assert not list(out.glob(".working-*"))


def test_two_workers_leave_what_one_leaves(scans: Path, tmp_path: Path) -> None:
    one, two = run(scans, tmp_path / "one"), run(scans, tmp_path / "two", 2, PROCESSES)
    assert one == two
    first, second = masks(tmp_path / "one"), masks(tmp_path / "two")
    assert list(first) == list(second) == ["a", "b", "sub_c"]
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def contents(out: Path) -> dict[str, str]:
    """All files below a cohort's folder, without what the clock says."""
    times = re.compile(r'"(seconds|total|policy|segmenter)": ?([\d.e-]+|\{[^{}]*\})|"[\d-]{10}T[\d:+]*"')
    found = {}
    for path in sorted(each for each in out.rglob("*") if each.is_file()):
        text = path.read_bytes().decode("latin-1")
        if path.suffix in (".json", ".html"):
            text = times.sub("", text)
        elif path.suffix == ".csv":
            text = "\n".join(map(str, table(out)))
        found[str(path.relative_to(out))] = text
    return found


def test_killed_at_any_moments_it_ends_with_the_files_of_one_left_alone(scans: Path, tmp_path: Path) -> None:
    run(scans, tmp_path / "alone")
    out, path = tmp_path / "killed", os.pathsep.join(sys.path)
    moments, ends = random.Random(18), []
    for _ in range(5):
        who, most = moments.choice((("cohort", 8), ("worker", 40)))
        command = [sys.executable, PROGRAM, scans, out, "1", who, str(moments.randint(1, most))]
        environment = {**os.environ, "PYTHONPATH": path}
        ends.append(
            subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False).returncode
        )
    assert ends.count(-signal.SIGKILL) >= 3 and set(ends) <= {0, -signal.SIGKILL}
    run(scans, out)
    assert contents(out) == contents(tmp_path / "alone")


def test_what_is_done_is_not_done_again_and_a_mended_scan_is(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(scans, out)
    before = (out / "a" / "trajectory.json").stat().st_mtime_ns
    write_scan(scans / "bad.nii.gz", 7)
    cohort = scripted_cohort.cohort(scans, out)
    assert [entry.name for entry in cohort.todo] == ["bad"]
    rows = run(scans, out)
    assert not any(row["error"] for row in rows)
    assert (out / "a" / "trajectory.json").stat().st_mtime_ns == before


def test_a_worker_that_dies_costs_the_scan_in_its_hands_alone(scans: Path, tmp_path: Path) -> None:
    write_scan(scans / "b.nii.gz", 5, corner=1000)
    rows = {row["name"]: row["error"] for row in run(scans, tmp_path / "out", 1, PROCESSES)}
    assert "memory" in rows["b"] and not rows["a"] and not rows["sub_c"]


def test_the_policy_of_the_same_place_is_the_same_policy_at_the_next_start(
    scans: Path, tmp_path: Path
) -> None:
    for address in (None, "http://localhost:8080/v1"):
        for _ in range(2):
            asked, out = (
                Request(question="Segment the liver", policy=policies.find(address)),
                tmp_path / str(bool(address)),
            )
            cohort = Cohort(entries_of(str(scans)), asked, out)
            (out / "cohort.json").write_text(json.dumps(cohort._check_same()))
            for entry in cohort.entries:
                Result(entry.name, entry.scan).save(files.check_writable_folder(out / entry.name))
    other = Request(question="Segment the liver", policy=policies.find("http://localhost:8081/v1"))
    with pytest.raises(InputError, match="another question"):
        Cohort(entries_of(str(scans)), other, tmp_path / "True")


def test_a_worker_keeps_nothing_of_a_scan_that_is_done(scans: Path, tmp_path: Path) -> None:
    class Keeping(scripted_cohort.DiscSegmenter):
        kept = KeptEmbeddings()

        def embed(self, rgb: np.ndarray) -> tuple[int, int]:
            self.kept.held += rgb.nbytes
            return super().embed(rgb)

    entry, models = Entry("a", str(scans / "a.nii.gz")), (scripted_cohort.Clicker(), Keeping())
    runner = prepare(entry, scripted_cohort.ASKED, tmp_path)
    assert not isinstance(answer(entry, runner, models, tmp_path), str)
    assert (tmp_path / "a" / "mask.nii.gz").is_file() and models[1].kept.held == 0


def test_a_folder_with_another_question_is_refused(scans: Path, tmp_path: Path) -> None:
    run(scans, tmp_path / "out")
    arguments = ["cohort", str(scans), "--out", str(tmp_path / "out"), "--prompt", "Segment the spleen"]
    assert main(arguments) == 2


def test_without_any_question_it_is_refused(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cohort", str(scans), "--out", str(tmp_path / "out")]) == 2
    assert "--prompt" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_page_shows_texts_as_texts_and_the_most_doubtful_first(tmp_path: Path) -> None:
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    measured = {"voxels": 0, "parts": 0, "volume_ml": None, "area": 0.0, "area_slice": None, "longest": 0.0,
                "perpendicular": 0.0, "diameter_slice": None, "longest_3d": None, "mean": None, "deviation": None,
                "unit": "mm", "value_unit": ""}  # fmt: skip
    common = {"scan": "=cmd()", "question": "q", "status": "ended", "measurements": measured, "seconds": 1.0}
    results = [
        {**common, "name": "sure", "answer": hostile, "doubt": 0.1, "thumbnail": hostile, "error": ""},
        {**common, "name": hostile, "answer": "", "doubt": 0.9, "thumbnail": "", "error": ""},
        {**common, "name": "failed", "answer": "", "doubt": 1.0, "thumbnail": "", "error": hostile},
    ]
    write_cohort_page(tmp_path / "index.html", hostile, results)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<script" not in page and "<img src=x" not in page and "script-src" not in page
    assert page.index("doubt 0.90") < page.index("doubt 0.10")
    write_table(tmp_path / "measures.csv", results)
    assert "'=cmd()" in (tmp_path / "measures.csv").read_text()


def test_several_structures_of_each_scan_are_one_file_of_labels_and_a_line_each(
    scans: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "out", scripted_cohort.several("liver", "spleen")
    scripted_cohort.cohort(scans, out, asked).run(1, scripted_cohort.start_thread)
    rows = table(out)
    assert [(row["name"], row["structure"]) for row in rows if not row["error"]] == [
        (name, structure) for name in ("a", "b", "sub_c") for structure in ("Liver", "Spleen")
    ]
    assert [row["name"] for row in rows if row["error"]] == ["bad"]
    for name in ("a", "b", "sub_c"):
        labels = np.asarray(nibabel.load(out / name / "labels.nii.gz").dataobj)
        counts = [int(row["voxels"]) for row in rows if row["name"] == name]
        assert counts == [int((labels == number).sum()) for number in (1, 2)] and sum(counts)
        assert (out / name / "spleen" / "review.html").is_file()
    page = (out / "index.html").read_text()
    assert 'href="a/index.html"' in page and "Liver, Spleen" not in page and "Segment the liver" in page


def test_a_cohort_of_several_structures_does_not_do_again_what_is_done(scans: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", scripted_cohort.several("liver", "spleen")
    scripted_cohort.cohort(scans, out, asked).run(1, scripted_cohort.start_thread)
    before = table(out)
    again = scripted_cohort.cohort(scans, out, asked)
    assert again.already == 3
    again.run(1, scripted_cohort.start_thread)
    assert table(out) == before
    with pytest.raises(InputError, match="another question"):
        scripted_cohort.cohort(scans, out, scripted_cohort.several("liver", "aorta"))


def test_a_structure_that_the_policy_does_not_know_is_told_before_any_scan_is_read(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["cohort", str(scans), "--out", str(tmp_path / "out")]
    assert main([*given, "--structures", "liver,pancreas"]) == 2
    assert "does not know the pancreas" in capsys.readouterr().err
    assert main([*given, "--prompt", "the liver", "--structures", "spleen"]) == 2
    assert "cannot be combined" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mine", ["a/scan.dcm", "index.html", "measures.csv"])
def test_nothing_of_others_is_replaced_by_results(scans: Path, tmp_path: Path, mine: str) -> None:
    """Such as the scan's own folder, where the results are to go beside the scans."""
    out = tmp_path / "out"
    (out / mine).parent.mkdir(parents=True)
    (out / mine).write_text("mine")
    with pytest.raises(InputError, match=mine.split("/")[0]):
        scripted_cohort.cohort(scans, out)
    assert [each for each in out.rglob("*") if each.is_file()] == [out / mine]
    assert (out / mine).read_text() == "mine"


def test_a_package_that_a_worker_misses_ends_the_cohort_with_its_name(scans: Path, tmp_path: Path) -> None:
    def load(asked: Request) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    with pytest.raises(ModuleNotFoundError) as missing:
        run(scans, tmp_path / "out", start=partial(scripted_cohort.start_thread, load=load))
    assert missing.value.name == "torch"


def test_a_worker_that_dies_after_a_scan_is_done_costs_the_next_one_alone(
    scans: Path, tmp_path: Path
) -> None:
    """Its result is on the disk; that it was said is not certain."""
    cohort = scripted_cohort.cohort(scans, tmp_path / "out")
    run(scans, tmp_path / "out")  # by another, of which this one knows nothing
    entries = {each.name: each for each in cohort.entries}
    dead = SimpleNamespace(
        entries=deque([entries["a"], entries["bad"], entries["b"]]), end=lambda: None, number=0
    )
    waiting: deque[Entry] = deque()
    with pytest.raises(NotImplementedError):  # a new worker is started for what is left
        cohort._replace(dead, [dead], waiting, _no_start, lambda *_: None)
    assert not cohort.results["a"].error and "process" in cohort.results["bad"].error
    assert [each.name for each in waiting] == ["b"]


def _no_start(*_: object) -> None:
    raise NotImplementedError
