"""Pictures lie where they should in the patient, for every order and handedness of the file's axes."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.errors import InputError
from ibis_agent.scan.geometry import PictureGeometry, check_affine, slice_geometry
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import Orientation, apply_window, cut, overlay
from ibis_agent.scan.scan import Scan

SHAPE = (5, 6, 7)
SPACING = np.array([0.8, 1.5, 3.0])
# All 48 ways in which three axes can lie along right, anterior and superior, 24 of them left-handed.
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
PLANES = ("axial", "sagittal", "coronal")
# Which patient axis (of R, A, S) grows to the left of the screen, and which upwards, as radiologists look.
LEFTWARDS = {"axial": 0, "sagittal": 1, "coronal": 0}
UPWARDS = {"axial": 1, "sagittal": 2, "coronal": 2}
ACROSS = {"axial": 2, "sagittal": 0, "coronal": 1}


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], tilt: np.ndarray | None = None) -> np.ndarray:
    """Voxel axis n runs along patient axis order[n], forwards or backwards."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * SPACING[axis]
    affine[:3, 3] = (-40, 25, 110)
    if tilt is not None:
        affine[:3, :3] = tilt @ affine[:3, :3]
    return affine


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        one = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        turned = turned @ one
    return turned


def scan_of(voxels: np.ndarray, affine: np.ndarray) -> Scan:
    return Scan(voxels, affine, "volume", Path("test.nii"), "test")


def world(affine: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    """Patient RAS mm of a voxel: the definition of an affine, and all that the expectations below rest on."""
    return affine[:3, :3] @ np.array(voxel) + affine[:3, 3]


def corners(affine: np.ndarray) -> np.ndarray:
    return np.array([world(affine, voxel) for voxel in itertools.product(*((0, side - 1) for side in SHAPE))])


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_marked_voxel_shows_where_a_radiologist_expects_it(
    order: tuple[int, ...], signs: tuple[int, ...], plane: str
) -> None:
    affine = affine_of(order, signs)
    farthest = corners(affine).max(axis=0)
    spacing = np.array([SPACING[order.index(axis)] for axis in range(3)])  # along R, A, S
    for voxel in ((0, 0, 0), (1, 2, 5), (4, 1, 3)):
        voxels = np.zeros(SHAPE, np.int16)
        voxels[voxel] = 1000
        point = world(affine, voxel)
        # Counted from where the patient ends: from the patient's right, front, and top.
        steps = np.rint((farthest - point) / spacing).astype(int)
        column, row = steps[LEFTWARDS[plane]], steps[UPWARDS[plane]]
        index = voxel[order.index(ACROSS[plane])]
        picture = cut(scan_of(voxels, affine), plane, index, (0, 1000))
        assert np.argwhere(picture.rgb[..., 0] == 255).tolist() == [[row, column]]
        assert picture.geometry.plane == plane
        height, width = picture.rgb.shape[:2]
        x, y = (column + 0.5) / width, (row + 0.5) / height
        assert picture.geometry.to_voxel(x, y) == voxel
        assert picture.geometry.to_patient(x, y) == pytest.approx(point)
        assert picture.geometry.from_patient(*point) == pytest.approx((x, y))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_pixel_knows_its_voxel_and_its_place(
    order: tuple[int, ...], signs: tuple[int, ...], plane: str
) -> None:
    affine = affine_of(order, signs)
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    for orientation in Orientation:
        geometry = slice_geometry(SHAPE, affine, plane, None, orientation)
        seen = geometry.extract(values)
        assert seen.shape == (geometry.height, geometry.width)
        for row, column in itertools.product(range(geometry.height), range(geometry.width)):
            x, y = (column + 0.5) / geometry.width, (row + 0.5) / geometry.height
            voxel = geometry.to_voxel(x, y)
            assert values[voxel] == seen[row, column]
            point = geometry.to_patient(x, y)
            assert np.rint(np.linalg.inv(affine) @ (*point, 1)).astype(int)[:3].tolist() == list(voxel)
            assert geometry.from_patient(*point) == pytest.approx((x, y))
        assert geometry.row_mm == pytest.approx(SPACING[geometry.row_axis])
        assert geometry.col_mm == pytest.approx(SPACING[geometry.col_axis])
        assert geometry.pixel_area_mm2 == pytest.approx(
            SPACING[geometry.row_axis] * SPACING[geometry.col_axis]
        )


@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from(PLANES),
    st.tuples(*[st.floats(-20, 20)] * 3),
)
def test_an_oblique_scan_shows_the_nearest_axes_the_right_way_round(
    orientation: tuple[tuple[int, ...], tuple[int, ...]], plane: str, angles: tuple[float, float, float]
) -> None:
    affine = affine_of(*orientation, rotation(angles))
    straight = slice_geometry(SHAPE, affine_of(*orientation), plane)
    geometry = slice_geometry(SHAPE, affine, plane)
    assert (geometry.axis, geometry.row_axis, geometry.col_axis) == (
        straight.axis,
        straight.row_axis,
        straight.col_axis,
    )
    assert (geometry.flip_rows, geometry.flip_cols) == (straight.flip_rows, straight.flip_cols)
    middle = np.array(geometry.to_patient(0.5, 0.5))
    right, down = (np.array(geometry.to_patient(*xy)) - middle for xy in ((0.99, 0.5), (0.5, 0.99)))
    assert right[LEFTWARDS[plane]] < 0, "to the right of the screen is towards the patient's left or back"
    assert down[UPWARDS[plane]] < 0
    x, y = geometry.from_patient(*middle)
    assert geometry.to_patient(x, y) == pytest.approx(tuple(middle))


@pytest.mark.parametrize(
    ("axes", "turns"),
    [
        # How 3D Slicer's own picture (measured) follows from rot90: axial, sagittal, coronal.
        ("RAS", (np.fliplr, np.fliplr, np.fliplr)),
        ("LAS", (np.asarray, np.fliplr, np.asarray)),
        ("LPS", (np.flipud, np.asarray, np.asarray)),
        ("RPS", (lambda m: np.rot90(m, 2), np.asarray, np.fliplr)),
        ("PIR", (np.transpose, np.flipud, np.transpose)),
        ("ASL", (lambda m: np.rot90(m, 2).T, np.fliplr, lambda m: np.rot90(m, 2).T)),
    ],
)
def test_the_radiological_picture_is_what_slicer_shows(axes: str, turns: tuple) -> None:  # type: ignore[type-arg]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(axes):
        affine["RAS".index(letter) if letter in "RAS" else "LPI".index(letter), axis] = (
            1 if letter in "RAS" else -1
        )
    values = np.random.default_rng(1).integers(0, 255, SHAPE)
    scan = scan_of(values, affine)
    for plane, turn in zip(PLANES, turns, strict=True):
        index = 2
        shown = cut(scan, plane, index, (0, 255)).rgb
        published = cut(scan, plane, index, (0, 255), Orientation.UPSTREAM).rgb
        assert np.array_equal(shown[..., 0], turn(published[..., 0])), (axes, plane)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
def test_the_upstream_picture_is_rot90_of_the_raw_slice(
    order: tuple[int, ...], signs: tuple[int, ...], axis: int
) -> None:
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    geometry = slice_geometry(SHAPE, affine_of(order, signs), "xyz"[axis], 1, Orientation.UPSTREAM)
    assert np.array_equal(geometry.extract(values), np.rot90(np.take(values, 1, axis)))
    assert geometry.plane == PLANES[[2, 0, 1].index(order[axis])]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_raw_axis_and_its_plane_are_the_same_cut(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = affine_of(order, signs)
    for axis in range(3):
        raw = slice_geometry(SHAPE, affine, "xyz"[axis], 1)
        assert raw == slice_geometry(SHAPE, affine, raw.plane, 1)
        assert raw.axis == axis


def test_the_published_pictures_are_matched_in_every_byte(data: Path, parity: Path) -> None:
    index = json.loads((parity / "index.json").read_text())["pictures.npz"]
    recorded = np.load(parity / "pictures.npz")
    for entry in index["slices"]:
        scan = load_scan(data / entry["file"])
        picture = cut(scan, entry["axis"], entry["index"], entry["window"], Orientation.UPSTREAM)
        for channel in range(3):
            assert np.array_equal(picture.rgb[..., channel], recorded[entry["key"]]), entry
    about = index["overlay"]
    rgb = np.repeat(recorded[about["picture"]][:, :, None], 3, axis=2)
    assert np.array_equal(overlay(rgb, recorded[about["mask"]]), recorded[about["result"]])


def test_the_liver_is_on_the_left_of_the_screen_and_on_the_patients_right(data: Path) -> None:
    scan = load_scan(data / "ct_abdomen_3mm.nii.gz")
    labels = np.asarray(nibabel.load(data / "ct_abdomen_3mm_labels.nii.gz").dataobj)
    picture = cut(scan, "axial", 14)
    rows, columns = np.nonzero(picture.geometry.extract(labels) == 5)
    assert columns.mean() < picture.geometry.width / 2
    spine_rows = np.nonzero(np.isin(picture.geometry.extract(labels), (30, 31, 32, 33)))[0]
    assert spine_rows.mean() > rows.mean(), "the back is below"
    coronal = slice_geometry(scan.voxels.shape, scan.affine, "coronal")
    assert coronal.to_patient(0.5, 0)[2] > coronal.to_patient(0.5, 1)[2], "the head is above"


@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from((*PLANES, "x", "y", "z")),
    st.sampled_from(Orientation),
    st.data(),
)
def test_a_mask_goes_into_its_slice_and_comes_back(
    axes: tuple[tuple[int, ...], tuple[int, ...]], plane: str, orientation: Orientation, data: st.DataObject
) -> None:
    affine = affine_of(*axes)
    geometry = slice_geometry(SHAPE, affine, plane, None, orientation)
    x, y = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    row, column = geometry.pixel(x, y)
    assert (row, column) == (
        min(int(y * geometry.height), geometry.height - 1),
        min(int(x * geometry.width), geometry.width - 1),
    )
    mask = np.zeros((geometry.height, geometry.width), bool)
    mask[row, column] = True
    volume = geometry.embed_mask(mask)
    assert volume.shape == SHAPE and volume.dtype == np.uint8
    assert np.argwhere(volume).tolist() == [list(geometry.to_voxel(x, y))]
    assert np.array_equal(geometry.extract(volume), mask)


def test_masks_of_several_slices_share_one_volume() -> None:
    affine = affine_of((0, 1, 2), (1, 1, 1))
    volume = None
    for index in range(3):
        geometry = slice_geometry(SHAPE, affine, "axial", index)
        again = geometry.embed_mask(np.ones((geometry.height, geometry.width), bool), volume)
        assert volume is None or again is volume
        volume = again
    assert volume is not None and volume.sum(axis=(0, 1)).tolist() == [30, 30, 30, 0, 0, 0, 0]
    geometry.embed_mask(np.zeros((geometry.height, geometry.width), bool), volume)
    assert volume.sum(axis=(0, 1)).tolist() == [30, 30, 0, 0, 0, 0, 0], "an empty mask empties only its slice"


def test_a_geometry_survives_json() -> None:
    geometry = slice_geometry(SHAPE, affine_of((2, 0, 1), (1, -1, 1), rotation((5, 7, 9))), "coronal", 3)
    record = json.loads(json.dumps(geometry.to_json()))
    assert PictureGeometry.from_json(record) == geometry
    assert hash(PictureGeometry.from_json(record)) == hash(geometry)
    for key, wrong in (
        ("axis", 7),
        ("index", 99),
        ("shape", [1, 2]),
        ("affine", [[0]]),
        ("row_axis", 1),
        ("shape", "a"),
    ):
        with pytest.raises(InputError):
            PictureGeometry.from_json({**record, key: wrong})
    with pytest.raises(InputError):
        PictureGeometry.from_json({})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([1, 2, 3]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(st.data())
def test_no_record_of_a_geometry_raises_anything_but_an_input_error(data: st.DataObject) -> None:
    record = slice_geometry(SHAPE, affine_of((0, 1, 2), (1, 1, 1))).to_json()
    for key in data.draw(st.lists(st.sampled_from(sorted(record)), min_size=1, max_size=3)):
        record[key] = data.draw(JSON)
    try:
        geometry = PictureGeometry.from_json(record)
    except InputError as error:
        assert str(error)
    else:
        assert geometry.height >= 1 and geometry.width >= 1


def test_a_point_beside_the_slice_or_outside_the_scan_is_no_click() -> None:
    geometry = slice_geometry(SHAPE, affine_of((0, 1, 2), (1, 1, 1)), "axial", 2)
    r, a, s = geometry.to_patient(0.5, 0.5)
    assert geometry.from_patient(r + 0.3, a - 0.7, s + 1.4) == geometry.from_patient(r, a, s), (
        "within the voxel"
    )
    with pytest.raises(InputError, match="not in this slice"):
        geometry.from_patient(r, a, s + 1.6)
    with pytest.raises(InputError, match="outside the scan"):
        geometry.from_patient(r + 100, a, s)
    with pytest.raises(InputError, match="finite"):
        geometry.from_patient(float("nan"), a, s)


def test_clicks_on_the_border_fall_on_the_last_row_and_column() -> None:
    geometry = slice_geometry(SHAPE, affine_of((0, 1, 2), (1, 1, 1)), "axial")
    assert geometry.pixel(1, 1) == (geometry.height - 1, geometry.width - 1)
    assert geometry.pixel(0, 0) == (0, 0)
    assert geometry.pixel(-0.1, 7) == (geometry.height - 1, 0)


def ramp(dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused_in_the_slice_and_ignored_elsewhere(bad: float) -> None:
    voxels = ramp()
    voxels[1, 1, 3] = bad
    scan = scan_of(voxels, affine_of((0, 1, 2), (1, 1, 1)))
    for window in (None, (0, 100)):
        with pytest.raises(InputError, match=r"test\.nii: slice 3 .*not numbers.*got 1 of 30") as caught:
            cut(scan, "axial", 3, window)
        assert caught.value.remedy
    assert cut(scan, "axial", 2).rgb.max() == 255


def test_a_constant_slice_needs_a_window() -> None:
    voxels = np.full(SHAPE, -1024, np.int16)
    scan = scan_of(voxels, affine_of((0, 1, 2), (1, 1, 1)))
    with pytest.raises(InputError, match=r"constant.*-1024 everywhere"):
        cut(scan)
    assert cut(scan, window=(-160, 240)).rgb.max() == 0


def test_a_window_that_nobody_asked_for_hides_no_empty_slice() -> None:
    """A policy's window would show a constant slice, or one with values far off, as one grey: not by itself."""
    affine = affine_of((0, 1, 2), (1, 1, 1))
    constant = scan_of(np.zeros(SHAPE, np.int16), affine)
    with pytest.raises(InputError, match=r"constant.*0 everywhere"):
        cut(constant, preferred=(-160, 240))
    with pytest.raises(InputError, match=r"constant.*0 everywhere"):
        cut(dataclasses.replace(constant, window=(0.0, 255.0)))
    fractions = scan_of((ramp() / ramp().max()).astype(np.float32), affine)
    with pytest.raises(
        InputError, match=r"single grey value in the window -160 to 240.*values from 0\.\d+ to"
    ) as caught:
        cut(fractions, preferred=(-160, 240))
    assert caught.value.remedy
    assert cut(fractions, window=(-160, 240)).rgb.max() == 102
    assert cut(scan_of(ramp(), affine), preferred=(0, 300)).window == (0, 300)
    assert cut(scan_of(ramp(), affine), window=(0, 200), preferred=(0, 300)).window == (0, 200)


def test_a_slice_with_one_bright_voxel_is_not_constant() -> None:
    voxels = np.zeros((40, 40, 2), np.int16)
    voxels[3, 4, 1] = 7
    picture = cut(scan_of(voxels, affine_of((0, 1, 2), (1, 1, 1))), "axial", 1)
    assert picture.window == (0, 7)
    assert (picture.rgb == 255).sum() == 3


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        ((40, 40), "no width"),
        ((240, -160), "reversed"),
        ((0, float("inf")), "finite"),
        ((-1e308, 1e308), "finite"),
        ((float("nan"), 1), "finite"),
        ((1,), "two numbers"),
        ((1, 2, 3), "two numbers"),
        (("a", "b"), "two numbers"),
    ],
)
def test_an_impossible_window_is_refused(window: tuple, reason: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=reason):
        cut(scan_of(ramp(), affine_of((0, 1, 2), (1, 1, 1))), window=window)


def test_the_window_is_linear_and_truncates() -> None:
    values = np.array([-2000, -160, -159, 40, 239, 240, 4000])
    assert apply_window(values, (-160, 240)).tolist() == [0, 0, 0, 127, 254, 255, 255]
    everything = np.arange(256, dtype=np.uint8)
    assert np.array_equal(apply_window(everything, (0, 255)), everything)


@pytest.mark.parametrize("index", [-1, 7, 1000, 2.5])
def test_a_slice_outside_the_scan_is_refused_with_the_valid_range(index: float) -> None:
    with pytest.raises(InputError, match=r"test\.nii: the axial slice .*Choose a slice from 0 to 6\."):
        cut(scan_of(ramp(), affine_of((0, 1, 2), (1, 1, 1))), "axial", index)  # type: ignore[arg-type]


def test_an_unknown_plane_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="axial, sagittal, coronal, x, y, z"):
        cut(scan_of(ramp(), np.eye(4)), "oblique")


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([1, 1, 0, 1]), "singular"),
        (np.zeros((4, 4)), "invalid numbers"),
        (np.array([[1, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "sheared"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (np.diag([1, np.nan, 1, 1]), "invalid numbers"),
        (np.diag([1, np.inf, 1, 1]), "invalid numbers"),
        (np.eye(3), "4 × 4"),
    ],
)
def test_a_sheared_or_singular_affine_is_refused(affine: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        cut(scan_of(ramp(), affine))


def test_what_rounding_does_to_a_header_is_no_shear() -> None:
    affine = affine_of((0, 1, 2), (1, -1, 1), rotation((11, 3, 8)))
    assert np.array_equal(check_affine(np.round(affine, 3)), np.round(affine, 3))


def test_a_scan_of_one_slice_is_cut_across_it_and_refused_along_it() -> None:
    affine = affine_of((0, 1, 2), (1, 1, 1))
    scan = scan_of(ramp()[:, :, :1], affine)
    assert cut(scan).rgb.shape == (6, 5, 3)
    for plane in ("sagittal", "coronal"):
        with pytest.raises(InputError, match=r"too thin.*perpendicular to the axis z"):
            cut(scan, plane)
    with pytest.raises(InputError, match="too thin"):
        cut(scan_of(ramp()[:1, :, :1], affine))


def test_a_photograph_is_cut_to_itself() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    scan = Scan(rgb, np.eye(4), "picture", Path("photo.png"))
    picture = cut(scan)
    assert np.array_equal(picture.rgb, rgb)
    assert picture.window is None
    geometry = picture.geometry
    assert (geometry.plane, geometry.height, geometry.width) == ("picture", 20, 30)
    assert geometry.pixel_area_mm2 is None and geometry.row_mm is None, "nobody knows its millimetres"
    assert geometry.to_voxel(0.5, 0.99) == (15, 19, 0)
    assert geometry.from_patient(*geometry.to_patient(0.5, 0.99)) == pytest.approx((15.5 / 30, 19.5 / 20))
    mask = rgb[..., 0] > 128
    assert np.array_equal(geometry.extract(geometry.embed_mask(mask)), mask)
    for wrong in ({"plane": "coronal"}, {"index": 3}, {"window": (0, 255)}):
        with pytest.raises(InputError, match=r"photo\.png"):
            cut(scan, **wrong)  # type: ignore[arg-type]


def test_the_overlay_paints_the_mask_only_and_a_copy_only() -> None:
    rgb = np.full((4, 4, 3), 100, np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    painted = overlay(rgb, mask)
    assert painted[1, 2].tolist() == [73, 115, 73]
    assert (painted != rgb).any(axis=2).sum() == 1
    assert (rgb == 100).all()
    assert overlay(rgb, mask, (255, 0, 0), 1.0)[1, 2].tolist() == [255, 0, 0]
    for wrong in ((mask[:3], (0, 0, 0), 0.4), (mask, (0, 0, 300), 0.4), (mask, (0, 0, 0), 1.4)):
        with pytest.raises(InputError):
            overlay(rgb, *wrong)
