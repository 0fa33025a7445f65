"""Mask, marks and geometry on real MRML: every orientation, every plane, and nothing beside the slice touched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

CODES = ("RAS", "LAS", "LPS", "RPS", "PIR", "ASL")


@pytest.fixture
def lib(slicer_host: Any) -> Any:
    """IBISSlicerLib importable, without opening the module."""
    root = Path(__file__).resolve().parents[3]
    for folder in (root / "IBISSlicer", root / "Logic"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return slicer_host


def load(host: Any, folder: Path, code: str, shape: tuple[int, int, int] = (20, 24, 16)) -> tuple[Any, Any]:
    """A volume whose voxels all differ, written by nibabel in some order of axes and read by Slicer."""
    world = np.diag([-1.5, -2.0, 2.5, 1.0]) if code == "LPS" else np.diag([1.5, 2.0, 2.5, 1.0])
    world[:3, 3] = (-10, 15, 20)
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    ras = nibabel.Nifti1Image(values, np.diag([1.5, 2.0, 2.5, 1.0]))
    start = nibabel.io_orientation(ras.affine)
    turned = ras.as_reoriented(
        nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(code))
    )
    path = folder / f"{code}.nii.gz"
    nibabel.save(turned, path)
    return host.load_volume(path), turned


def grey_at(image: Any, ras: Any) -> int:
    voxel = np.linalg.solve(image.affine, [*ras, 1.0])[:3].round().astype(int)
    return int(np.asanyarray(image.dataobj)[tuple(voxel)])


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("view", ["Red", "Yellow", "Green"])
def test_what_the_agent_sees_is_what_the_view_shows_and_its_clicks_land_there(
    lib: Any, tmp_path: Path, code: str, view: str
) -> None:
    import slicer
    from ibis_agent.scan.geometry import slice_geometry
    from IBISSlicerLib.scene import Geometry

    volume, image = load(lib, tmp_path, code)
    node = lib.views[view].node
    lib.show_slice(view, tuple(Geometry.worldFromIjk(volume, np.array(Geometry.shapeOf(volume)) // 2)))
    place = Geometry.sliceOfView(node, volume)
    affine = Geometry.ijkToWorld(volume)
    geometry = slice_geometry(Geometry.shapeOf(volume), affine, "xyz"[place.axis], place.index)
    voxels = slicer.util.arrayFromVolume(volume).transpose()
    picture = geometry.extract(voxels)
    # Right in the picture is right on the screen, down is down.
    sliceToRas = Geometry.arrayFromMatrix(node.GetSliceToRAS())
    left, right = (np.array(geometry.to_patient(x, 0.5)) for x in (0.1, 0.9))
    top, bottom = (np.array(geometry.to_patient(0.5, y)) for y in (0.1, 0.9))
    assert (right - left) @ sliceToRas[:3, 0] > 0
    assert (bottom - top) @ sliceToRas[:3, 1] < 0
    # Every pixel's grey value is the file's at that place in the patient.
    for row in range(0, geometry.height, 3):
        for col in range(0, geometry.width, 3):
            x, y = (col + 0.5) / geometry.width, (row + 0.5) / geometry.height
            assert picture[row, col] == grey_at(image, geometry.to_patient(x, y))


@pytest.mark.parametrize("code", CODES)
def test_a_mask_is_shown_in_its_slice_and_nowhere_else(lib: Any, tmp_path: Path, code: str) -> None:
    import slicer
    from ibis_agent.scan.geometry import slice_geometry
    from IBISSlicerLib.scene import Geometry
    from IBISSlicerLib.scene.MaskDisplay import MaskDisplay

    volume, _ = load(lib, tmp_path, code)
    shape = Geometry.shapeOf(volume)
    display = MaskDisplay.create(volume, "Segment the liver")
    expected = np.zeros(shape, bool)
    random = np.random.default_rng(1)
    for axis, index in ((2, 5), (2, 9), (2, 5), (0, 3), (1, 7)):
        geometry = slice_geometry(shape, Geometry.ijkToWorld(volume), "xyz"[axis], index)
        mask = random.random((geometry.height, geometry.width)) > 0.5
        display.show(mask, geometry)
        geometry.extract(expected)[...] = mask
        got = slicer.util.arrayFromSegmentBinaryLabelmap(display.node, display.segmentId, volume) != 0
        assert np.array_equal(got.transpose(), expected)


def test_a_step_costs_a_slab_of_one_slice_and_not_the_volume(lib: Any) -> None:
    import slicer
    from ibis_agent.scan.geometry import slice_geometry
    from IBISSlicerLib.scene import Geometry
    from IBISSlicerLib.scene.MaskDisplay import MaskDisplay

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Large")
    slicer.util.updateVolumeFromArray(volume, np.zeros((40, 256, 256), np.int16))
    display = MaskDisplay.create(volume, "Segment the liver")
    geometry = slice_geometry(Geometry.shapeOf(volume), Geometry.ijkToWorld(volume), "axial", 20)
    display.show(np.ones((256, 256), bool), geometry)
    image = display.node.GetSegmentation().GetSegment(display.segmentId).GetRepresentation("Binary labelmap")
    assert image.GetNumberOfPoints() == 256 * 256


def test_everything_follows_a_transform_of_the_volume(lib: Any, tmp_path: Path) -> None:
    import slicer
    import vtk
    from IBISSlicerLib.scene import Geometry

    volume, image = load(lib, tmp_path, "LAS")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy((0, -1, 0, 5, 1, 0, 0, -3, 0, 0, 1, 2, 0, 0, 0, 1))
    transform.SetMatrixTransformToParent(matrix)
    plain = Geometry.ijkToWorld(volume)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    moved = Geometry.ijkToWorld(volume)
    assert np.allclose(moved, Geometry.arrayFromMatrix(matrix) @ plain)
    ras = Geometry.worldFromIjk(volume, (4, 5, 6))
    assert np.allclose(ras, (moved @ (4, 5, 6, 1))[:3])
    bent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    bent.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    volume.SetAndObserveTransformNodeID(bent.GetID())
    with pytest.raises(Geometry.GeometryError, match="Harden"):
        Geometry.ijkToWorld(volume)
    assert image is not None


@pytest.mark.parametrize("view", ["Red", "Yellow", "Green"])
def test_the_slice_of_a_view_is_the_one_that_is_shown(lib: Any, tmp_path: Path, view: str) -> None:
    from IBISSlicerLib.scene import Geometry

    volume, _ = load(lib, tmp_path, "LAS")
    node = lib.views[view].node
    for fraction in (0.2, 0.8):
        ijk = np.floor(np.array(Geometry.shapeOf(volume)) * fraction).astype(int)
        Geometry.showSlice(node, volume, ijk)
        place = Geometry.sliceOfView(node, volume)
        assert place.index == ijk[place.axis]
        assert place.count == Geometry.shapeOf(volume)[place.axis]
    node.SetSliceOffset(node.GetSliceOffset() + 1000)
    with pytest.raises(Geometry.GeometryError, match="outside"):
        Geometry.sliceOfView(node, volume)


AFFINES = {"RAS": np.diag([2.0, 3.0, 4.0, 1.0]), "LPS": np.diag([-2.0, -3.0, 4.0, 1.0])}


@pytest.mark.parametrize("way", AFFINES)
def test_the_frame_s_corners_are_those_of_its_outermost_pixels(lib: Any, way: str) -> None:
    from ibis_agent.scan.frame import Frame
    from ibis_agent.scan.geometry import slice_geometry
    from IBISSlicerLib.scene.FrameMark import cornersOf

    affine = AFFINES[way]
    geometry = slice_geometry((20, 16, 9), affine, "axial", 4)
    frame = Frame(3, 5, 11, 14, geometry.height, geometry.width)
    corners = cornersOf(frame, geometry, (2, 6), affine)
    pixels = [(3, 5), (3, 13), (10, 13), (10, 5)]
    for (row, column), corner in zip(pixels, corners.mean(0), strict=True):
        x, y = (column + 0.5) / geometry.width, (row + 0.5) / geometry.height
        inside = np.array(geometry.to_patient(x, y))
        assert np.allclose(np.abs(corner - inside)[:2], [1.0, 1.5])
    assert corners[..., 2].min() == pytest.approx(2 * 4 - 0.49 * 4)
    assert corners[..., 2].max() == pytest.approx(6 * 4 + 0.49 * 4)


def test_the_frame_is_shown_where_there_is_one(lib: Any) -> None:
    import slicer
    from ibis_agent.scan.frame import Frame
    from ibis_agent.scan.geometry import slice_geometry
    from IBISSlicerLib.scene.FrameMark import FrameMark

    geometry = slice_geometry((20, 16, 9), AFFINES["RAS"], "axial", 4)
    mark = FrameMark()
    mark.show(None, geometry, (4, 4), AFFINES["RAS"], None)
    assert mark.node is None
    mark.show(Frame(3, 5, 11, 14, 16, 20), geometry, (4, 4), AFFINES["RAS"], None)
    assert mark.node.GetPolyData().GetNumberOfCells() == 4
    node = mark.node
    mark.show(None, geometry, (4, 4), AFFINES["RAS"], None)
    assert not slicer.mrmlScene.IsNodePresent(node)
