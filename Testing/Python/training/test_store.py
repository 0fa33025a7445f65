"""The store: what it shows is what the scan shows, and a scan is read once for everybody."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ibis_agent.cases.cases import read_cases

from training import evaluate
from training import store as command
from training.bench import store as bench
from training.common import store
from training.common.pictures import Choice, Group, Shown, Source, groups_of
from training.common.processes import Shard
from training.common.store import Kept, fill, opened
from training.evaluation.sources import LabelledData

CHOICES = (
    Choice(planes=("axial", "coronal"), per_plane=3),
    Choice(slices="all", least_area=0.05, window=(-100.0, 200.0), orientation="upstream"),
    Choice(structures=("spleen", "pair"), frame="body"),
)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two volumes, one with its structures in two masks, and a colour picture."""
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in "ab":
        labels = np.zeros((40, 30, 9), np.int16)
        labels[5:15, 6:20, :7] = 1
        labels[20:30, 8:18, 3:] = 700
        labels[32:35, 4:8, 4] = 3
        labels[2:4, 22:26, 2:5] = 4
        grey = (labels % 97 * 20 + rng.integers(0, 30, labels.shape)).astype(np.int16)
        affine = np.diag([-2.0, -2.0, 3.0, 1.0])
        nib.save(nib.Nifti1Image(grey, affine), folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), folder / f"{name}_labels.nii.gz")
    names = {"1": "liver", "700": "spleen", "3": "pair", "4": "pair", "9": "stomach"}
    (folder / "labels.json").write_text(json.dumps(names))
    return folder


def _groups(scans: Path) -> list[Group]:
    return groups_of(read_cases(scans)[0])


def _told(shown: Any) -> Any:
    """Everything that a picture says, in values that can be compared."""
    assert isinstance(shown, Shown)
    values = {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}
    picture = values.pop("picture")
    values |= {"rgb": picture.rgb.tobytes(), "geometry": picture.geometry.to_json(), "window": picture.window}
    values |= {"notes": picture.notes, "frame": picture.frame}
    for kind in ("truths", "traces"):
        values[kind] = [(name, mask.shape, mask.tobytes()) for name, mask in values[kind].items()]
    return values


@pytest.mark.parametrize("choice", CHOICES)
def test_a_kept_scan_shows_what_the_scan_shows(scans: Path, tmp_path: Path, choice: Choice) -> None:
    for group in _groups(scans):
        read, kept = Source(group, choice), opened(group, choice, tmp_path / "store")
        assert isinstance(kept, Kept)
        assert (kept.places, kept.scan, kept.problems) == (read.places, read.scan, read.problems)
        assert read.places == kept.usable != []
        for place in read.places:
            assert _told(kept.show(place)) == _told(read.show(place))


def test_a_scan_is_read_once_and_again_only_when_it_has_changed(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "store"
    counts = fill(_groups(scans), CHOICES[0], kept)
    assert counts[:2] == (12, 2)
    read: list[str] = []

    def source(group: Group, choice: Choice) -> Source:
        read.append(group.key)
        return Source(group, choice)

    monkeypatch.setattr(store, "Source", source)
    fill(_groups(scans), CHOICES[0], kept)
    assert read == []
    os.utime(scans / "b_labels.nii.gz", ns=(1, 1))
    fill(_groups(scans), CHOICES[0], kept)
    fill(_groups(scans), CHOICES[1], kept)
    assert read == ["b", "a", "b"]


def test_a_shard_reads_its_own_part_only(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, said in (("1/2", "1 scans (2 in total)"), ("2/2", "1 scans (2 in total)")):
        given = ["store", str(scans), "--out", str(tmp_path / "store"), "--shard", part]
        monkeypatch.setattr("sys.argv", given)
        command.main()
        assert said in capsys.readouterr().out
    assert len([each for each in (tmp_path / "store").iterdir() if not each.name.startswith(".")]) == 2


def test_parts_of_an_evaluation_begin_with_their_own_scans_and_read_none_twice(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def source(group: Group, choice: Choice) -> Source:
        read.append(group.key)
        return Source(group, choice)

    monkeypatch.setattr(store, "Source", source)
    cases = read_cases(scans)[0]
    parts = [LabelledData(cases, CHOICES[0], (), tmp_path / "store", Shard(n, 2)) for n in (2, 1)]
    assert read == ["b", "a"]
    assert [len(part) for part in parts] == [12, 12]


def test_a_merge_reads_no_scan_that_its_parts_have_read(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures(*given: Any) -> Any:
        words = ["--data", scans, "--oracle-only", "--out", *given]
        return evaluate.pictures_of(evaluate.options().parse_args(list(map(str, words))))

    part = pictures(tmp_path / "1", "--shard", "1/2")
    monkeypatch.setattr(store, "Source", None)
    monkeypatch.setattr("training.evaluation.sources.Source", None)
    merged = pictures(tmp_path / "all", "--merge", tmp_path / "1", tmp_path / "2")
    assert len(merged) == len(part) > 0 and merged.identity == part.identity
    assert _told(merged.show(0)) == _told(part.show(0))


def test_a_scan_that_another_process_is_cutting_is_waited_for(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, waits, found = _groups(scans)[0], threading.Event(), []
    lock = store.FileLock

    def told(path: Path) -> Any:
        waits.set()
        return lock(path)

    def reads(*_: Any) -> None:
        raise AssertionError("it is being cut")

    thread = threading.Thread(target=lambda: found.append(opened(group, CHOICES[0], tmp_path)))
    folder = tmp_path / store._key(group, CHOICES[0])
    with lock(tmp_path / f".{folder.name}.lock"), monkeypatch.context() as patch:
        source = Source(group, CHOICES[0])
        patch.setattr(store, "FileLock", told)
        patch.setattr(store, "Source", reads)
        thread.start()
        assert waits.wait(60)
        store._keep(source, folder)
    thread.join()
    assert found[0].places == source.places


def test_a_process_that_is_stopped_while_it_waits_leaves_the_lock_to_the_one_that_cuts(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = _groups(scans)[0]
    lock = tmp_path / f".{store._key(group, CHOICES[0])}.lock"

    def stopped(path: Path) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "FileLock", stopped)
    lock.touch()  # held by another process
    with pytest.raises(KeyboardInterrupt):
        opened(group, CHOICES[0], tmp_path)
    assert lock.exists()


def test_what_a_kill_left_half_written_is_not_taken_for_a_scan(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write_json", killed)
        opened(_groups(scans)[0], CHOICES[0], tmp_path / "store")
    assert not [path for path in (tmp_path / "store").iterdir() if path.is_dir()]
    assert opened(_groups(scans)[0], CHOICES[0], tmp_path / "store").places


def test_structures_in_several_masks_are_put_together(tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 90, (20, 20, 4)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(grey, affine), tmp_path / "a.nii.gz")
    rows, whole = [], np.zeros(grey.shape, bool)
    for n, part in enumerate((np.s_[2:6, 3:9, 1:3], np.s_[12:18, 10:14, 2:4])):
        mask = np.zeros(grey.shape, np.uint8)
        mask[part], whole[part] = 1, True
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / f"kidney{n}.nii.gz")
        rows.append({"id": f"a/{n}", "image": "a.nii.gz", "mask": f"kidney{n}.nii.gz"})
    (tmp_path / "all.json").write_text(json.dumps({"labels": {"1": "kidney"}, "cases": rows}))
    (group,) = groups_of(read_cases(tmp_path / "all.json")[0])
    source = Source(group, Choice(planes=("z",), slices="all"))
    assert len(source.places) == 4
    areas = [int(source.show(place).truths.get("kidney", np.zeros(1)).sum()) for place in source.places]
    assert areas == whole.sum(axis=(0, 1)).tolist()


def test_the_benchmark_fills_a_store_of_as_many_volumes_as_it_is_asked(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for number in range(2):
        bench.make_volume(tmp_path / "made", number, (96, 96, 12))
    scans = bench.gather(tmp_path / "made", tmp_path / "scans", 3)
    row = bench.measure(scans, tmp_path / "store")
    assert 12 < row["pictures"] <= 24 and row["store_mb"] > 0 and row["memory_mb"] > 0
    assert f"| 3 | {row['pictures']} |" in bench.table([{"volumes": 3, **row}])
