"""Masks as DICOM SEG and RTSTRUCT: opened again by highdicom and pydicom, and referring to the scan's images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

from dicom_files import write_series, write_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ibis_agent.errors import InputError
from ibis_agent.mask.contours import contours_of, outlines_of
from ibis_agent.mask.dicom_files import Segment, check_dicom, write_dicom_seg, write_rtstruct
from ibis_agent.mask.structures import structure_in
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.scan import Scan

SLICES, ROWS, COLS = 6, 10, 14


def filled(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixel centres inside, by counting crossings to the right (even and odd)."""
    rows, cols = np.indices(shape)
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > rows) != (y1 > rows)
        inside ^= crosses & (cols < (x1 - x0) * (rows - y0) / (y1 - y0) + x0)
    return inside


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_filling_the_contours_gives_the_mask_again(mask: np.ndarray) -> None:
    found = np.zeros_like(mask)
    for polygon in contours_of(mask):
        part = filled(polygon, mask.shape)
        assert not (found & part).any()
        found |= part
    np.testing.assert_array_equal(found, mask)


def test_the_outlines_go_once_around_every_pixel_of_the_border() -> None:
    mask = np.random.default_rng(3).random((17, 23)) > 0.5
    framed = np.pad(mask, 1)
    border = np.count_nonzero(framed[1:] != framed[:-1]) + np.count_nonzero(framed[:, 1:] != framed[:, :-1])
    assert sum(np.abs(np.diff(path, axis=0, append=path[:1])).sum() for path in outlines_of(mask)) == border


def test_a_ring_is_one_contour_with_a_keyhole() -> None:
    ring = np.ones((7, 7), bool)
    ring[2:5, 2:5] = False
    (polygon,) = contours_of(ring)
    np.testing.assert_array_equal(filled(polygon, ring.shape), ring)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    raw = np.random.default_rng(0).integers(0, 2000, (SLICES, ROWS, COLS))
    tags = {"PatientName": "Test^Pat", "PatientID": "7", "PatientBirthDate": "", "PatientSex": "O",
            "StudyDate": "20260101", "StudyTime": "120000", "AccessionNumber": "", "StudyID": "1",
            "ReferringPhysicianName": "", "FrameOfReferenceUID": "1.2.3.9"}  # fmt: skip
    return write_series(tmp_path / "ct", raw, **tags)


def segments(scan: Scan) -> list[Segment]:
    """A body with a hole, and a small one beside it."""
    body, small = np.zeros(scan.voxels.shape, np.uint8), np.zeros(scan.voxels.shape, np.uint8)
    body[3:9, 2:8, 1:4] = 1
    body[5:7, 4:6, 2] = 0
    small[10:12, 2:4, 4] = 1
    liver = structure_in("the liver")
    assert liver is not None
    return [Segment(body, "Liver", liver.colour, liver), Segment(small, "My\\odd  name", (250, 10, 5))]


def slice_of(image: Any) -> int:
    return round((float(image.ImagePositionPatient[2]) - 20) / 3)


def in_image(scan: Scan, mask: np.ndarray, image: Any) -> np.ndarray:
    """(rows, columns) of the mask: where each pixel of an image lies, through the patient."""
    found = np.zeros((ROWS, COLS), bool)
    for row in range(ROWS):
        for col in range(COLS):
            x, y, z = (float(each) for each in image.ImagePositionPatient)
            ras = np.array([-(x + col * 1.0), -(y + row * 2.0), z, 1.0])
            i, j, k = np.rint((np.linalg.inv(scan.affine) @ ras)[:3]).astype(int)
            found[row, col] = bool(mask[i, j, k])
    return found


def test_a_segmentation_is_opened_again_by_highdicom_with_the_same_masks(
    folder: Path, tmp_path: Path
) -> None:
    scan = load_scan(folder)
    made = segments(scan)
    path = write_dicom_seg(tmp_path / "mask.seg.dcm", made, folder, scan.affine)
    seg = highdicom.seg.segread(path)
    images = {each.SOPInstanceUID: each for each in map(pydicom.dcmread, sorted(folder.iterdir()))}
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["Liver", "My/odd name"]
    assert seg.get_segment_description(1).segmented_property_type.value == "10200004"
    assert seg.StudyInstanceUID == "1.2.3" and seg.PatientName == "Test^Pat" and seg.Modality == "SEG"
    assert seg.FrameOfReferenceUID == "1.2.3.9"
    uids = list(images)
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    for n, uid in enumerate(uids):
        for number, each in enumerate(made):
            np.testing.assert_array_equal(pixels[n, ..., number] != 0, in_image(scan, each.mask, images[uid]))
    assert pixels.any()


def test_a_structure_set_is_opened_again_by_pydicom_with_the_same_masks(folder: Path, tmp_path: Path) -> None:
    scan = load_scan(folder)
    made = segments(scan)
    rt = pydicom.dcmread(write_rtstruct(tmp_path / "a.dcm", made, folder, scan.affine))
    images = {each.SOPInstanceUID: each for each in map(pydicom.dcmread, sorted(folder.iterdir()))}
    assert rt.Modality == "RTSTRUCT" and rt.ApprovalStatus == "UNAPPROVED" and rt.PatientID == "7"
    referenced = rt.ReferencedFrameOfReferenceSequence[0]
    assert referenced.FrameOfReferenceUID == "1.2.3.9"
    series = referenced.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert {each.ReferencedSOPInstanceUID for each in series.ContourImageSequence} == set(images)
    assert [each.ROIName for each in rt.StructureSetROISequence] == ["Liver", "My/odd name"]
    for each, roi in zip(made, rt.ROIContourSequence, strict=True):
        found = {uid: np.zeros((ROWS, COLS), bool) for uid in images}
        for contour in roi.ContourSequence:
            uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
            x, y, z = (float(value) for value in images[uid].ImagePositionPatient)
            assert np.allclose(points[:, 2], z)
            found[uid] ^= filled(np.column_stack([points[:, 0] - x, (points[:, 1] - y) / 2]), (ROWS, COLS))
        for uid, image in images.items():
            np.testing.assert_array_equal(found[uid], in_image(scan, each.mask, image))


def test_one_slice_with_a_mask_is_enough(folder: Path, tmp_path: Path) -> None:
    scan = load_scan(folder)
    small = segments(scan)[1:]
    seg = highdicom.seg.segread(write_dicom_seg(tmp_path / "a.dcm", small, folder, scan.affine))
    assert seg.NumberOfFrames == 1


def test_the_series_is_found_among_others(folder: Path, tmp_path: Path) -> None:
    write_slice(folder / "z.dcm", np.ones((4, 4)), (0, 0, 0), series="1.9.9")
    scan = load_scan(folder, series="1.2.3.4")
    rt = pydicom.dcmread(write_rtstruct(tmp_path / "a.dcm", segments(scan), folder, scan.affine, "1.2.3.4"))
    assert len(rt.ROIContourSequence[0].ContourSequence) == 3


def test_of_two_echoes_the_chosen_one_is_referred_to(folder: Path, tmp_path: Path) -> None:
    first = {str(pydicom.dcmread(file).SOPInstanceUID) for file in folder.iterdir()}
    for file in list(folder.iterdir()):
        image = pydicom.dcmread(file)
        image.EchoTime = 4.6
        image.save_as(file)
        image.EchoTime, image.SOPInstanceUID = 9.2, f"{image.SOPInstanceUID[:50]}.2"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.PixelData = bytes(reversed(image.PixelData))
        image.save_as(folder / f"second-{file.name}")
    for chosen, one in (("EchoTime=4.6", True), ("EchoTime=9.2", False)):
        scan = load_scan(folder, series=chosen)
        rt = pydicom.dcmread(write_rtstruct(tmp_path / "a.dcm", segments(scan), folder, scan.affine, chosen))
        contours = rt.ROIContourSequence[0].ContourSequence
        named = {str(each.ContourImageSequence[0].ReferencedSOPInstanceUID) for each in contours}
        assert (named <= first) is one and (named.isdisjoint(first)) is not one


def test_what_cannot_be_written_is_refused_before_anything_is(folder: Path, tmp_path: Path) -> None:
    scan = load_scan(folder)
    empty = [Segment(np.zeros(scan.voxels.shape, bool), "Nothing")]
    shifted = scan.affine.copy()
    shifted[0, 3] += 0.5
    for write in (write_dicom_seg, write_rtstruct):
        with pytest.raises(InputError, match="empty"):
            write(tmp_path / "a.dcm", empty, folder, scan.affine)
        with pytest.raises(InputError, match="no DICOM series"):
            write(tmp_path / "a.dcm", segments(scan), folder, shifted)
    assert not (tmp_path / "a.dcm").exists()
    with pytest.raises(InputError, match="not DICOM"):
        check_dicom("rtstruct", tmp_path / "scan.nii.gz")
    check_dicom("dicom-seg", folder)
    file = folder.with_name("1.2.840.113")
    file.touch()
    check_dicom("dicom-seg", file)  # DICOM files are often called by their UID
