"""Questions about people's cases: read one by one, kept in little memory, what is wrong with them said."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ibis_agent.errors import InputError

pytest.importorskip("torch")
pytest.importorskip("sam2")

from ibis_agent.cases.cases import read_cases

from training.common import store
from training.common.pictures import Choice, Shown, Source, groups_of, phantom_groups
from training.grpo import tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two volumes of ten slices that show something, and one whose mask is empty."""
    rng = np.random.default_rng(3)
    for name in ("a", "b", "empty"):
        labels = np.zeros((24, 20, 12), np.uint8)
        if name != "empty":
            labels[4:14, 4:12, 1:11] = 1
            labels[15:20, 12:18, 5:] = 2
        grey = rng.integers(-200, 300, labels.shape).astype(np.int16)
        affine = np.diag([-2.0, -2.0, 5.0, 1.0])
        nib.save(nib.Nifti1Image(grey, affine), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / f"{name}_labels.nii.gz")
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "spleen", "3": "aorta"}))
    return tmp_path


def test_cases_are_cut_at_the_start_and_no_scan_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scans: list[weakref.ref[np.ndarray]] = []

    class Watched(Source):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            if self._scan is not None:
                scans.append(weakref.ref(self._scan.voxels))

    monkeypatch.setattr(store, "Source", Watched)
    choice = Choice(per_plane=4)
    made = tasks.case_tasks(folder, choice)
    gc.collect()
    assert len(scans) == 2 and not any(each() is not None for each in scans)
    assert len(made) == 8 and "empty: the mask is empty" in capsys.readouterr().err
    expected = [
        shown
        for group in groups_of(read_cases(folder)[0])
        for source in [Source(group, choice)]
        for place in source.places
        if isinstance(shown := source.show(place), Shown)
    ]
    for number, wanted in enumerate(expected):
        shown = made.shown(number)
        assert (shown.key, shown.absent, list(shown.truths)) == (
            wanted.key,
            wanted.absent,
            list(wanted.truths),
        )
        assert np.array_equal(shown.picture.rgb, wanted.picture.rgb)
        assert all(np.array_equal(shown.truths[name], truth) for name, truth in wanted.truths.items())


def test_other_pictures_or_other_masks_are_other_tasks(folder: Path) -> None:
    before, again = (tasks.case_tasks(folder, Choice(per_plane=2)).identity for _ in range(2))
    file = nib.load(folder / "b_labels.nii.gz")
    labels = np.asarray(file.dataobj).copy()
    labels[4, 4] = 0
    nib.save(nib.Nifti1Image(labels, file.affine), folder / "b_labels.nii.gz")
    assert before == again != tasks.case_tasks(folder, Choice(per_plane=2)).identity != ""


def test_a_folder_that_shows_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no picture to ask about"):
        tasks.case_tasks(folder, Choice(structures=("heart",)))


def test_a_policy_is_asked_about_its_frame_and_no_more() -> None:
    choice = Choice(frame="body")
    source = Source(phantom_groups(3, 4)[1], choice)
    whole, asked = source.show(("picture", 0)), tasks.phantom_tasks(3, 4, choice=choice).shown(1)
    assert isinstance(whole, Shown) and whole.picture.frame is not None
    frame = whole.picture.frame
    assert np.array_equal(asked.picture.rgb, frame.crop(whole.picture.rgb)) and asked.picture.frame is None
    assert list(asked.truths) == list(whole.truths)
    for name, truth in asked.truths.items():
        assert np.array_equal(truth, frame.crop(whole.truths[name]))
