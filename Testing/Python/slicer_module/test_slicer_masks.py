"""What the agent writes and cuts, in the eyes of 3D Slicer's own readers (C++, from the slicer-core wheel)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("slicer", reason="these tests run in the simulated Slicer's environment: make test-host")

from ibis_agent.mask.files import write_mask
from ibis_agent.mask.structures import STRUCTURES, structure_in
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut

SHAPE = (6, 8, 10)
MARKS = [(0, 0, 0), (1, 5, 7), (5, 7, 9), (2, 3, 4)]


def rotated(affine: np.ndarray) -> np.ndarray:
    c, s = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    turned = affine.copy()
    turned[:3, :3] = tilt @ turned[:3, :3]
    return turned


def affine_for(axes: str) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (letter, spacing) in enumerate(zip(axes, (0.8, 1.5, 3.0), strict=True)):
        row = "RAS".find(letter) if letter in "RAS" else "LPI".find(letter)
        affine[row, axis] = spacing if letter in "RAS" else -spacing
    affine[:3, 3] = (-40, 25, 110)
    return affine


AFFINES = {axes: affine_for(axes) for axes in ("RAS", "LAS", "PIR")}
AFFINES["oblique and left-handed"] = rotated(affine_for("RAI"))


@pytest.fixture(params=AFFINES)
def scan_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    voxels = np.random.default_rng(3).integers(-500, 500, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINES[request.param]), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def marked() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for voxel in MARKS:
        mask[voxel] = True
    return mask


def places(mask: np.ndarray, affine: np.ndarray) -> list[list[float]]:
    """Patient coordinates of every voxel inside, sorted."""
    points = [affine[:3, :3] @ voxel + affine[:3, 3] for voxel in np.argwhere(mask)]
    return sorted([round(float(part), 2) + 0.0 for part in point] for point in points)


def segment_places(node: Any) -> list[list[float]]:
    """The same of a segmentation's only segment, from Slicer's own representation."""
    import slicer
    import vtk

    segmentation = node.GetSegmentation()
    image = segmentation.GetNthSegment(0).GetRepresentation(
        slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    )
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    i0, i1, j0, j1, k0, k1 = image.GetExtent()
    inside = []
    for i, j, k in itertools.product(range(i0, i1 + 1), range(j0, j1 + 1), range(k0, k1 + 1)):
        if image.GetScalarComponentAsDouble(i, j, k, 0):
            inside.append([round(part, 2) + 0.0 for part in matrix.MultiplyPoint((i, j, k, 1))[:3]])
    return sorted(inside)


def test_slicer_opens_a_segmentation_with_its_place_name_colour_and_code(
    slicer_host: Any, scan_file: Path, tmp_path: Path
) -> None:
    import slicer
    import vtk

    scan = load_scan(scan_file)
    structure = structure_in("Segment the left kidney")
    assert structure is STRUCTURES["left kidney"]
    out = tmp_path / "mask.seg.nrrd"
    write_mask(out, marked(), scan, name="Linke Niere 左腎", colour=(185, 102, 83), structure=structure)
    node = slicer.util.loadSegmentation(str(out))
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 1
    segment = segmentation.GetNthSegment(0)
    assert segment.GetName() == "Linke Niere 左腎"
    assert segment.GetColor() == pytest.approx((185 / 255, 102 / 255, 83 / 255), abs=1e-3)
    coded = vtk.reference("")
    assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), coded)
    assert str(coded) == structure.terminology()
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in str(coded)
    reference = slicer.vtkOrientedImageData()
    converter = slicer.vtkSegmentationConverter
    text = segmentation.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    assert converter.DeserializeImageGeometry(text, reference, False)
    assert reference.GetExtent() == (0, SHAPE[0] - 1, 0, SHAPE[1] - 1, 0, SHAPE[2] - 1), (
        "exports cover the scan"
    )
    assert segment_places(node) == places(marked(), scan.affine)


def test_a_nifti_and_an_nrrd_mask_lie_in_slicer_where_the_scan_lies(
    slicer_host: Any, scan_file: Path, tmp_path: Path
) -> None:
    import slicer
    import vtk

    scan = load_scan(scan_file)
    for name in ("mask.nii.gz", "mask.nrrd"):
        write_mask(tmp_path / name, marked(), scan)
        node = slicer.util.loadVolume(str(tmp_path / name))
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        array = slicer.util.arrayFromVolume(node)
        points = [matrix.MultiplyPoint((i, j, k, 1))[:3] for k, j, i in np.argwhere(array)]
        assert sorted([round(part, 2) + 0.0 for part in point] for point in points) == places(
            marked(), scan.affine
        )


def test_the_radiological_picture_is_slicers_slice_pixel_for_pixel(slicer_host: Any, scan_file: Path) -> None:
    import slicer
    import vtk

    scan = load_scan(scan_file)
    node = slicer.util.loadVolume(str(scan_file))
    array = slicer.util.arrayFromVolume(node)
    matrix = vtk.vtkMatrix4x4()
    node.GetRASToIJKMatrix(matrix)
    for plane in ("axial", "sagittal", "coronal"):
        picture = cut(scan, plane, window=(-500, 500))
        geometry = picture.geometry
        for row, column in itertools.product(range(geometry.height), range(geometry.width)):
            point = geometry.to_patient((column + 0.5) / geometry.width, (row + 0.5) / geometry.height)
            i, j, k = (round(part) for part in matrix.MultiplyPoint((*point, 1))[:3])
            expected = int((array[k, j, i] + 500) / 1000 * 255)
            assert picture.rgb[row, column, 0] == expected


def test_an_empty_mask_opens_as_an_empty_segment(slicer_host: Any, scan_file: Path, tmp_path: Path) -> None:
    import slicer

    scan = load_scan(scan_file)
    write_mask(tmp_path / "mask.seg.nrrd", np.zeros(SHAPE, bool), scan, name="Liver")
    node = slicer.util.loadSegmentation(str(tmp_path / "mask.seg.nrrd"))
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "Liver"
    assert segment_places(node) == []
