"""The wider world of training pictures: the same for the same seed, and labels lie on what they name."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from training.demo.dataset import Joined, Slices, load, make
from training.phantoms.patient import Patient
from training.phantoms.reshaped import reshape
from training.phantoms.scanner import grain, scanned
from training.phantoms.tissues import NAMES
from training.phantoms.wide import wide_slice


def mask_of(bits: np.ndarray, name: str) -> np.ndarray:
    return (bits >> NAMES.index(name) & 1).astype(bool)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    """A scan of 60 × 50 × 40 voxels of 6 mm: a body of fat and muscle with a liver, a kidney and an aorta."""
    folder = tmp_path_factory.mktemp("patient")
    i, j, k = np.mgrid[0:60, 0:50, 0:40].astype(float)
    hu = np.full(i.shape, -1000.0)
    labels = np.zeros(i.shape, np.uint8)
    hu[((i - 30) / 26) ** 2 + ((j - 25) / 20) ** 2 < 1] = -100
    hu[((i - 30) / 22) ** 2 + ((j - 25) / 16) ** 2 < 1] = 45
    names = {}
    organs = {
        "liver": ((42, 28, 30), 8),
        "spleen": ((16, 20, 30), 5),
        "kidney_left": ((20, 18, 22), 4),
        "kidney_right": ((40, 18, 22), 4),
        "stomach": ((20, 32, 30), 5),
        "gallbladder": ((38, 34, 26), 3),
        "aorta": ((29, 20, 20), 3),
        "vertebrae_L1": ((30, 13, 20), 4),
    }
    for number, (name, (centre, radius)) in enumerate(organs.items(), 1):
        reach = 30 if name in ("aorta", "vertebrae_L1") else 2.5 * radius
        inside = ((i - centre[0]) / radius) ** 2 + ((j - centre[1]) / radius) ** 2 + (
            (k - centre[2]) / reach
        ) ** 2 < 1
        labels[inside], hu[inside], names[str(number)] = number, 60 + 20 * number, name
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    for file, values in (("ct.nii.gz", hu.astype(np.int16)), ("labels.nii.gz", labels)):
        nib.save(nib.Nifti1Image(values, affine), folder / file)
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    return Patient.load(folder / "ct.nii.gz", folder / "labels.nii.gz", folder / "names.json")


def test_a_bent_patient_is_the_same_for_the_same_seed_and_another_for_another(patient):
    first, bits, aspect, mm = patient.picture(5, side=96)
    again = patient.picture(5, side=96)
    assert np.array_equal(first, again[0]) and np.array_equal(bits, again[1])
    assert not np.array_equal(first, patient.picture(6, side=96)[0])
    assert first.shape == bits.shape == (96, 96)
    assert 0.4 < aspect < 3 and min(mm) > 0
    assert first.min() >= -1024 and np.isfinite(first).all()


def test_a_patient_s_left_stays_on_the_right_of_the_picture(patient):
    sides = []
    for seed in range(60):
        bits = patient.picture(seed, side=64)[1]
        left, right = mask_of(bits, "left kidney"), mask_of(bits, "right kidney")
        if left.sum() > 20 and right.sum() > 20:
            sides.append(np.nonzero(left)[1].mean() > np.nonzero(right)[1].mean())
    assert len(sides) > 5 and all(sides)


def test_organs_may_be_missing_and_levels_held_out_are_not_shown(patient):
    shown = dict.fromkeys(("spleen", "liver"), 0)
    for seed in range(40):
        bits = patient.picture(seed, side=48)[1]
        for name in shown:
            shown[name] += bool(mask_of(bits, name).any())
    assert 0 < shown["spleen"] < 40
    assert shown["liver"] > 0


def test_neighbours_of_a_bent_patient_share_the_body(patient):
    one, two = (patient.picture(3, side=64, above=each)[1] for each in (0.2, 0.6))
    overlap = (one & two).astype(bool).sum() / max(1, (one | two).astype(bool).sum())
    assert overlap > 0.6


def test_neighbours_of_a_bent_patient_have_the_same_grey_also_where_one_shows_more_organs(
    patient, monkeypatch
):
    shades = []
    drawn = Patient._shades

    def remembered(self, r):
        shades.append(drawn(self, r))
        return shades[-1]

    monkeypatch.setattr(Patient, "_shades", remembered)
    for seed in range(12):
        for above in (0.5, 8.5):  # 48 mm higher other organs are shown
            patient.picture(seed, side=32, above=above)
        assert np.array_equal(*shades[-2:])


def test_wide_phantoms_repeat_and_show_all_kinds_of_structures():
    hu, bits, aspect, _ = wide_slice(11, side=96)
    again = wide_slice(11, side=96)
    assert np.array_equal(hu, again[0]) and np.array_equal(bits, again[1]) and aspect == again[2]
    seen = {name for seed in range(20) for name in NAMES if mask_of(wide_slice(seed, side=64)[1], name).any()}
    assert {"liver", "spleen", "left kidney", "right kidney", "aorta", "spine", "stomach"} <= seen


def test_what_lies_beside_the_patient_never_covers_the_patient():
    body = np.zeros((80, 80), bool)
    body[20:60, 15:65] = True
    hu = np.where(body, 40.0, -1000.0)
    for seed in range(8):
        made = scanned(hu.copy(), body, (1.5, 1.5), np.random.default_rng(seed))
        assert abs(float(np.median(made[28:52, 25:55])) - 40) < 25


def test_noise_has_unit_spread_and_little_at_the_lowest_frequencies():
    made = grain((128, 128), (1.0, 1.0), np.random.default_rng(2))
    assert abs(float(made.std()) - 1) < 0.05
    power = np.abs(np.fft.rfft2(made)) ** 2
    assert power[:3, :3].mean() < 0.3 * power.max()


def test_folders_of_slices_are_read_as_one(tmp_path: Path):
    for n, (count, first) in enumerate(((3, 10), (2, 20))):
        make(tmp_path / str(n), count, 1, _Numbered(), first, 16)
    both = load(tmp_path / "0", tmp_path / "1")
    assert isinstance(both, Slices) and isinstance(both.hu, Joined)
    assert [int(both.hu[n][0, 0]) for n in range(len(both))] == [10, 11, 12, 20, 21]
    assert both.hu[np.array([4, 0])][:, 0, 0].tolist() == [21, 10]


class _Numbered:
    """A slice that is its seed everywhere; a class, so that it travels to a worker process."""

    def __call__(self, seed: int) -> tuple[np.ndarray, np.ndarray, float, bool]:
        return np.full((16, 16), seed, np.int16), np.full((16, 16), seed, np.uint16), 1.0 + seed, False


def test_organs_take_other_shapes_and_give_way_to_nothing_solid():
    liver, spleen, kidney, stomach, aorta, bowel, fat, muscle, gas, bright = 1, 2, 3, 4, 5, 6, 9, 8, 10, 11
    tissue = np.zeros((96, 96), np.uint8)
    y, x = np.mgrid[:96, :96]
    tissue[np.hypot(y - 48, x - 48) < 44] = fat
    tissue[np.hypot(y - 45, x - 30) < 16] = liver
    tissue[np.hypot(y - 60, x - 74) < 9] = spleen
    tissue[np.hypot(y - 34, x - 60) < 8] = stomach
    tissue[np.hypot(y - 55, x - 50) < 5] = aorta
    numbers = {
        "liver": [liver],
        "spleen": [spleen],
        "stomach": [stomach],
        "left kidney": [kidney],
        "right kidney": [],
        "gallbladder": [],
        "bowel": [bowel],
        "pancreas": [],
    }
    contents = gas, bright
    sizes, places = {organ: set() for organ in (liver, spleen, stomach, bowel, *contents)}, []
    for seed in range(60):
        r = np.random.default_rng(seed)
        other, changed = reshape(tissue, numbers, fat, (muscle,), contents, (3.0, 3.0), r)
        assert np.array_equal(changed, other != tissue)
        assert np.array_equal(other == aorta, tissue == aorta)
        assert np.array_equal(other == 0, tissue == 0)
        places.append(np.argwhere(other == stomach).mean(0))
        for organ, seen in sizes.items():
            seen.add(int((other == organ).sum()))
            # What an organ gains is taken from what gives way. A large spleen pushes the stomach aside, and
            # loops of bowel lie before the liver and the spleen.
            over = {spleen: {stomach}}.get(organ, set()) | (
                {liver, spleen} if organ in (bowel, *contents) else set()
            )
            assert set(np.unique(tissue[changed & (other == organ)])) <= {fat, muscle} | over
    assert all(len(seen) > 5 for seen in sizes.values())
    assert max(sizes[spleen]) > 2.5 * (tissue == spleen).sum()
    assert np.std(places, axis=0).max() > 2
