"""Phantoms: the same seed gives the same patient, anatomy lies where it should, slices and volumes agree."""

from __future__ import annotations

import numpy as np
import pytest

from training.phantoms.phantom import STRUCTURES, Anatomy, make_volume, random_slice, write_volume


def test_a_seed_gives_the_same_slice_twice_and_another_seed_another():
    first, again, other = random_slice(5), random_slice(5), random_slice(6)
    assert np.array_equal(first.hu, again.hu)
    assert all(np.array_equal(first.masks[n], again.masks[n]) for n in STRUCTURES)
    assert first.hu.shape != other.hu.shape or not np.array_equal(first.hu, other.hu)


def test_radiological_slices_show_the_liver_on_the_left_and_mirrored_ones_on_the_right():
    for seed in range(40, 60):
        for mirrored in (False, True):
            s = Anatomy(seed).slice_at(20.0, 3.0, mirrored=mirrored)
            if s.masks["liver"].sum() > 500:
                x = np.nonzero(s.masks["liver"])[1].mean() / s.hu.shape[1]
                spine = np.nonzero(s.masks["spine"])[1].mean() / s.hu.shape[1]
                assert (x < spine) != mirrored


def test_the_spine_lies_behind_the_aorta():
    s = Anatomy(3).slice_at(0.0, 2.0)
    assert np.nonzero(s.masks["spine"])[0].mean() > np.nonzero(s.masks["aorta"])[0].mean()


def test_structures_other_than_lesions_do_not_overlap():
    for seed in range(30, 40):
        masks = random_slice(seed).masks
        total = sum(masks[n].astype(int) for n in STRUCTURES if n != "lesion")
        assert total.max() <= 1


def test_organs_have_the_density_of_their_phase():
    anatomy = Anatomy(12)
    s = anatomy.slice_at(10.0, 2.0)
    liver = s.hu[s.masks["liver"] & ~s.masks["lesion"]]
    assert np.median(liver) == pytest.approx(anatomy.density["liver"], abs=15)


def test_some_patients_lack_structures_and_some_have_lesions():
    slices = [random_slice(seed, spacing=3.0) for seed in range(200, 260)]
    for name in STRUCTURES:
        shown = sum(s.masks[name].any() for s in slices)
        assert shown > 0
        if name not in ("liver", "spine", "aorta"):
            assert shown < len(slices)


def test_a_volume_is_written_with_its_geometry_and_its_labels(tmp_path):
    nib = pytest.importorskip("nibabel")
    volume = make_volume(4, (5.0, 5.0, 20.0))
    write_volume(volume, tmp_path / "scan.nii.gz")
    scan, labels = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "scan_labels.nii.gz")
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
    assert np.allclose(scan.header.get_zooms(), (5, 5, 20))
    number = STRUCTURES.index("liver") + 1
    where = np.argwhere(np.asarray(labels.dataobj) == number).mean(0)
    assert (scan.affine @ [*where, 1])[0] > 0  # the liver is on the patient's right
