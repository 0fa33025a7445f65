"""Masks lie in their files where the scan lies, for every order, handedness and tilt."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from ibis_agent.errors import InputError, OutputError
from ibis_agent.mask import files as mask_files
from ibis_agent.mask.files import check_mask_path, write_mask
from ibis_agent.mask.structures import STRUCTURES, structure_in
from ibis_agent.scan.geometry import slice_geometry
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.scan import Scan
from PIL import Image

SHAPE = (5, 6, 7)
SPACING = (0.8, 1.5, 3.0)
VOXEL = (4, 1, 3)


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], degrees: float = 0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * SPACING[axis]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine[:3, :3] = (
        np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        @ affine[:3, :3]
    )
    affine[:3, 3] = (-40, 25, 110)
    return affine


AFFINES = [
    affine_of(order, signs, degrees)
    for order in itertools.permutations(range(3))
    for signs in ((1, 1, 1), (-1, 1, 1), (-1, -1, 1), (-1, -1, -1))
    for degrees in (0, 17)
]


def scan_with(affine: np.ndarray) -> Scan:
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    return Scan(voxels, affine, "volume", Path("scan.nii.gz"), "scan")


def one_voxel() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[VOXEL] = True
    return mask


def in_patient(path: Path) -> np.ndarray:
    """RAS mm of the only voxel inside, through the library that people read such a file with, not through ours."""
    if ".nii" in path.name:
        image = nibabel.load(path)
        (voxel,) = np.argwhere(np.asarray(image.dataobj))
        return image.affine[:3, :3] @ voxel + image.affine[:3, 3]
    image = sitk.ReadImage(str(path))
    (voxel,) = np.argwhere(sitk.GetArrayViewFromImage(image))
    x, y, z = image.TransformIndexToPhysicalPoint([int(part) for part in voxel[::-1]])
    return np.array([-x, -y, z])


@pytest.mark.parametrize(
    "name", ["m.nii.gz", "m.nii", "m.nrrd", "m.seg.nrrd", "M.Seg.NRRD", "leber 肝.nii.gz"]
)
def test_a_marked_voxel_lies_where_it_lies_in_the_scan(tmp_path: Path, name: str) -> None:
    for affine in AFFINES if name in ("m.nii.gz", "m.seg.nrrd") else AFFINES[::5]:
        path = write_mask(tmp_path / name, one_voxel(), scan_with(affine))
        expected = affine[:3, :3] @ VOXEL + affine[:3, 3]
        assert np.allclose(in_patient(path), expected, atol=1e-3)
        assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.seg.nrrd"])
def test_a_mask_is_read_back_in_the_scans_own_order(tmp_path: Path, name: str) -> None:
    mask = np.random.default_rng(0).random(SHAPE) > 0.5
    for affine in AFFINES[::5]:
        again = load_scan(write_mask(tmp_path / name, mask, scan_with(affine)))
        assert np.array_equal(again.voxels != 0, mask)
        assert again.voxels.dtype == np.uint8 and again.voxels.max() == 1
        assert np.allclose(again.affine, affine, atol=1e-4)


def test_both_forms_of_a_nifti_affine_agree(tmp_path: Path) -> None:
    for affine in AFFINES[::5]:
        image = nibabel.load(write_mask(tmp_path / "m.nii.gz", one_voxel(), scan_with(affine)))
        assert np.allclose(image.get_qform(), affine, atol=1e-3)
        assert np.allclose(image.get_sform(), affine, atol=1e-3)
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1


def test_a_real_scans_mask_has_its_geometry(tmp_path: Path, data: Path) -> None:
    for file in ("ct_abdomen_3mm.nii.gz", "mr_abdomen_3mm.nii.gz", "lesion_000001.npz"):
        scan = load_scan(data / file)
        mask = scan.voxels > np.median(scan.voxels)
        for name in ("m.nii.gz", "m.seg.nrrd"):
            again = load_scan(write_mask(tmp_path / name, mask, scan))
            assert again.voxels.shape == scan.voxels.shape
            assert np.allclose(again.affine, scan.affine, atol=1e-3)
            assert np.array_equal(again.voxels != 0, mask)


def test_a_segmentation_says_its_name_colour_and_code(tmp_path: Path) -> None:
    structure = structure_in("is there a lesion in the liver?")
    path = tmp_path / "m.seg.nrrd"
    write_mask(
        path,
        one_voxel(),
        scan_with(AFFINES[3]),
        name="肝 | lesion\n~ 1",
        colour=(255, 0, 51),
        structure=structure,
    )
    image = sitk.ReadImage(str(path))
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert fields["Segment0_Name"] == "肝 | lesion ~ 1", "a line break would end the header's line"
    assert [float(part) for part in fields["Segment0_Color"].split()] == pytest.approx([1, 0, 0.2])
    assert fields["Segment0_LabelValue"] == "1" and fields["Segment0_Layer"] == "0"
    assert fields["Segment0_Extent"] == "0 4 0 5 0 6"
    assert fields["Segment0_ID"]
    assert fields["Segmentation_MasterRepresentation"] == "Binary labelmap"
    tags = dict(tag.split(":", 1) for tag in fields["Segment0_Tags"].split("|") if tag)
    parts = tags["TerminologyEntry"].split("~")
    assert len(parts) == 7
    assert parts[1:3] == ["SCT^49755003^Morphologically Altered Structure", "SCT^4147007^Mass"]
    assert parts[5] == "SCT^10200004^Liver"
    assert all(part.count("^") == 2 for index, part in enumerate(parts) if index not in (0, 4))


def test_the_header_is_utf8_and_ends_before_the_voxels(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.seg.nrrd", one_voxel(), scan_with(AFFINES[0]), name="Lève-toi 肝")
    header = path.read_bytes().split(b"\n\n")[0].decode("utf-8")
    assert header.startswith("NRRD000")
    assert "Segment0_Name:=Lève-toi 肝" in header
    assert "space: left-posterior-superior" in header


def test_a_plain_nrrd_has_no_segments(tmp_path: Path) -> None:
    write_mask(tmp_path / "m.nrrd", one_voxel(), scan_with(AFFINES[0]), name="Liver")
    assert b"Segment" not in (tmp_path / "m.nrrd").read_bytes().split(b"\n\n")[0]


@pytest.mark.parametrize("name", ["m.nii.gz", "m.seg.nrrd"])
def test_the_mask_of_one_slice_goes_into_that_slice(tmp_path: Path, name: str) -> None:
    for affine in AFFINES[::7]:
        geometry = slice_geometry(SHAPE, affine, "coronal", 2)
        mask = np.zeros((geometry.height, geometry.width), bool)
        mask[geometry.pixel(0.7, 0.3)] = True
        path = write_mask(tmp_path / name, mask, geometry)
        assert np.allclose(in_patient(path), geometry.to_patient(0.7, 0.3), atol=1e-3)


def test_a_slice_can_be_written_as_it_was_seen(tmp_path: Path) -> None:
    geometry = slice_geometry(SHAPE, AFFINES[0], "axial", 2)
    mask = np.random.default_rng(1).random((geometry.height, geometry.width)) > 0.5
    write_mask(tmp_path / "m.png", mask, geometry)
    image = Image.open(tmp_path / "m.png")
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image) == 255, mask) and set(np.unique(np.asarray(image))) == {0, 255}


def test_the_mask_of_a_picture_is_a_picture_of_its_size(tmp_path: Path) -> None:
    photograph = Scan(np.zeros((20, 30, 3), np.uint8), np.eye(4), "picture", Path("photo.png"))
    mask = np.zeros((20, 30), bool)
    mask[3, 17] = True
    write_mask(tmp_path / "m.png", mask, photograph)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "m.png")) == 255, mask)
    with pytest.raises(InputError, match=r"End the name in \.png"):
        write_mask(tmp_path / "m.nii.gz", mask, photograph)
    with pytest.raises(InputError, match="different shapes"):
        write_mask(tmp_path / "m.png", mask.T, photograph)


@pytest.mark.parametrize("name", ["m.jpg", "m", "m.nii.bz2", "m.mha", ".nii.gz", "m.seg.nrrd.gz", ""])
def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.nii\.gz or \.nii or \.seg\.nrrd or \.nrrd") as caught:
        check_mask_path(tmp_path / name)
    assert name in str(caught.value)
    with pytest.raises(InputError):
        write_mask(tmp_path / name, one_voxel(), scan_with(AFFINES[0]))
    assert list(tmp_path.iterdir()) == []


def test_a_volume_is_not_written_as_a_picture() -> None:
    with pytest.raises(InputError, match="cannot store the position"):
        check_mask_path("m.png", "volume")
    assert check_mask_path("m.png", "picture") == ".png"
    assert check_mask_path("a.b.SEG.NRRD") == ".seg.nrrd"
    assert check_mask_path("a.nrrd") == ".nrrd"


def test_a_mask_of_another_scan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for mask in (np.zeros((7, 6, 5), bool), np.zeros((5, 6), bool), np.zeros((1, *SHAPE), bool)):
        with pytest.raises(InputError, match="different shapes"):
            write_mask(tmp_path / "m.nii.gz", mask, scan_with(AFFINES[0]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.seg.nrrd", "m.png"])
def test_a_disk_that_refuses_leaves_the_old_mask(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = slice_geometry(SHAPE, AFFINES[0], "axial", 2)
    mask = np.ones((geometry.height, geometry.width), bool)
    write_mask(tmp_path / name, mask, geometry)
    before = (tmp_path / name).read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ibis_agent.files.os.replace", refuse)
    with pytest.raises(OutputError, match="no space left"):
        write_mask(tmp_path / name, ~mask, geometry)
    monkeypatch.undo()
    assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("name", ["m.nii.gz", "m.nii", "m.nrrd", "m.seg.nrrd", "m.png"])
def test_every_writer_reports_a_disk_that_is_full(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real writers on the real device: what each library raises then must come out as ours.
    import contextlib
    from collections.abc import Iterator

    full = tmp_path / f"full-{name}"
    full.symlink_to("/dev/full")
    original = mask_files.atomic_write

    @contextlib.contextmanager
    def onto_the_full_disk(path: Path) -> Iterator[Path]:
        with original(path):
            yield full

    monkeypatch.setattr(mask_files, "atomic_write", onto_the_full_disk)
    geometry = slice_geometry((200, 200, 7), AFFINES[0], "axial", 2)
    noise = np.random.default_rng(0).random((200, 200)) > 0.5
    with pytest.raises(OutputError) as caught:
        write_mask(tmp_path / name, noise, geometry)
    assert caught.value.remedy
    assert not (tmp_path / name).exists()


def test_every_known_structure_can_be_written(tmp_path: Path) -> None:
    for structure in STRUCTURES.values():
        path = tmp_path / "m.seg.nrrd"
        write_mask(
            path,
            one_voxel(),
            scan_with(AFFINES[0]),
            name=structure.name,
            colour=structure.colour,
            structure=structure,
        )
        image = sitk.ReadImage(str(path))
        assert image.GetMetaData("Segment0_Name") == structure.name
        assert ("TerminologyEntry" in image.GetMetaData("Segment0_Tags")) == (structure.code is not None)
