"""Measures of masks: against SimpleITK's label statistics, and against shapes of which the size is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis_agent.errors import InputError
from ibis_agent.mask.measurements import answer_with_size, asks_for_size, measure

sitk = pytest.importorskip("SimpleITK")
SPACING = (0.8, 0.9, 2.5)


def blob(seed: int, shape: tuple[int, ...] = (24, 20, 12)) -> np.ndarray:
    """A connected, lumpy body."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(float)
    centre = np.array(shape) / 2
    mask = np.zeros(shape, bool)
    for _ in range(4):
        radii = rng.uniform(2, np.array(shape) / 3)
        at = centre + rng.uniform(-1.5, 1.5, len(shape))
        mask |= (((grid - at) / radii) ** 2).sum(-1) < 1
    return mask


def shape_statistics(mask: np.ndarray, spacing: tuple[float, ...]) -> sitk.LabelShapeStatisticsImageFilter:
    image = sitk.GetImageFromArray(mask.astype(np.uint8).T)
    image.SetSpacing(spacing)
    measured = sitk.LabelShapeStatisticsImageFilter()
    measured.ComputeFeretDiameterOn()
    measured.Execute(image)
    return measured


@pytest.mark.parametrize("seed", range(6))
def test_volume_diameter_and_grey_values_are_those_of_simpleitk(seed: int) -> None:
    mask = blob(seed)
    values = np.random.default_rng(seed).normal(60, 15, mask.shape).astype(np.float32)
    measured = measure(mask, SPACING, 2, values, ct=True)
    theirs = shape_statistics(mask, SPACING)
    assert measured.volume_ml == pytest.approx(theirs.GetPhysicalSize(1) / 1000)
    assert measured.longest_3d == pytest.approx(theirs.GetFeretDiameter(1))
    assert measured.voxels == theirs.GetNumberOfPixels(1) and measured.parts == 1
    grey = sitk.LabelIntensityStatisticsImageFilter()
    grey.Execute(sitk.GetImageFromArray(mask.astype(np.uint8).T), sitk.GetImageFromArray(values.T))
    assert measured.mean == pytest.approx(grey.GetMean(1), rel=1e-5)
    assert measured.deviation == pytest.approx(grey.GetStandardDeviation(1), rel=1e-5)
    assert measured.value_unit == "HU"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_longest_diameter_in_the_plane_is_the_longest_of_any_slice_by_simpleitk(axis: int) -> None:
    mask = blob(11)
    measured = measure(mask, SPACING, axis)
    spacing = tuple(np.delete(SPACING, axis))
    planes = np.moveaxis(mask, axis, 0)
    theirs = [shape_statistics(plane, spacing) if plane.any() else None for plane in planes]
    ferets = [0.0 if each is None else each.GetFeretDiameter(1) for each in theirs]
    areas = [0.0 if each is None else each.GetPhysicalSize(1) for each in theirs]
    assert measured.longest == pytest.approx(max(ferets))
    assert measured.diameter_slice == int(np.argmax(ferets))
    assert measured.area == pytest.approx(max(areas)) and areas[measured.area_slice or 0] == max(areas)
    assert 0 < measured.perpendicular <= measured.longest


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_those_of_simpleitk(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 8, 7)) > 0.85
    found = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    assert measure(mask, SPACING).parts == int(sitk.GetArrayFromImage(found).max())


def test_an_ellipse_has_its_two_axes_whichever_way_it_lies() -> None:
    grid = np.stack(np.meshgrid(np.arange(300), np.arange(300), indexing="ij"), -1) - 150.0
    for angle in np.deg2rad([0, 30, 45, 77]):
        u = grid @ [np.cos(angle), np.sin(angle)]
        v = grid @ [-np.sin(angle), np.cos(angle)]
        measured = measure((u / 120) ** 2 + (v / 50) ** 2 < 1, (0.5, 0.5))
        assert measured.longest == pytest.approx(120, abs=1.5)
        assert measured.perpendicular == pytest.approx(50, abs=1.5)
        assert measured.volume_ml is None and measured.longest_3d is None


def test_a_diameter_does_not_span_two_lesions() -> None:
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 2:6, 2:4] = mask[0, 30:33, 30:38] = True
    measured = measure(mask, (1.0, 1.0, 1.0))
    assert measured.parts == 2
    assert measured.longest == pytest.approx(np.hypot(2, 7)) == measured.longest_3d


def test_without_a_pixel_size_everything_is_in_pixels() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:9, 4:14] = True
    measured = measure(mask)
    assert (measured.area, measured.unit, measured.volume_ml) == (40, "px", None)
    assert dict(measured.lines())["Area"] == "40 px" and measured.sentence().endswith("px.")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_boxes_of_every_thinness_are_measured(i: int, j: int, k: int) -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[2 : 2 + i, 3 : 3 + j, 4 : 4 + k] = True
    measured = measure(mask, SPACING, 2)
    sides = (np.array([i, j, k]) - 1) * SPACING
    assert measured.longest_3d == pytest.approx(np.linalg.norm(sides))
    assert measured.longest == pytest.approx(np.linalg.norm(sides[:2]))
    assert measured.area_slice == 4 and measured.voxels == i * j * k


def test_a_flat_plate_of_many_voxels_has_a_diameter() -> None:
    mask = np.zeros((60, 60, 5), bool)
    mask[10:50, 10:50, 2] = True
    assert measure(mask, (1.0, 1.0, 1.0), 2).longest_3d == pytest.approx(39 * np.sqrt(2), rel=1e-3)


def test_an_empty_mask_has_no_size_and_does_not_fail() -> None:
    for mask in (np.zeros((4, 5, 6), bool), np.zeros((4, 5), bool)):
        measured = measure(mask, (1.0,) * mask.ndim, values=np.ones(mask.shape))
        assert measured.voxels == 0 and measured.area == 0 and measured.mean is None
        assert measured.lines() == [("Size", "the mask is empty")]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="different shapes"):
        measure(np.ones((3, 4)), values=np.ones((4, 3)))
    with pytest.raises(InputError, match="spacing"):
        measure(np.ones((3, 4)), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("How large is the lesion?", True),
        ("What is the volume of the spleen?", True),
        ("Measure the tumour.", True),
        ("how big is it", True),
        ("Segment the large vessel.", False),
        ("Is there a liver lesion?", False),
    ],
)
def test_questions_for_a_size_get_one(question: str, asked: bool) -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, 5:15] = True
    measured = measure(mask, (1.0, 1.0, 1.0), 2)
    answer = answer_with_size(question, "There it is.", measured)
    assert asks_for_size(question) is asked
    assert answer.startswith("There it is.") and ("1.0 mL" in answer) is asked
