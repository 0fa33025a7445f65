"""Volumes and pictures are read as their files hold them. DICOM: test_scan_dicom, refusals: test_scan_refused."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from ibis_agent.errors import InputError
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut
from ibis_agent.scan.scan import Scan
from PIL import Image
from scan_files import AFFINE, OBLIQUE, VOLUME, save_itk, save_nifti
from scipy import ndimage


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


@pytest.mark.parametrize(
    ("name", "header", "sized"),
    [
        ("a.nrrd", "", False),
        ("a.nrrd", "spacings: nan 2 3\n", False),
        ("a.nrrd", "spacings: 2 2 3\n", True),
        ("a.nrrd", "space: RAS\nspace directions: (2,0,0) (0,2,0) (0,0,3)\n", True),
        (
            "a.nrrd",
            'space: RAS\nspace units: "um" "um" "um"\nspace directions: (2,0,0) (0,2,0) (0,0,3)\n',
            False,
        ),
        ("a.mha", "", False),
        ("a.mha", "ElementSpacing = 2 2 3\n", True),
        ("a.mha", "ElementSize = 2 2 3\n", True),
    ],
)
def test_a_file_that_gives_no_millimetres_is_measured_in_pixels(
    tmp_path: Path, name: str, header: str, sized: bool
) -> None:
    sides = "6 8 10"
    if name == "a.nrrd":
        text = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sides}\nencoding: raw\nendian: little\n{header}\n"
        )
    else:
        text = f"ObjectType = Image\nNDims = 3\nDimSize = {sides}\nElementType = MET_SHORT\n{header}"
        text += "ElementDataFile = LOCAL\n"
    (tmp_path / name).write_bytes(text.encode() + VOLUME.tobytes(order="F"))
    scan = load_scan(tmp_path / name)
    assert np.array_equal(scan.voxels, VOLUME)
    area = cut(scan, "z").geometry.pixel_area_mm2
    assert area == (pytest.approx(4) if sized else None)
    assert bool(scan.notes) is not sized


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


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz")
    program = (
        "import sys; import ibis_agent.actions, ibis_agent.mask.files, ibis_agent.mask.structures; "
        "from ibis_agent.scan import load, picture; "
        f"picture.cut(load.load_scan({str(path)!r})); "
        "print([name for name in ('torch', 'transformers', 'sam2', 'torchvision') if name in sys.modules])"
    )
    logic = Path(__file__).resolve().parents[4] / "Logic"
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


def test_a_window_in_hounsfield_units_is_for_ct_and_what_may_be_one(data: Path) -> None:
    assert load_scan(data / "ct_abdomen_3mm.nii.gz").may_be_ct
    assert not load_scan(data / "mr_abdomen_3mm.nii.gz").may_be_ct
    bright = np.full((2, 3, 4), 40, np.int16)
    for voxels, modality, expected in (
        (bright, "CT", True),
        (bright - 1000, "MR", False),
        (bright, "", False),
        (bright - 1000, "", True),
        (np.broadcast_to((bright - 1000)[:, :, :1], (2, 3, 10**12)), "", True),
        (np.full((2, 3, 4), np.nan, np.float32), "", False),
    ):
        scan = Scan(voxels, np.eye(4), "volume", Path("scan.nrrd"), modality=modality)
        assert scan.may_be_ct is expected


def histograms() -> dict[str, tuple[np.ndarray, bool]]:
    """Scans that do not say what they are, and whether they are CT."""
    rng = np.random.default_rng(11)
    body = np.zeros((40, 40, 30))
    body[8:32, 8:32] = 1
    noise = rng.normal(0, 12, body.shape)
    fat = rng.random(body.shape) < 0.3
    ct = np.where(body > 0, np.where(fat, -100, 45), -1000) + noise
    tissue = np.where(body > 0, rng.choice([200, 500, 900], body.shape), 0.0)
    mr = ndimage.zoom(tissue, 1.4, order=3)  # splines overshoot at each border
    phase = rng.uniform(-3142, 3142, body.shape)
    flow = np.where(body > 0, rng.normal(0, 5, body.shape), rng.uniform(-150, 150, body.shape))
    return {
        "ct": (ct, True),
        "ct of the inside": (ct[8:32, 8:32], True),
        "ct clipped to a window": (np.clip(ct, -160, 240), True),
        "ct with padding around it": (np.where(ct < -900, -3024, ct), True),
        "mr": (tissue, False),
        "mr resampled by splines": (mr, False),
        "mr resampled, of large values": (mr * 8, False),
        "one odd voxel": (np.where(np.arange(tissue.size).reshape(tissue.shape) == 7, -900, tissue), False),
        "normalised mr": ((mr - mr.mean()) / mr.std(), False),
        "phase": (phase, False),
        "flow": (flow, False),
        "pet": (rng.gamma(1, 2, body.shape), False),
    }


@pytest.mark.parametrize("name", histograms())
def test_whether_it_is_a_ct_is_told_by_all_grey_values_and_said(name: str) -> None:
    voxels, expected = histograms()[name]
    scan = Scan(voxels.astype(np.float32), np.eye(4), "volume", Path("scan.nrrd"))
    assert scan.may_be_ct is expected
    said = "modality unknown, taken as CT" if expected else "modality unknown, not taken as CT"
    assert scan.told[-1].startswith(said)
    assert cut(scan, "z").notes == scan.told


def test_a_person_can_say_what_a_scan_is(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", np.abs(VOLUME))
    assert not load_scan(path).may_be_ct
    scan = load_scan(path, modality="ct")
    assert scan.may_be_ct and scan.modality == "CT"
    assert scan.told == ("taken as CT, as requested",)
    with pytest.raises(InputError, match="not a modality"):
        load_scan(path, modality="C T")
