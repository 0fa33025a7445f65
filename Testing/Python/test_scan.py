"""Scans are read as their files hold them, and what cannot be used is refused with file, value and mend."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series, write_slice
from ibis_agent.errors import InputError
from ibis_agent.picture import cut
from ibis_agent.scan import Scan, load_scan
from PIL import Image

RNG = np.random.default_rng(5)
VOLUME = RNG.integers(-1000, 1000, (6, 8, 10)).astype(np.int16)  # (I, J, K)
AFFINE = np.array(
    [[-0.8, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3, 100], [0, 0, 0, 1]], dtype=float
)  # left-handed
OBLIQUE = np.array([[0.9397, -0.342, 0, 1], [0.342, 0.9397, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]], dtype=float)


def save_nifti(path: Path, voxels: np.ndarray = VOLUME, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def save_itk(
    path: Path, voxels: np.ndarray = VOLUME, affine: np.ndarray = AFFINE, compress: bool = True
) -> Path:
    image = sitk.GetImageFromArray(voxels.T)
    columns = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(columns[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(columns[:, 3].tolist())
    sitk.WriteImage(image, str(path), compress)
    return path


def refused(path: Path, *words: str, **options: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_scan(path, **options)
    text = str(caught.value)
    assert str(path) in text
    for word in words:
        assert word in text, text
    return caught.value


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd", "a.nhdr", "A.NII.GZ", "肝 1.nrrd"]
)
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["left-handed", "oblique"])
def test_a_volume_keeps_its_order_and_its_place(tmp_path: Path, name: str, affine: np.ndarray) -> None:
    save = save_nifti if ".nii" in name.lower() else save_itk
    scan = load_scan(save(tmp_path / name, affine=affine))
    assert scan.kind == "volume"
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels, VOLUME)
    assert np.allclose(scan.affine, affine, atol=1e-5)
    assert scan.name == name.split(".")[0]


def test_nifti_agrees_with_nibabel_and_nrrd_with_itk_on_a_voxels_place(tmp_path: Path, data: Path) -> None:
    for file in ("ct_abdomen_3mm.nii.gz", "mr_abdomen_3mm.nii.gz"):
        scan = load_scan(data / file)
        image = nibabel.load(data / file)
        assert np.array_equal(scan.affine, image.affine)
        assert np.array_equal(scan.voxels, np.asarray(image.dataobj))
        again = sitk.ReadImage(str(data / file))
        lps = again.TransformIndexToPhysicalPoint((3, 4, 5))
        assert np.allclose(scan.affine @ (3, 4, 5, 1), (-lps[0], -lps[1], lps[2], 1), atol=1e-3)
        sitk.WriteImage(again, str(tmp_path / "same.nrrd"))
        other = load_scan(tmp_path / "same.nrrd")
        assert np.array_equal(other.voxels, scan.voxels)
        assert np.allclose(other.affine, scan.affine, atol=1e-3)


def test_the_lesion_archives_lie_as_itk_would_place_them(data: Path) -> None:
    archive = np.load(data / "lesion_000002.npz")
    scan = load_scan(data / "lesion_000002.npz")
    image = sitk.GetImageFromArray(archive["imgs"])
    image.SetSpacing(archive["spacing"].tolist())
    image.SetDirection(archive["direction"].tolist())
    image.SetOrigin(archive["origin"].tolist())
    assert scan.voxels.dtype == np.uint8
    for voxel in ((0, 0, 0), (17, 400, 6), (511, 3, 2)):
        assert scan.voxels[voxel] == image.GetPixel(voxel)
        lps = image.TransformIndexToPhysicalPoint(voxel)
        assert np.allclose(scan.affine @ (*voxel, 1), (-lps[0], -lps[1], lps[2], 1))
    picture = cut(scan, "z", 6)
    assert picture.window == (0, 255), "it was windowed before"
    assert set(np.unique(picture.rgb)) == set(np.unique(archive["imgs"][6])), "and is shown as it is"


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2"])
def test_integers_stay_as_they_are_and_floats_become_single(tmp_path: Path, kind: str) -> None:
    voxels = np.abs(VOLUME % 100).astype(kind)
    scan = load_scan(save_nifti(tmp_path / "a.nii.gz", voxels))
    assert scan.voxels.dtype == (np.float32 if "float" in kind else np.dtype(kind).newbyteorder("="))
    assert np.array_equal(scan.voxels, voxels)


def test_a_slope_and_an_intercept_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii.gz")
    # nibabel rescales on saving; setting the header in the file is what a scanner does.
    raw = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    raw[112:120] = struct.pack("<ff", 0.5, 10)
    stored = np.frombuffer(raw[352:], "<i2").reshape(VOLUME.shape, order="F")
    (tmp_path / "a.nii").write_bytes(raw)
    scan = load_scan(tmp_path / "a.nii")
    assert scan.voxels.dtype == np.float32
    assert np.allclose(scan.voxels, stored * 0.5 + 10)


@pytest.mark.parametrize("shape", [(6, 8, 10, 1), (6, 8, 10, 1, 1), (6, 8)])
def test_axes_of_one_entry_do_not_matter(tmp_path: Path, shape: tuple[int, ...]) -> None:
    scan = load_scan(save_nifti(tmp_path / "a.nii.gz", np.resize(VOLUME, shape)))
    assert scan.voxels.shape == (*shape, 1)[:3]


def test_millimetres_are_meant_whatever_unit_the_header_has(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert np.allclose(load_scan(tmp_path / "a.nii.gz").affine[:3], AFFINE[:3] / 1000)


# --- pictures


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"),
        ("L", "a.png"),
        ("1", "a.png"),
        ("P", "a.png"),
        ("RGB", "a.jpg"),
        ("L", "a.jpeg"),
        ("CMYK", "a.jpg"),
    ],
)
def test_every_usual_picture_becomes_rgb(tmp_path: Path, mode: str, name: str) -> None:
    rgb = np.indices((20, 30)).sum(axis=0).astype(np.uint8) * 5
    Image.fromarray(np.repeat(rgb[:, :, None], 3, axis=2)).convert(mode).save(tmp_path / name)
    scan = load_scan(tmp_path / name)
    assert scan.kind == "picture" and scan.name == "a"
    assert scan.voxels.shape == (20, 30, 3) and scan.voxels.dtype == np.uint8
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert np.array_equal(scan.voxels, expected)


def test_transparent_parts_are_laid_on_black(tmp_path: Path) -> None:
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[..., 3] = 255
    rgba[0, 0, 3] = 0
    rgba[0, 1, 3] = 51
    Image.fromarray(rgba).save(tmp_path / "a.png")
    voxels = load_scan(tmp_path / "a.png").voxels
    assert voxels[0, 0].tolist() == [0, 0, 0]
    assert voxels[0, 1].tolist() == [40, 40, 40]
    assert voxels[2, 2].tolist() == [200, 200, 200]


def test_sixteen_bits_are_windowed_not_cut(tmp_path: Path) -> None:
    values = np.linspace(0, 60_000, 2_000).reshape(40, 50).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    grey = load_scan(tmp_path / "a.png").voxels[..., 0]
    assert grey.min() == 0 and grey.max() == 255
    assert (np.diff(grey.ravel().astype(int)) >= 0).all(), "brighter stays brighter"


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:5, :5] = 255
    image = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_scan(tmp_path / "a.png").voxels, upright)


# --- DICOM


RAW = RNG.integers(0, 2000, (6, 8, 10))  # (slices, rows, columns)


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


@pytest.mark.parametrize("name", ["one.dcm", "IM0001"])
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
    refused(series("double", [(0, 0, z) for z in (0, 0, 3, 3)]), "same place")
    refused(series("tilt", [(0, 0.8 * z, 3 * z) for z in range(5)]), "gantry tilt")
    crossed = series("crossed", [(0, 0, 3 * z) for z in range(4)])
    write_slice(crossed / "x.dcm", RAW[5], (0, 0, 12), (0, 1, 0, 0, 0, 1))
    refused(crossed, "not parallel")
    sizes = series("sizes", [(0, 0, 3 * z) for z in range(4)])
    write_slice(sizes / "x.dcm", RAW[5][:4], (0, 0, 12))
    refused(sizes, "cannot be read")
    (tmp_path / "nowhere").mkdir()
    for n in range(3):
        write_slice(tmp_path / "nowhere" / f"{n}.dcm", RAW[n], None)
    with pytest.raises(InputError, match="where it lies"):
        load_scan(tmp_path / "nowhere")


@pytest.mark.parametrize("which", [1, 4, 6])
def test_a_slice_that_was_cut_off_is_not_silently_left_out(tmp_path: Path, which: int) -> None:
    write_series(tmp_path, RAW)
    file = tmp_path / f"a{which:03}.dcm"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=f"{file.name}.*cut off"):
        load_scan(tmp_path)


def test_colour_dicom_is_refused(tmp_path: Path) -> None:
    write_slice(
        tmp_path / "a.dcm",
        RAW[0],
        (0, 0, 0),
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=bytes(240),
    )
    refused(tmp_path / "a.dcm", "colour", "PNG")


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no DICOM images")
    save_nifti(tmp_path / "a.nii.gz")
    refused(tmp_path, "no DICOM images", "scan's file")


def test_a_description_in_another_alphabet_is_read(tmp_path: Path) -> None:
    write_series(tmp_path / "a", RAW[:3], SpecificCharacterSet="ISO_IR 192", SeriesDescription="腹部")
    write_series(tmp_path / "b", RAW[:3], SpecificCharacterSet="ISO_IR 100", SeriesDescription="Bäuche")
    assert load_scan(tmp_path / "a").name == "腹部"
    assert load_scan(tmp_path / "b").name == "Bäuche"


# --- what cannot be used


def test_what_is_not_there_is_said_to_be_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "missing.nii.gz", "no such file")
    refused(Path("a" * 5000 + ".png"), "no such file")
    (tmp_path / "link.png").symlink_to("nothing")
    refused(tmp_path / "link.png", "no such file")


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.nrrd", "a.mha", "a.npz", "a.dcm"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "empty")


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "noending", "a.tif", "a.gz"])
def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("hello, this is not a scan")
    refused(tmp_path / name, "NIfTI", "DICOM", ".npz")


FILES: dict[str, Callable[[Path], object]] = {
    "a.png": lambda path: Image.fromarray(RNG.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(path),
    "a.jpg": lambda path: Image.fromarray(RNG.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(path),
    "a.nii": save_nifti,
    "a.nii.gz": save_nifti,
    "a.nrrd": save_itk,
    "raw.nrrd": lambda path: save_itk(path, compress=False),
    "a.mha": save_itk,
    "raw.mha": lambda path: save_itk(path, compress=False),
    "a.npz": lambda path: np.savez_compressed(path, imgs=VOLUME.T, spacing=np.ones(3)),
    "a.dcm": lambda path: write_slice(path, RAW[0], (0, 0, 0)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, name: str, part: float) -> None:
    FILES[name](tmp_path / name)
    assert load_scan(tmp_path / name).voxels.size
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
    assert refused(tmp_path / name).mend


@pytest.mark.parametrize("name", FILES)
def test_no_damage_raises_anything_but_an_input_error(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(len(name))
    for _ in range(12 if name == "a.dcm" else 40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 600), 4):
            damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            scan = load_scan(tmp_path / name)
        except InputError as error:
            assert str(error)
        else:
            assert scan.voxels.size


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (content, f"b.{wrong}")
        for content in FILES
        for wrong in ("png", "jpg", "nii", "nii.gz", "nrrd", "mha", "npz", "dcm")
        if content.partition(".")[2] != wrong
    ],
)
def test_a_file_under_a_wrong_name_is_refused_and_called_by_its_right_one(
    tmp_path: Path, content: str, name: str
) -> None:
    right = content.partition(".")[2]
    FILES[content](tmp_path / content)
    shutil.copy(tmp_path / content, tmp_path / name)
    said = {
        "png": "PNG",
        "jpg": "JPEG",
        "nii": "NIfTI",
        "nii.gz": "gzip",
        "nrrd": "NRRD",
        "mha": "MetaImage",
        "npz": "zip",
    }
    refused(tmp_path / name, said.get(right, "DICOM"), "ending")


def test_a_web_page_that_was_saved_as_a_scan_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_text("<!DOCTYPE html><html>404</html>")
    refused(tmp_path / "a.nii.gz", "web page")


@pytest.mark.parametrize("save", [save_nifti, None], ids=["nifti", "nrrd"])
def test_four_axes_are_refused(tmp_path: Path, save: Callable[..., Path] | None) -> None:
    voxels = np.zeros((6, 8, 10, 4), np.int16)
    if save:
        path = save(tmp_path / "a.nii.gz", voxels)
    else:
        path = tmp_path / "a.nrrd"
        sitk.WriteImage(sitk.GetImageFromArray(voxels.T, isVector=False), str(path))
    refused(path, "4 axes", "6 × 8 × 10 × 4", "one time point")


def test_colour_volumes_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros((6, 8, 10), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save_nifti(tmp_path / "a.nii.gz", rgb), "colour")
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(
            sitk.GetImageFromArray(np.zeros((6, 8, 10, 3), np.uint8), isVector=True), str(tmp_path / name)
        )
        refused(tmp_path / name, "colour", "3 values a voxel")


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    refused(save_nifti(tmp_path / "a.nii.gz", VOLUME.astype(np.complex64)), "no grey values")


@pytest.mark.parametrize(
    ("affine", "word"),
    [
        (np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "sheared"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
        (np.array([[np.nan, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "impossible"),
    ],
)
def test_an_impossible_affine_is_refused_on_reading(tmp_path: Path, affine: np.ndarray, word: str) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = affine[row]
    raw = image.header.binaryblock + b"\0\0\0\0" + VOLUME.tobytes(order="F")
    raw = raw[:108] + struct.pack("<f", 352) + raw[112:]
    (tmp_path / "a.nii").write_bytes(raw)
    refused(tmp_path / "a.nii", word)


def test_a_header_that_promises_more_than_the_file_can_hold_takes_no_memory(tmp_path: Path) -> None:
    raw = bytearray(gzip.decompress(save_nifti(tmp_path / "a.nii.gz").read_bytes()))
    raw[40:56] = struct.pack("<8h", 3, 20000, 20000, 9, 1, 1, 1, 1)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    (tmp_path / "a.nii").write_bytes(raw)
    write_slice(tmp_path / "a.dcm", RAW[0], (0, 0, 0), Rows=60_000, Columns=60_000)
    nrrd = save_itk(tmp_path / "a.nrrd").read_bytes().replace(b"sizes: 6 8 10", b"sizes: 20000 20000 9")
    (tmp_path / "a.nrrd").write_bytes(nrrd)
    tracemalloc.start()
    try:
        for name in ("a.nii.gz", "a.nii", "a.nrrd", "a.dcm"):
            refused(tmp_path / name, "cut off")
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    whole = (tmp_path / "small.png").read_bytes()
    for side in (9_000, 30_000, 2_000_000_000):
        header = b"IHDR" + struct.pack(">II", side, side) + whole[24:29]
        huge = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
        (tmp_path / "a.png").write_bytes(huge)
        refused(tmp_path / "a.png", "too large")


def test_pictures_in_which_nothing_can_be_seen_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (7, 7, 7)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "constant", "[7, 7, 7]")
    Image.new("I;16", (40, 40), 900).save(tmp_path / "b.png")
    refused(tmp_path / "b.png", "constant", "900")
    Image.fromarray(np.arange(40, dtype=np.uint8)[None]).save(tmp_path / "c.png")
    refused(tmp_path / "c.png", "too thin")
    frames = [Image.new("L", (20, 20), grey) for grey in (0, 9, 99)]
    frames[0].save(tmp_path / "d.png", save_all=True, append_images=frames[1:])
    refused(tmp_path / "d.png", "moves")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"gts": VOLUME}, ("no array `imgs`", "gts.npy")),
        ({"imgs": VOLUME}, ("no array `spacing`",)),
        ({"imgs": VOLUME[0], "spacing": np.ones(3)}, ("(slices, H, W)",)),
        ({"imgs": np.zeros((4, 8, 8, 3), np.uint8), "spacing": np.ones(3)}, ("(slices, H, W)",)),
        ({"imgs": VOLUME, "spacing": np.ones(2)}, ("`spacing` is not 3 numbers",)),
        ({"imgs": VOLUME, "spacing": np.array(["a", "b", "c"])}, ("`spacing` is not 3 numbers",)),
        ({"imgs": VOLUME, "spacing": np.zeros(3)}, ("singular",)),
        ({"imgs": VOLUME, "spacing": np.ones(3), "direction": np.ones(9)}, ("singular",)),
        ({"imgs": VOLUME[:0], "spacing": np.ones(3)}, ("empty",)),
        ({"imgs": VOLUME.astype(str), "spacing": np.ones(3)}, ("no grey values",)),
    ],
)
def test_an_archive_that_is_no_scan_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], words: tuple[str, ...]
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", *words)


def test_an_archive_with_objects_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:  # type: ignore[type-arg]
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "a.npz", imgs=np.array([Trap()], dtype=object), spacing=np.ones(3))
    refused(tmp_path / "a.npz", "objects")
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_lies_about_its_length_takes_no_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", imgs=VOLUME, spacing=np.ones(3))
    with (
        zipfile.ZipFile(tmp_path / "whole.npz") as source,
        zipfile.ZipFile(tmp_path / "a.npz", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(b"(6, 8, 10), }       ", b"(60000, 8000, 10), }"))
    tracemalloc.start()
    try:
        refused(tmp_path / "a.npz", "not as long as it says", "60000, 8000, 10")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_archive_whose_header_is_not_one_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", imgs=VOLUME, spacing=np.ones(3))
    with (
        zipfile.ZipFile(tmp_path / "whole.npz") as source,
        zipfile.ZipFile(tmp_path / "a.npz", "w") as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"(6, 8, 10)", b"(((((((((("))
    assert refused(tmp_path / "a.npz").mend


def test_a_series_means_nothing_for_a_file(tmp_path: Path) -> None:
    refused(save_nifti(tmp_path / "a.nii.gz"), "folder only", "1.2", series="1.2")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are files of another kind there")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "neither a file nor a folder")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz")
    program = (
        "import sys; from ibis_agent import scan, picture, mask_files, structures, actions, masks; "
        f"picture.cut(scan.load_scan({str(path)!r})); "
        "print([name for name in ('torch', 'transformers', 'sam2', 'torchvision') if name in sys.modules])"
    )
    logic = Path(__file__).resolve().parents[2] / "Logic"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(logic)},
    )
    assert result.stdout.strip() == "[]"


def test_a_scan_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", np.resize(VOLUME, (60, 80, 50)))
    read = []
    original = gzip.GzipFile.read

    def counting(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        content = original(self, size)
        read.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    scan = load_scan(path)
    assert isinstance(scan, Scan)
    assert sum(read) < 1.5 * scan.voxels.nbytes
