"""What cannot be used as a scan is refused with file, value and remedy, whatever is wrong with it."""

from __future__ import annotations

import gzip
import shutil
import struct
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
from dicom_files import write_slice
from ibis_agent.errors import InputError
from ibis_agent.scan.load import load_scan
from PIL import Image
from scan_files import RAW, RNG, VOLUME, refused, save_itk, save_nifti


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
    assert refused(tmp_path / name).remedy


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
    refused(tmp_path / name, said.get(right, "DICOM"), "extension")


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
        refused(tmp_path / name, "colour", "3 values per voxel")


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    refused(save_nifti(tmp_path / "a.nii.gz", VOLUME.astype(np.complex64)), "not grey values")


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
    refused(tmp_path / "d.png", "animated")


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
        ({"imgs": VOLUME.astype(str), "spacing": np.ones(3)}, ("not grey values",)),
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
        refused(tmp_path / "a.npz", "does not have the length", "60000, 8000, 10")
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
    assert refused(tmp_path / "a.npz").remedy


def test_a_series_means_nothing_for_a_file(tmp_path: Path) -> None:
    refused(save_nifti(tmp_path / "a.nii.gz"), "only for DICOM images", "1.2", series="1.2")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are files of another kind there")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "neither a file nor a folder")
