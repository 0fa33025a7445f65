"""Stacks of DICOM slices, single or in multi-frame files: what is read lies where the file says, or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import write_frames, write_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis_agent.errors import InputError
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut
from scan_files import RAW, refused
from scipy.spatial.transform import Rotation

SECONDARY, NUCLEAR, DOSE = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("7", "20", "481.2"))


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, Any]:
    """A stack of slices, even or with one fault, in any order, with any slopes."""
    count = draw(st.integers(3, 6))
    fault = draw(st.sampled_from(["", "", "", "gap", "double", "aside", "turned", "size"]))
    slopes = draw(st.lists(st.sampled_from([1.0, 2.0, 0.5, 0.001, 1.25e-2]), min_size=count, max_size=count))
    intercepts = draw(st.lists(st.sampled_from([0.0, -1024.0, 0.25]), min_size=count, max_size=count))
    return {
        "seed": draw(st.integers(0, 2**16)),
        "count": count,
        "fault": fault,
        "which": draw(st.integers(1, count - 1)),
        "slopes": slopes,
        "intercepts": intercepts,
        "signed": draw(st.lists(st.booleans(), min_size=count, max_size=count)),
        "order": draw(st.permutations(range(count))),
        "turn": draw(st.sampled_from([0.0, 0.3, 1.2])),
        "step": draw(st.sampled_from([0.6, 3.0])),
        "noise": draw(st.sampled_from([0.0, 1e-5])),
        "way": draw(st.sampled_from(["files", "folders", "frames", "two files of frames"])),
    }


def written(stack: dict[str, Any], folder: Path) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
    """(scan, (slices, rows, columns) values, (slices, 3) places in LPS, (3, 3) axes) as they are in truth."""
    rng = np.random.default_rng(stack["seed"])
    axes = Rotation.from_rotvec(stack["turn"] * rng.normal(size=3)).as_matrix().T
    places = rng.normal(size=3) * 50 + np.outer(np.arange(stack["count"]) * stack["step"], axes[2])
    which, fault = stack["which"], stack["fault"]
    if fault == "gap":
        places[which:] += axes[2] * stack["step"] * 0.5
    elif fault == "double":
        places[which] = places[which - 1]
    elif fault == "aside":
        places[which:] += axes[0] * 2
    raw = rng.integers(0, 1000, (stack["count"], 5, 4))
    slopes, intercepts = (np.array(stack[key])[:, None, None] for key in ("slopes", "intercepts"))
    slices = []
    for n in range(stack["count"]):
        turn = np.concatenate([axes[0], axes[1]]) + rng.normal(size=6) * stack["noise"]
        if fault == "turned" and n == which:
            turn = np.concatenate([axes[1], axes[2]])
        pixels = raw[n][:4] if fault == "size" and n == which else raw[n]
        tags = {
            "RescaleSlope": stack["slopes"][n],
            "RescaleIntercept": stack["intercepts"][n],
            "PixelRepresentation": int(stack["signed"][n]),
        }
        slices.append((pixels, places[n], turn, tags))
    slices = [slices[n] for n in stack["order"]]
    folder.mkdir()
    way = stack["way"] if fault != "size" else "files"
    if "frames" in way:
        parts = [slices] if way == "frames" else [slices[::2], slices[1::2]]
        for n, part in enumerate(parts):
            write_frames(folder / f"{n}.dcm", part)
    else:
        for n, (pixels, place, turn, tags) in enumerate(slices):
            place_in = folder / str(n % 2) if way == "folders" else folder
            place_in.mkdir(exist_ok=True)
            write_slice(place_in / f"{n}.dcm", pixels, place, turn, **tags)
    return folder, raw * slopes + intercepts, places, axes


@settings(max_examples=80)
@given(stacks())
def test_a_stack_is_read_right_or_refused_and_never_read_wrong(
    tmp_path_factory: pytest.TempPathFactory, stack: dict[str, Any]
) -> None:
    folder, values, places, axes = written(stack, tmp_path_factory.mktemp("stack") / "s")
    if stack["fault"]:
        with pytest.raises(InputError) as caught:
            load_scan(folder)
        assert str(folder) in str(caught.value) and caught.value.remedy
        return
    scan = load_scan(folder)
    lps = np.diag([-1, -1, 1, 1]) @ scan.affine
    for n in range(stack["count"]):
        corner = np.linalg.solve(lps, [*places[n], 1])[:3]
        assert np.allclose(corner, np.round(corner), atol=0.02), "a slice lies on the grid"
        i, j, k = (int(each) for each in np.round(corner))
        assert (i, j) == (0, 0)
        assert np.allclose(scan.voxels[:, :, k].T, values[n], rtol=1e-6, atol=1e-4)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    assert np.allclose(spacing, (1.0, 2.0, stack["step"]), rtol=1e-3), "columns 1 mm, rows 2 mm apart"
    assert np.allclose(lps[:3, :2] / spacing[:2], axes[:2].T, atol=1e-3)


def test_bits_that_differ_from_slice_to_slice_are_read_each_as_they_are(tmp_path: Path) -> None:
    low = np.full((4, 4), -3)
    write_slice(tmp_path / "a.dcm", low & 0xFFF, (0, 0, 0), PixelRepresentation=1, BitsStored=12, HighBit=11)
    write_slice(tmp_path / "b.dcm", low & 0xFFFF, (0, 0, 3), PixelRepresentation=1)
    write_slice(tmp_path / "c.dcm", np.full((4, 4), 40_000), (0, 0, 6))
    assert load_scan(tmp_path).voxels[0, 0].tolist() == [-1027, -1027, 38_976]


def test_a_shared_rescale_holds_for_all_frames_and_their_own_goes_before_it(tmp_path: Path) -> None:
    slices = [(RAW[n], (0, 0, 3 * n), (1, 0, 0, 0, 1, 0), {}) for n in range(3)]
    write_frames(tmp_path / "shared.dcm", slices, shared={"RescaleSlope": 2, "RescaleIntercept": -5})
    assert np.array_equal(load_scan(tmp_path / "shared.dcm").voxels, RAW[:3].transpose(2, 1, 0) * 2 - 5)
    slices[1][3].update({"RescaleSlope": 3, "RescaleIntercept": 1})
    write_frames(tmp_path / "own.dcm", slices, shared={"RescaleSlope": 2, "RescaleIntercept": -5})
    voxels = load_scan(tmp_path / "own.dcm").voxels
    assert np.array_equal(voxels[:, :, 1], RAW[1].T * 3 + 1)
    assert np.array_equal(voxels[:, :, 2], RAW[2].T * 2 - 5)


def test_monochrome1_inverts_the_picture_and_not_the_values(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", RAW[0], (0, 0, 0), PhotometricInterpretation="MONOCHROME1")
    write_slice(tmp_path / "b.dcm", RAW[0], (0, 0, 0))
    inverted, plain = load_scan(tmp_path / "a.dcm"), load_scan(tmp_path / "b.dcm")
    assert np.array_equal(inverted.voxels, plain.voxels)
    assert np.array_equal(cut(inverted).rgb, 255 - cut(plain).rgb)


def test_copies_are_dropped_and_others_at_the_same_place_are_not(tmp_path: Path) -> None:
    for n in range(3):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n))
    shutil.copy(tmp_path / "1.dcm", tmp_path / "copy.dcm")
    scan = load_scan(tmp_path)
    assert scan.voxels.shape == (10, 8, 3)
    assert scan.notes == ("1 exact copy of a slice was left out",)
    write_slice(tmp_path / "copy.dcm", RAW[1] + 1, (0, 0, 3))
    refused(tmp_path, "same position", "1.dcm and copy.dcm")


@pytest.mark.parametrize(
    "tag, first, second",
    [("EchoTime", "10", "20"), ("TemporalPositionIdentifier", 1, 2), ("AcquisitionNumber", 1, 2)],
)
def test_two_images_of_each_place_are_told_by_what_they_differ_in(
    tmp_path: Path, tag: str, first: int | str, second: int | str
) -> None:
    for n in range(4):
        for value in (first, second):
            write_slice(tmp_path / f"{n}-{value}.dcm", RAW[n] + int(value), (0, 0, 3 * n), **{tag: value})
    refused(tmp_path, "same position", "--series", f"{tag}={first}  4 images", f"{tag}={second}  4 images")
    for value in (first, second):
        scan = load_scan(tmp_path, series=f"{tag.lower()}={value}.0")
        assert np.array_equal(scan.voxels, RAW[:4].transpose(2, 1, 0) + int(value) - 1024)
        assert scan.notes == (f"chosen from several images at each position: {tag} {value}",)
    refused(tmp_path, "no image has this value", f"{tag}={first}  4 images", series=f"{tag}=7")
    refused(tmp_path, "no image has this value", "Available", tag, series="Echo=7")


def test_of_images_that_differ_in_two_things_both_can_be_chosen(tmp_path: Path) -> None:
    for n in range(3):
        for echo in (5, 10):
            for phase in (1, 2):
                tags = {"EchoTime": echo, "AcquisitionNumber": phase, "ContentTime": f"1200{n}{phase}"}
                name = tmp_path / f"{n}-{echo}-{phase}.dcm"
                write_slice(name, RAW[n] + 10 * echo + phase, (0, 0, 3 * n), **tags)
    refused(tmp_path, "same position", "AcquisitionNumber=1  6 images")
    refused(tmp_path, "same position", "EchoTime=10.0  3 images", series="AcquisitionNumber=2")
    scan = load_scan(tmp_path, series="1.2.3.4, AcquisitionNumber=2, EchoTime=10")
    assert np.array_equal(scan.voxels, RAW[:3].transpose(2, 1, 0) + 102 - 1024)


def test_of_a_file_of_many_frames_one_kind_can_be_chosen(tmp_path: Path) -> None:
    frames = [(RAW[n] + t, (0, 0, 3 * n), (1, 0, 0, 0, 1, 0), {}) for t in (1, 2) for n in range(3)]
    write_frames(tmp_path / "a.dcm", frames)
    whole = pydicom.dcmread(tmp_path / "a.dcm")
    for n, group in enumerate(whole.PerFrameFunctionalGroupsSequence):
        item = pydicom.Dataset()
        item.TemporalPositionIndex = 1 + n // 3
        group.FrameContentSequence = [item]
    whole.save_as(tmp_path / "a.dcm")
    refused(tmp_path / "a.dcm", "same position", "TemporalPositionIndex=2  3 images")
    scan = load_scan(tmp_path / "a.dcm", series="TemporalPositionIndex=2")
    assert np.array_equal(scan.voxels, RAW[:3].transpose(2, 1, 0) + 2)
    refused(tmp_path / "a.dcm", "another series", "It belongs to 1.2.3.4", series="9.9")


@pytest.mark.parametrize("text", ["", "1.2,3.4", "EchoTime=", "=5", "1.2,,EchoTime=5"])
def test_what_does_not_choose_a_series_is_refused(tmp_path: Path, text: str) -> None:
    write_slice(tmp_path / "0.dcm", RAW[0], (0, 0, 0))
    refused(tmp_path, "not a valid choice of a series", series=text)


def test_bright_and_dark_images_in_one_series_are_refused(tmp_path: Path) -> None:
    for n, kind in enumerate(("MONOCHROME1", "MONOCHROME2")):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n), PhotometricInterpretation=kind)
    refused(tmp_path, "low values bright", "0.dcm and 1.dcm")


def test_a_localizer_in_the_series_is_named(tmp_path: Path) -> None:
    for n in range(4):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n))
    write_slice(tmp_path / "scout.dcm", RAW[5], (0, 0, 0), (0, 1, 0, 0, 0, -1))
    refused(tmp_path, "not parallel", "scout.dcm", "localizers")


def test_a_slow_drift_sideways_or_along_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tilt").mkdir()
    (tmp_path / "steps").mkdir()
    for n in range(40):
        write_slice(tmp_path / "tilt" / f"{n}.dcm", RAW[0], (0, 0.03 * n, 3 * n))
        z = 3 * n + max(0, n - 20) * 0.1
        write_slice(tmp_path / "steps" / f"{n}.dcm", RAW[0], (0, 0, z))
    refused(tmp_path / "tilt", "sideways")
    refused(tmp_path / "steps", "not evenly spaced")


def test_frames_that_are_moments_or_views_are_refused(tmp_path: Path) -> None:
    def film(name: str, sop_class: str, **tags: Any) -> Path:
        pixels = RAW[:3].reshape(-1, 10)
        tags = {"NumberOfFrames": 3, "Rows": 8, "PixelData": RAW[:3].astype("u2").tobytes(), **tags}
        write_slice(tmp_path / name, pixels, (0, 0, 0), sop_class=sop_class, **tags)
        return tmp_path / name

    for kind in (["ORIGINAL", "PRIMARY", "DYNAMIC"], ["ORIGINAL", "PRIMARY", "TOMO"]):
        refused(film("nm.dcm", NUCLEAR, ImageType=kind, SpacingBetweenSlices=4), "not slices", kind[2])
    refused(film("film.dcm", SECONDARY, FrameTime=40), "not slices", "3 frames")
    gated = {"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO"], "SpacingBetweenSlices": 4}
    refused(film("gated.dcm", NUCLEAR, NumberOfSlices=1, **gated), "not slices")
    dose = load_scan(
        film("dose.dcm", DOSE, GridFrameOffsetVector=[0, 5, 10], DoseGridScaling=0.5, RescaleSlope=None)
    )
    assert np.allclose(dose.affine[:3, 2], (0, 0, 5))
    assert np.allclose(dose.voxels[:, :, 2], RAW[2].T * 0.5)


@pytest.mark.parametrize(
    "tags, words",
    [
        ({"RescaleSlope": 0}, ("slope is 0",)),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, ("mosaic", "dcm2niix")),
        ({"BitsAllocated": 12}, ("pixel format", "12")),
    ],
)
def test_headers_that_would_be_read_wrong_are_refused(
    tmp_path: Path, tags: dict[str, Any], words: tuple[str, ...]
) -> None:
    write_slice(tmp_path / "a.dcm", RAW[0], (0, 0, 0), **tags)
    refused(tmp_path / "a.dcm", *words)


def test_a_missing_pixel_size_is_not_made_up_and_that_of_a_detector_is_told(tmp_path: Path) -> None:
    for n in range(3):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n), PixelSpacing=None)
    assert cut(load_scan(tmp_path)).geometry.pixel_area_mm2 is None
    write_slice(tmp_path / "0.dcm", RAW[0], None, PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.1])
    scan = load_scan(tmp_path / "0.dcm")
    assert cut(scan, "z").geometry.pixel_area_mm2 == pytest.approx(0.02)
    assert "detector" in scan.notes[0]


def test_the_folder_s_own_series_goes_before_others_below_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for n in range(3):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n))
        write_slice(tmp_path / "below" / f"{n}.dcm", RAW[n], (0, 0, 9 + 3 * n))
        write_slice(tmp_path / "below" / f"other{n}.dcm", RAW[n], (0, 0, 3 * n), series="1.9")
    assert load_scan(tmp_path).voxels.shape == (10, 8, 6)


def test_links_that_lead_in_a_circle_end_and_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for n in range(3):
        write_slice(tmp_path / "a" / f"{n}.dcm", RAW[n], (0, 0, 3 * n))
    (tmp_path / "a" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "again.dcm").symlink_to(tmp_path / "a" / "0.dcm")
    scan = load_scan(tmp_path)
    assert scan.voxels.shape == (10, 8, 3) and not scan.notes


def test_a_segmentation_beside_a_series_is_no_second_series(tmp_path: Path) -> None:
    for n in range(3):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n))
    write_slice(tmp_path / "seg.dcm", RAW[0], None, (), "1.2.77", "1.2.840.10008.5.1.4.1.1.66.4")
    assert load_scan(tmp_path).voxels.shape == (10, 8, 3)
    refused(tmp_path / "seg.dcm", "no readable image", "Segmentation")


@pytest.mark.parametrize("coding", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2"])
def test_compressed_slices_have_their_own_rescale_too(tmp_path: Path, coding: str, kind: str) -> None:
    rng = np.random.default_rng(3)
    stored = [rng.integers(-100 if kind == "i2" else 0, 200, (16, 16)).astype(kind) for _ in range(3)]
    for n, pixels in enumerate(stored):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetUseCompression(True)
        writer.SetCompressor(coding)
        writer.SetFileName(str(tmp_path / f"{n}.dcm"))
        writer.Execute(sitk.GetImageFromArray(pixels))
        slice_ = pydicom.dcmread(tmp_path / f"{n}.dcm")
        slice_.RescaleSlope, slice_.RescaleIntercept = n + 0.5, -100
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 2 * n], [1, 0, 0, 0, 1, 0]
        slice_.SeriesInstanceUID, slice_.PixelSpacing = "1.2.3", [1, 1]
        slice_.PhotometricInterpretation = "MONOCHROME1"
        slice_.save_as(tmp_path / f"{n}.dcm")
    voxels = load_scan(tmp_path).voxels
    for n, pixels in enumerate(stored):
        assert np.allclose(voxels[:, :, n].T, pixels * (n + 0.5) - 100)


def test_a_slice_of_which_next_to_nothing_was_copied_is_not_left_out(tmp_path: Path) -> None:
    for n in range(3):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n))
    for content in (b"", b"\0" * 100):
        (tmp_path / "3.dcm").write_bytes(content)
        with pytest.raises(InputError, match=r"3\.dcm.*cut off"):
            load_scan(tmp_path)
