"""Scans as people have them, made by the scripts of shared/cases: each comes out with its truth, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from awkward import made
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut
from scan_files import refused


def spacing(affine: np.ndarray) -> list[float]:
    return [round(float(each), 4) for each in np.linalg.norm(affine[:3, :3], axis=0)]


def test_each_slice_of_a_pet_has_its_own_slope(tmp_path: Path) -> None:
    scan = load_scan(made("01", tmp_path) / "pet")
    square = scan.voxels[30, 30]
    assert np.allclose(square, [1.0, *(0.4 * (n + 1) for n in range(1, 10))], atol=0.01)
    assert scan.voxels[0, 0].max() == 0


def test_each_slice_of_a_ct_has_its_own_intercept(tmp_path: Path) -> None:
    voxels = load_scan(made("02", tmp_path) / "ct").voxels
    assert (voxels.min(), voxels.max()) == (-1000, 122)
    assert voxels[0, 0, 1:].max() < -980


def test_frames_are_sorted_checked_and_refused_as_single_files_are(tmp_path: Path) -> None:
    out = made("03", tmp_path)
    in_order = load_scan(out / "order.dcm")
    mixed = load_scan(out / "mixed.dcm")
    assert spacing(in_order.affine) == [1, 1, 3]
    assert np.array_equal(mixed.voxels, in_order.voxels) and np.allclose(mixed.affine, in_order.affine)
    down = load_scan(out / "down.dcm")
    assert np.array_equal(down.voxels[:, :, ::-1], in_order.voxels)
    assert np.allclose(down.affine @ (0, 0, 7, 1), in_order.affine @ (0, 0, 0, 1))
    refused(out / "gap.dcm", "28 mm after slice 4, 3 mm elsewhere")
    refused(out / "tilt.dcm", "gantry tilt")
    refused(out / "stacks.dcm", "not parallel")
    refused(out / "times.dcm", "same position", "frame 1 and frame 5")


@pytest.mark.parametrize("name", ["halves", "alternating", "single"])
def test_a_series_dealt_out_over_subfolders_is_one_series(tmp_path: Path, name: str) -> None:
    out = made("05", tmp_path)
    scan, whole = load_scan(out / name), load_scan(out / "halves")
    assert scan.voxels.shape == (64, 64, 8) and spacing(scan.affine) == [1, 1, 3]
    assert np.array_equal(scan.voxels, whole.voxels)


def test_bytes_after_the_end_of_an_archive_are_passed_over_and_told(tmp_path: Path) -> None:
    scan = load_scan(made("08", tmp_path) / "tail.nii.gz")
    assert scan.voxels.shape == (64, 64, 10)
    assert "after the end" in scan.notes[0]


def test_a_camera_s_picture_with_a_second_one_in_it_is_the_first(tmp_path: Path) -> None:
    assert load_scan(made("09", tmp_path) / "photo.jpg").voxels.shape == (300, 400, 3)


def test_what_lies_around_a_series_does_not_disturb_it(tmp_path: Path) -> None:
    out = made("21", tmp_path)
    for name in ("mac/ct", "DICOMDIR/DICOMDIR", "linked", "copies"):
        assert load_scan(out / name).voxels.shape == (64, 64, 8), name
    assert load_scan(out / "copies").notes == ("8 exact copies of slices were left out",)
    assert load_scan(out / "two", series="1.2.3.5").voxels.shape == (64, 64, 8)
    refused(out / "two", "--series", "1.2.3.4", "1.2.3.5")
    refused(out / "a.mhd", "a.raw", "beside")


def test_a_picture_in_dicom_without_a_pixel_s_size_has_no_millimetres(tmp_path: Path) -> None:
    picture = cut(load_scan(made("23", tmp_path) / "sc.dcm"))
    assert picture.geometry.pixel_area_mm2 is None


@pytest.mark.parametrize("name", ["rle", "j2k", "deflated", "implicit", "big", "bare", "overlay"])
def test_a_series_is_the_same_in_every_coding(tmp_path: Path, name: str) -> None:
    out = made("25", tmp_path)
    scan, plain = load_scan(out / name), load_scan(out / "implicit")
    assert (plain.voxels.min(), plain.voxels.max()) == (-1000, 122)
    assert np.array_equal(scan.voxels, plain.voxels)


def test_nuclear_medicine_stacked_against_the_normal_lies_so(tmp_path: Path) -> None:
    scan = load_scan(made("26", tmp_path) / "nm.dcm")
    assert np.allclose(scan.affine[:3, 2], (0, 0, -4))
