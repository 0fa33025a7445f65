"""A mask lies where its NIfTI scan lies, in nibabel, ITK and SimpleITK alike; odd headers are read as these do."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from awkward import made
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis_agent.errors import InputError
from ibis_agent.mask.files import write_mask
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.load import load_labels, load_scan
from ibis_agent.scan.picture import cut
from scan_files import AFFINE, VOLUME, refused, save_nifti
from scipy.spatial.transform import Rotation

SHAPE = VOLUME.shape
CORNERS = [(0, 0, 0), (5, 0, 0), (0, 7, 0), (0, 0, 9), (5, 7, 9)]


def in_nibabel(path: Path) -> np.ndarray:
    return np.array([nibabel.load(path).affine @ (*corner, 1) for corner in CORNERS])


def in_itk(path: Path) -> np.ndarray | None:
    """Where ITK, which SimpleITK and 3D Slicer read with, places the corners; None where it refuses the file."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    return np.array(
        [image.TransformContinuousIndexToPhysicalPoint([float(c) for c in corner]) for corner in CORNERS]
    )


def affines() -> st.SearchStrategy[np.ndarray]:
    def build(
        turn: tuple[float, ...], sizes: tuple[float, ...], offset: tuple[float, ...], flip: bool
    ) -> np.ndarray:
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() * sizes
        affine[:3, 0] *= -1 if flip else 1
        affine[:3, 3] = offset
        return affine

    def three(low: float, high: float) -> st.SearchStrategy[tuple[float, ...]]:
        return st.tuples(*[st.floats(low, high, width=16)] * 3)

    return st.builds(build, three(-1.5, 1.5), three(0.5, 4), three(-200, 200), st.booleans())


@settings(max_examples=60)
@given(
    sform=affines(),
    qform=affines(),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    units=st.sampled_from(["unknown", "mm", "micron", "meter"]),
    second=st.booleans(),
    recorded=st.booleans(),
)
def test_a_mask_coincides_with_its_scan_in_every_program(
    tmp_path_factory: pytest.TempPathFactory,
    sform: np.ndarray,
    qform: np.ndarray,
    codes: tuple[int, int],
    units: str,
    second: bool,
    recorded: bool,
) -> None:
    folder = tmp_path_factory.mktemp("place")
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(VOLUME, None)
    image.header.set_xyzt_units(units)
    image.header.set_qform(qform, codes[1])
    image.header.set_sform(sform, codes[0])
    image.header["qform_code"], image.header["sform_code"] = codes[1], codes[0]
    nibabel.save(image, folder / "scan.nii.gz")
    scan = load_scan(folder / "scan.nii.gz")
    source: Any = scan
    if recorded:  # a run that is resumed has its record and no scan
        source = PictureGeometry.from_json(json.loads(json.dumps(scan.geometry("z", 4).to_json())))
    for name in ("mask.nii.gz", "mask.nii", "mask.nrrd"):
        write_mask(folder / name, VOLUME > 0, source)
        place, mine = in_itk(folder / "scan.nii.gz"), in_itk(folder / name)
        if place is not None:
            assert mine is not None
            assert np.allclose(mine, place, atol=1e-2, rtol=1e-4), name
    for name in ("mask.nii.gz", "mask.nii"):
        assert np.array_equal(in_nibabel(folder / name), in_nibabel(folder / "scan.nii.gz"))
        header = nibabel.load(folder / name).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == codes
        assert header.get_xyzt_units()[0] == units
    labels = load_labels(folder / "mask.nii.gz")
    assert np.allclose(labels.affine, scan.affine)


def test_where_the_two_places_disagree_it_is_said_which_was_used(tmp_path: Path) -> None:
    out = made("07", tmp_path)
    scan = load_scan(out / "coregistered.nii.gz")
    assert np.allclose(scan.affine[:3, 3], (40, -25, 15))
    assert "sform (aligned) and qform (scanner) differ by 49.5 mm: the sform was used" in scan.notes[0]
    micro = load_scan(out / "micro.nii.gz")
    assert np.allclose(np.abs(np.diag(micro.affine)[:3]), (1.5, 1.5, 3)) and not micro.notes
    for name in ("coregistered", "micro"):
        write_mask(out / f"{name}_mask.nii.gz", np.ones((64, 64, 10)), load_scan(out / f"{name}.nii.gz"))
        for read in (in_nibabel, in_itk):
            assert np.array_equal(read(out / f"{name}_mask.nii.gz"), read(out / f"{name}.nii.gz"))


def with_header(path: Path, voxels: np.ndarray = VOLUME, **fields: Any) -> Path:
    """A .nii whose header fields are what they are given to be, however odd."""
    image = nibabel.Nifti1Image(voxels, AFFINE)
    image.set_qform(AFFINE, 1)
    header = image.header
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for key, value in fields.items():
        header[key] = value
    path.write_bytes(header.binaryblock + b"\0" * 4 + voxels.tobytes(order="F"))
    return path


def test_a_zero_sform_beside_a_good_qform_leaves_the_qform(tmp_path: Path) -> None:
    zeros = {f"srow_{axis}": [0, 0, 0, 0] for axis in "xyz"}
    scan = load_scan(with_header(tmp_path / "a.nii", **zeros))
    assert np.allclose(scan.affine, AFFINE, atol=1e-5)
    assert "sform is empty" in scan.notes[0]
    broken = {f"srow_{axis}": [np.nan, 0, 0, 0] for axis in "xyz"}
    assert np.allclose(load_scan(with_header(tmp_path / "b.nii", **broken)).affine, AFFINE, atol=1e-5)
    with pytest.raises(InputError, match="singular"):
        load_scan(with_header(tmp_path / "c.nii", qform_code=0, **zeros))


def test_where_neither_place_is_set_it_is_said(tmp_path: Path) -> None:
    scan = load_scan(with_header(tmp_path / "a.nii", sform_code=0, qform_code=0))
    assert np.allclose(scan.affine, nibabel.load(tmp_path / "a.nii").affine)
    assert "left and right" in scan.notes[0]


def test_a_qform_that_is_no_rotation_is_made_one_as_itk_does(tmp_path: Path) -> None:
    scan = load_scan(with_header(tmp_path / "a.nii", sform_code=0, quatern_b=0.9, quatern_c=0.9))
    image = sitk.ReadImage(str(tmp_path / "a.nii"))
    for corner in CORNERS:
        lps = np.array(image.TransformIndexToPhysicalPoint(corner))
        assert np.allclose(scan.affine @ (*corner, 1), (*(lps * (-1, -1, 1)), 1), atol=1e-3)
    assert "not a rotation" in scan.notes[0]


def test_a_qform_of_what_is_no_number_is_refused_where_there_is_no_other(tmp_path: Path) -> None:
    refused(with_header(tmp_path / "a.nii", sform_code=0, quatern_b=np.nan), "invalid numbers")
    assert load_scan(with_header(tmp_path / "b.nii", quatern_b=np.nan)).sized


@pytest.mark.parametrize("size", [0.0, np.nan, np.inf])
def test_a_voxel_without_a_size_is_measured_in_pixels(tmp_path: Path, size: float) -> None:
    pixdim = [1, size, 1.5, 3, 1, 1, 1, 1]
    scan = load_scan(with_header(tmp_path / "a.nii", sform_code=0, pixdim=pixdim))
    assert cut(scan, "z").geometry.pixel_area_mm2 is None
    assert "in pixels" in " ".join(scan.notes)
    again = PictureGeometry.from_json(json.loads(json.dumps(scan.geometry("z").to_json())))
    assert again.pixel_area_mm2 is None
    known = load_scan(with_header(tmp_path / "b.nii", pixdim=pixdim))
    assert known.sized, "the sform says it"


def test_a_negative_size_is_its_amount(tmp_path: Path) -> None:
    scan = load_scan(with_header(tmp_path / "a.nii", sform_code=0, pixdim=[1, -0.8, 1.5, 3, 1, 1, 1, 1]))
    assert np.allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), (0.8, 1.5, 3))
    assert any("below 0" in note for note in scan.notes)


def test_where_the_sform_has_other_sizes_than_pixdim_it_is_said_which_was_used(tmp_path: Path) -> None:
    """ITK and 3D Slicer take those of pixdim, so that the scan is twice as large here as there."""
    image = nibabel.Nifti1Image(VOLUME, np.diag([-4.0, -4, 3, 1]))
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = 2, 2, 3
    nibabel.save(image, tmp_path / "a.nii")
    assert sitk.ReadImage(str(tmp_path / "a.nii")).GetSpacing() == (2, 2, 3)
    scan = load_scan(tmp_path / "a.nii")
    assert np.allclose(scan.affine, np.diag([-4.0, -4, 3, 1]))
    assert scan.notes == (
        "the voxel size is 4 × 4 × 3 mm in the sform and 2 × 2 × 3 mm in pixdim: the sform was used, as in nibabel",
    )
    image.header["pixdim"][1:4] = 4.01, 4, 3
    nibabel.save(image, tmp_path / "b.nii")
    assert load_scan(tmp_path / "b.nii").notes == ()


@pytest.mark.parametrize(
    "slope, intercept, factor, offset",
    [
        (2, 5, 2, 5),
        (0, 5, 1, 0),
        (np.nan, 5, 1, 0),
        (np.inf, 5, 1, 0),
        (2, np.nan, 2, 0),
        (np.nan, np.nan, 1, 0),
    ],
)
def test_a_slope_or_intercept_that_is_no_number_is_none(
    tmp_path: Path, slope: float, intercept: float, factor: float, offset: float
) -> None:
    path = with_header(tmp_path / "a.nii", scl_slope=slope, scl_inter=intercept)
    scan = load_scan(path)
    assert np.array_equal(scan.voxels, VOLUME * factor + offset)
    if (
        np.isfinite(slope) and slope
    ):  # nibabel refuses a slope whose intercept is not a number, ITK takes it as 0
        in_other = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
    else:  # ITK adds the intercept where the standard, and nibabel, say that nothing is scaled
        in_other = np.asarray(nibabel.load(path).dataobj)
    assert np.allclose(in_other, scan.voxels)
    assert bool(scan.notes) == ((factor == 1 and intercept == 5) or (factor == 2 and np.isnan(intercept)))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_extensions_in_the_header_do_not_move_the_voxels(tmp_path: Path, name: str) -> None:
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made by hand" * 50))
    nibabel.save(image, tmp_path / name)
    assert np.array_equal(load_scan(tmp_path / name).voxels, VOLUME)


def test_an_extension_that_lies_about_its_length_does_not_matter(tmp_path: Path) -> None:
    whole = bytearray(save_nifti(tmp_path / "a.nii").read_bytes())
    broken = whole[:348] + b"\1\0\0\0" + struct.pack("<ii", 7, 6) + b"\0" * 40 + whole[352:]
    broken[108:112] = struct.pack("<f", 352 + 48)
    (tmp_path / "a.nii").write_bytes(broken)
    assert np.array_equal(load_scan(tmp_path / "a.nii").voxels, VOLUME)


def test_an_archive_in_several_members_is_one_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    whole = gzip.decompress(save_nifti(tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:500]) + gzip.compress(whole[500:]) + b"\0" * 512)
    assert np.array_equal(load_scan(tmp_path / "a.nii.gz").voxels, VOLUME)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:500]) + b"footer")
    refused(tmp_path / "a.nii.gz", "damaged")


def test_big_endian_and_the_second_version_are_read(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(VOLUME.astype(">i2"), AFFINE, header), tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\0\0\1\x5c"
    nibabel.save(nibabel.Nifti2Image(VOLUME, AFFINE), tmp_path / "b.nii")
    for name in ("a.nii", "b.nii"):
        scan = load_scan(tmp_path / name)
        assert np.array_equal(scan.voxels, VOLUME) and np.allclose(scan.affine, AFFINE, atol=1e-5)


def test_a_place_that_was_tampered_with_is_refused() -> None:
    record = PictureGeometry.of_picture(4, 5).to_json()
    for broken in ({}, {"pixdim": [1, 1]}, "nowhere", {"sform_code": 10**9}):
        with pytest.raises(InputError):
            PictureGeometry.from_json({**record, "nifti": broken})
