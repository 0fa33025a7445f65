"""A cohort whose scans begin from masks: found by pattern, by name or by column, checked before any scan is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import scripted_cohort
from ibis_agent.cli import commands as cli
from ibis_agent.cli.cohort import Cohort
from ibis_agent.cli.cohort_masks import with_masks
from ibis_agent.cli.cohort_scans import entries_of
from ibis_agent.cli.given_masks import MaskFiles, named_file
from ibis_agent.cli.request import Request
from ibis_agent.errors import InputError
from ibis_agent.record.trajectory import Trajectory

SHAPE, AFFINE = (24, 20, 6), np.diag([2.0, 2.0, 4.0, 1.0])


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


def a_scan(path: Path, seed: int) -> Path:
    return write(path, np.random.default_rng(seed).integers(-900, 900, SHAPE, np.int16))


def a_mask(path: Path, row: int, **more: int) -> Path:
    """A box that begins at this row; more: further labels by name, a box each at their rows, and a table of names."""
    values = np.zeros(SHAPE, np.uint8)
    names = {"liver": row, **more}
    for number, (_, first) in enumerate(names.items(), 1):
        values[first : first + 3, 4:9, 1:4] = number
    if more:
        table = {"labels": {"background": 0, **{name: n for n, name in enumerate(names, 1)}}}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps(table))
    return write(path, values)


@pytest.fixture(name="scans")
def three_scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for n, name in enumerate(("a", "b", "sub/c")):
        a_scan(folder / f"{name}.nii.gz", n)
    return folder


def asked(*starts: str, exclude: Path | None = None, base: Request = scripted_cohort.ASKED) -> Request:
    return replace(base, masks=MaskFiles(tuple(map(named_file, starts)), None, exclude))


def run(scans: Path, out: Path, request: Request) -> Cohort:
    made = Cohort(with_masks(entries_of(str(scans)), request.masks), request, out)
    made.run(1, scripted_cohort.start_thread)
    assert [each.error for each in made.results.values() if each.error] == []
    return made


def given(folder: Path) -> Any:
    return Trajectory.load(folder / "trajectory.json").given


def test_masks_beside_their_scans_are_begun_from_and_are_no_scans_themselves(
    scans: Path, tmp_path: Path
) -> None:
    for n, name in enumerate(("a", "b", "sub/c")):
        a_mask(scans / f"{name}_liver.nii.gz", 2 * n + 1)
    out, request = tmp_path / "out", asked("{scan}_liver.nii.gz")
    run(scans, out, request)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["a", "b", "sub_c"]
    for name in ("a", "b", "sub_c"):
        start = given(out / name)
        assert start.start_name == f"{name[-1]}_liver.nii.gz" and set(start.start) == {1}
    assert not np.array_equal(given(out / "a").start[1], given(out / "b").start[1])
    assert run(scans, out, request).already == 3
    with pytest.raises(InputError, match="another question"):
        run(scans, out, scripted_cohort.ASKED)


def test_a_scan_whose_ending_is_in_capitals_is_called_without_it(scans: Path, tmp_path: Path) -> None:
    (scans / "a.nii.gz").rename(scans / "A.NII.GZ")
    for name in ("A", "b", "sub/c"):
        a_mask(scans / f"{name}_liver.nii.gz", 2)
    run(scans, tmp_path / "out", asked("{scan}_liver.nii.gz"))
    assert given(tmp_path / "out" / "A").start_name == "A_liver.nii.gz"


def test_a_folder_of_masks_is_matched_by_name_and_excludes_likewise(scans: Path, tmp_path: Path) -> None:
    for n, name in enumerate(("a", "b", "sub/c")):
        a_mask(tmp_path / "masks" / f"{name}.nii.gz", 2 * n + 1)
        a_mask(tmp_path / "other" / f"{Path(name).name}.nii.gz", 12)
    run(scans, tmp_path / "out", asked(str(tmp_path / "masks"), exclude=tmp_path / "other"))
    for name in ("a", "b", "sub_c"):
        mask = np.asarray(nib.load(tmp_path / "out" / name / "mask.nii.gz").dataobj) > 0
        assert mask.any() and not mask[12:15, 4:9, 1:4].any()


def test_a_manifest_names_masks_and_an_empty_cell_is_a_scan_without_one(scans: Path, tmp_path: Path) -> None:
    a_mask(tmp_path / "m.nii.gz", 3)
    table = tmp_path / "list.csv"
    table.write_text("scan,name,start_mask\nscans/a.nii.gz,a,m.nii.gz\nscans/b.nii.gz,b,\n")
    run(table, tmp_path / "out", scripted_cohort.ASKED)
    assert given(tmp_path / "out" / "a").start and not given(tmp_path / "out" / "b").start
    table.write_text("scan,start_mask\nscans/a.nii.gz,none.nii.gz\n")
    with pytest.raises(InputError, match="is missing"):
        with_masks(entries_of(str(table)), MaskFiles())


def test_each_structure_of_each_scan_begins_from_its_own_label(scans: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "sub/c"):
        a_mask(tmp_path / "maps" / f"{name}.nii.gz", 1, spleen=12)
    out = tmp_path / "out"
    run(scans, out, asked(str(tmp_path / "maps"), base=scripted_cohort.several("liver", "spleen")))
    for name in ("a", "b", "sub_c"):
        assert given(out / name / "liver").start_name == f"{name[-1]}.nii.gz, liver"
        assert given(out / name / "spleen").start_name == f"{name[-1]}.nii.gz, spleen"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("{scan}_liver.nii.gz", "2 of 3 scans have no mask for --start-mask: b, sub_c"),
        ("masks", "2 of 3 scans have no mask for --start-mask: b, sub_c"),
        ("scans/a_liver.nii.gz", "a folder of masks, or a path with {scan}"),
    ],
)
def test_missing_masks_are_told_by_name_before_anything_is_written(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    where: str, words: str,
) -> None:  # fmt: skip
    a_mask(scans / "a_liver.nii.gz", 1)
    a_mask(tmp_path / "masks" / "a.nii.gz", 1)
    monkeypatch.chdir(tmp_path)
    pattern = "scans/**/[abc].nii.gz"
    command = ["cohort", pattern, "--prompt", "Segment the liver", "--start-mask", where, "--out", "out"]
    assert cli.main(command) == cli.BAD_INPUT
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_scan_without_a_mask_is_not_given_the_mask_of_another_folders_scan(tmp_path: Path) -> None:
    for n, patient in enumerate(("p1", "p2")):
        a_scan(tmp_path / "scans" / patient / "ct.nii.gz", n)
    a_mask(tmp_path / "masks" / "p1" / "ct.nii.gz", 1)
    entries, masks = entries_of(str(tmp_path / "scans")), asked(str(tmp_path / "masks")).masks
    with pytest.raises(InputError, match="same mask for --start-mask: p1_ct, p2_ct"):
        with_masks(entries, masks)
    a_mask(tmp_path / "masks" / "p2" / "ct.nii.gz", 5)
    found = [Path(path).parent.name for entry in with_masks(entries, masks) for _, path in entry.start]
    assert found == ["p1", "p2"]


@pytest.mark.parametrize("where", ["{scan}.nii.gz", "masks"])
def test_the_mask_of_a_dicom_folder_is_called_as_the_whole_folder_is(tmp_path: Path, where: str) -> None:
    names = ("1.2.840.113", "1.2.840.114")
    for n, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").touch()
        a_mask((tmp_path / "masks" if where == "masks" else tmp_path) / f"{name}.nii.gz", n + 1)
    if where == "masks":
        a_mask(tmp_path / "masks" / "1.2.840.nii.gz", 9)
    entries = entries_of(str(tmp_path / "1.2.840.11[34]"))
    made = with_masks(entries, asked(where if "{" in where else str(tmp_path / where)).masks)
    assert [Path(path).name for each in made for _, path in each.start] == [f"{n}.nii.gz" for n in names]


def test_a_label_without_a_mask_and_two_masks_for_one_structure_are_told_before_any_scan_is_read(
    scans: Path,
) -> None:
    entries = entries_of(str(scans))
    for masks in (MaskFiles(label="liver"), MaskFiles(exclude_labels=("liver",))):
        with pytest.raises(InputError, match="a label is given without a file"):
            with_masks(entries, masks)
    for name in ("a", "b", "sub/c"):
        a_mask(scans / f"{name}_liver.nii.gz", 1)
    with pytest.raises(InputError, match="two masks are given"):
        with_masks(entries, asked("{scan}_liver.nii.gz", "{scan}_liver.nii.gz").masks)
