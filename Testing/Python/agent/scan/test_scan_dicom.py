"""A DICOM series becomes a volume that lies where its slices say, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series, write_slice
from ibis_agent.errors import InputError
from ibis_agent.scan.load import load_scan
from scan_files import RAW, refused, save_nifti


def test_a_series_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    scan = load_scan(write_series(tmp_path / "s", RAW))
    assert np.array_equal(scan.voxels, RAW.transpose(2, 1, 0) - 1024)
    assert np.allclose(scan.affine, [[-1, 0, 0, 10], [0, -2, 0, -5], [0, 0, 3, 20], [0, 0, 0, 1]])
    assert (scan.modality, scan.name) == ("CT", "Abdomen")


def test_broken_slopes_give_single_floats(tmp_path: Path) -> None:
    scan = load_scan(write_series(tmp_path / "s", RAW, RescaleSlope="0.5", RescaleIntercept="0.25"))
    assert scan.voxels.dtype == np.float32
    assert np.allclose(scan.voxels, RAW.transpose(2, 1, 0) * 0.5 + 0.25)


def test_a_sagittal_series_lies_sagittally(tmp_path: Path) -> None:
    for n in range(6):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (4 * n, 0, 0), (0, 1, 0, 0, 0, -1))
    scan = load_scan(tmp_path)
    for n, row, column in ((0, 0, 0), (5, 3, 2)):
        i, j, k = np.argwhere(scan.voxels == RAW[n, row, column] - 1024)[0]
        lps = np.array([4 * n, column, -2 * row])
        assert np.allclose((scan.affine @ (i, j, k, 1))[:3], lps * (-1, -1, 1))


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path: Path) -> None:
    write_series(tmp_path, RAW)
    write_series(tmp_path, RAW[:3] + 7, "b", series="1.2.9", SeriesDescription="Scout", SeriesNumber=1)
    refused(
        tmp_path,
        "2 series",
        "--series",
        "1.2.3.4",
        "number 3, CT, 6 files, Abdomen",
        "1.2.9",
        "number 1",
        "3 files",
    )
    assert load_scan(tmp_path, series="1.2.9").voxels.shape == (10, 8, 3)
    assert load_scan(tmp_path, series="1.2.3.4").voxels.shape == (10, 8, 6)
    refused(tmp_path, "no such series", "7.7", "1.2.9", series="7.7")


def test_other_files_and_reports_in_the_folder_do_not_disturb(tmp_path: Path) -> None:
    write_series(tmp_path, RAW)
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    report = {"PixelData": None, "Rows": None, "Columns": None, "Modality": "SR"}
    write_slice(tmp_path / "report.dcm", RAW[0], None, (), "1.2.5", "1.2.840.10008.5.1.4.1.1.88.11", **report)
    assert load_scan(tmp_path).voxels.shape == (10, 8, 6)


def test_a_series_may_lie_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "patient").mkdir()
    write_series(tmp_path / "patient" / "series", RAW)
    assert load_scan(tmp_path).voxels.shape == (10, 8, 6)


@pytest.mark.parametrize("name", ["one.dcm", "IM0001", "1.2.840.113619.2.55.3", "IM-0001.dicom"])
def test_one_dicom_file_is_a_scan_of_one_slice(tmp_path: Path, name: str) -> None:
    write_slice(tmp_path / name, RAW[0], (0, 0, 0))
    assert load_scan(tmp_path / name).voxels.shape == (10, 8, 1)


def test_a_series_with_a_hole_a_double_or_a_tilt_is_refused(tmp_path: Path) -> None:
    def series(name: str, places: list[tuple[float, float, float]], **options: object) -> Path:
        (tmp_path / name).mkdir()
        for n, place in enumerate(places):
            write_slice(tmp_path / name / f"{n}.dcm", RAW[n], place, **options)  # type: ignore[arg-type]
        return tmp_path / name

    refused(series("hole", [(0, 0, z) for z in (0, 3, 6, 12, 15)]), "6 mm after slice 2, 3 mm elsewhere")
    refused(series("double", [(0, 0, z) for z in (0, 0, 3, 3)]), "same position")
    refused(series("tilt", [(0, 0.8 * z, 3 * z) for z in range(5)]), "gantry tilt")
    crossed = series("crossed", [(0, 0, 3 * z) for z in range(4)])
    write_slice(crossed / "x.dcm", RAW[5], (0, 0, 12), (0, 1, 0, 0, 0, 1))
    refused(crossed, "not parallel")
    sizes = series("sizes", [(0, 0, 3 * z) for z in range(4)])
    write_slice(sizes / "x.dcm", RAW[5][:4], (0, 0, 12))
    refused(sizes, "different sizes", "x.dcm 10 × 4")
    (tmp_path / "nowhere").mkdir()
    for n in range(3):
        write_slice(tmp_path / "nowhere" / f"{n}.dcm", RAW[n], None)
    with pytest.raises(InputError, match="has no position"):
        load_scan(tmp_path / "nowhere")


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize(
    "tags, words",
    [
        ({"PixelSpacing": [0, 0]}, ("not positive", "0")),
        ({"PixelSpacing": [-1, 1]}, ("not positive", "-1")),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.8, 0]}, ("perpendicular", "0.8")),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, ("perpendicular",)),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, ("perpendicular",)),
    ],
)
def test_a_header_that_cannot_be_is_refused_and_not_put_right_in_silence(
    tmp_path: Path, slices: int, tags: dict[str, object], words: tuple[str, ...]
) -> None:
    for n in range(slices):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n), **tags)  # type: ignore[arg-type]
    refused(tmp_path if slices > 1 else tmp_path / "0.dcm", *words)


def test_a_picture_that_does_not_say_where_it_lies_is_read(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", RAW[0], None, PixelSpacing=None)
    assert load_scan(tmp_path / "a.dcm").voxels.shape == (10, 8, 1)


def test_what_the_files_do_not_say_or_say_in_two_ways_is_told(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", RAW[0], None, PixelSpacing=None)
    assert load_scan(tmp_path / "a.dcm").notes == (
        "the file contains no pixel size: measurements are in pixels",
        "the file contains no position: placed at the origin",
    )
    for n in range(3):
        name = tmp_path / "s" / f"{n}.dcm"
        name.parent.mkdir(exist_ok=True)
        write_slice(name, RAW[n], (0, 0, 3 * n), FrameOfReferenceUID=f"1.2.{n % 2}")
    assert load_scan(tmp_path / "s").notes == ("the slices have 2 frames of reference: treated as one",)
    write_slice(tmp_path / "s" / "3.dcm", RAW[3], (0, 0, 9), Modality="MR")
    refused(tmp_path / "s", "several modalities", "0.dcm CT, 3.dcm MR")


@pytest.mark.parametrize("which", [1, 4, 6])
def test_a_slice_that_was_cut_off_is_not_silently_left_out(tmp_path: Path, which: int) -> None:
    write_series(tmp_path, RAW)
    file = tmp_path / f"a{which:03}.dcm"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=f"{file.name}.*cut off"):
        load_scan(tmp_path)


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no DICOM images")
    save_nifti(tmp_path / "a.nii.gz")
    refused(tmp_path, "no DICOM images", "scan file")


def test_a_description_in_another_alphabet_is_read(tmp_path: Path) -> None:
    write_series(tmp_path / "a", RAW[:3], SpecificCharacterSet="ISO_IR 192", SeriesDescription="腹部")
    write_series(tmp_path / "b", RAW[:3], SpecificCharacterSet="ISO_IR 100", SeriesDescription="Bäuche")
    assert load_scan(tmp_path / "a").name == "腹部"
    assert load_scan(tmp_path / "b").name == "Bäuche"
