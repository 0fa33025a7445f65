"""Labelled data as trainers have them: segmentations of 3D Slicer, regions, turned masks, spreadsheets, large maps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from awkward import made
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis_agent.cases.cases import read_cases
from ibis_agent.cases.chosen_labels import mask_of_file
from ibis_agent.cases.data import LoadedCase, load_case
from ibis_agent.mask.files import write_mask
from ibis_agent.mask.segmentations import read_segmentation
from ibis_agent.scan.load import load_scan
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

AFFINE = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 20], [0, 0, 3, -60], [0, 0, 0, 1]])
SHAPE = (12, 10, 8)


def only(folder: Path) -> LoadedCase:
    """The one case of a folder, with nothing wrong about it."""
    cases, problems = read_cases(folder)
    assert len(cases) == 1 and problems == [], problems
    loaded, problems = load_case(cases[0])
    assert loaded is not None and problems == [], problems
    return loaded


def inside(loaded: LoadedCase, name: str) -> np.ndarray:
    return np.isin(loaded.labels, loaded.structures[name])


def labels_of(folder: Path) -> np.ndarray:
    """The label map that the scripts of cases make of their scan."""
    return np.asarray(nib.load(folder / "case.nii.gz").dataobj) > 85


def save_scan(path: Path, affine: np.ndarray = AFFINE) -> Path:
    voxels = np.random.default_rng(1).integers(-100, 100, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def test_segments_are_named_by_their_file_and_put_where_they_lie(tmp_path: Path) -> None:
    out = made("14", tmp_path)
    for name in ("names", "cropped"):
        loaded = only(out / name)
        assert list(loaded.structures) == ["liver"]
        assert np.array_equal(inside(loaded, "liver"), labels_of(out / name))
    both = only(out / "layers")
    assert list(both.structures) == ["liver", "tumour"]
    assert np.array_equal(inside(both, "liver"), labels_of(out / "layers"))
    assert np.array_equal(inside(both, "tumour"), np.roll(labels_of(out / "layers"), 3, 0))


def test_what_a_run_writes_for_3d_slicer_is_a_labelled_case_again(tmp_path: Path) -> None:
    scan = load_scan(save_scan(tmp_path / "ct.nii.gz"))
    mask = np.zeros(SHAPE, bool)
    mask[3:7, 2:5, 1:6] = True
    write_mask(tmp_path / "ct.seg.nrrd", mask, scan, name="liver lesion")
    loaded = only(tmp_path)
    assert np.array_equal(inside(loaded, "liver lesion"), mask)


def test_a_segmentation_lies_on_a_scan_that_other_programs_place_elsewhere(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(1).integers(-100, 100, SHAPE).astype(np.int16), None)
    image.set_qform(AFFINE, 1)
    moved = AFFINE.copy()
    moved[:3, 3] += 30
    image.set_sform(moved, 2)
    nib.save(image, tmp_path / "ct.nii.gz")
    mask = np.random.default_rng(2).random(SHAPE) > 0.5
    write_mask(tmp_path / "ct.seg.nrrd", mask, load_scan(tmp_path / "ct.nii.gz"), name="liver")
    assert np.array_equal(inside(only(tmp_path), "liver"), mask)


def test_a_segment_outside_the_scan_is_refused_and_an_empty_border_is_not(tmp_path: Path) -> None:
    save_scan(tmp_path / "ct.nii.gz")
    larger = AFFINE.copy()
    larger[:3, 3] = (AFFINE @ (-2, -1, 0, 1))[:3]
    around = save_scan(tmp_path / "around.nii.gz", larger)
    labels = np.zeros(SHAPE, bool)
    labels[4:9, 4:9] = True
    write_mask(tmp_path / "ct.seg.nrrd", labels, load_scan(around), name="liver")
    around.unlink()
    assert np.array_equal(inside(only(tmp_path), "liver"), np.roll(labels, (-2, -1), (0, 1)))
    labels[0] = True
    write_mask(tmp_path / "ct.seg.nrrd", labels, load_scan(save_scan(around, larger)), name="liver")
    around.unlink()
    problem = load_case(read_cases(tmp_path)[0][0])[1][0]
    assert problem.kind == "place" and "outside" in problem.text


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), layers=st.integers(1, 3), segments=st.integers(1, 4))
def test_every_segment_comes_back_whatever_overlaps(
    tmp_path_factory: pytest.TempPathFactory, seed: int, layers: int, segments: int
) -> None:
    rng = np.random.default_rng(seed)
    held = rng.integers(0, segments + 1, (*SHAPE, layers)).astype(np.uint8)
    image = (
        sitk.GetImageFromArray(np.ascontiguousarray(held.transpose(2, 1, 0, 3)), isVector=layers > 1)
        if (layers > 1)
        else sitk.GetImageFromArray(np.ascontiguousarray(held[..., 0].T))
    )
    truth = {}
    for n in range(segments):
        layer = int(rng.integers(layers))
        values = {"ID": f"Segment_{n}", "Name": f"part {n}", "LabelValue": str(n + 1), "Layer": str(layer)}
        for key, value in values.items():
            image.SetMetaData(f"Segment{n}_{key}", value)
        truth[n + 1] = held[..., layer] == n + 1
    path = tmp_path_factory.mktemp("segments") / "a.seg.nrrd"
    sitk.WriteImage(image, str(path))
    found = read_segmentation(path)
    for number, expected in truth.items():
        assert np.array_equal(np.isin(found.labels, found.codes[number]), expected)
        assert 0 not in found.codes[number]
    seen = [str(number) for number, expected in truth.items() if expected.any()]
    assert mask_of_file(path)[2] == (", ".join(seen) if len(seen) > 1 else "")


def test_regions_are_structures_of_several_values_and_ignore_is_none(tmp_path: Path) -> None:
    loaded = only(made("16", tmp_path) / "Dataset001")
    values = np.asarray(nib.load(tmp_path / "Dataset001/labelsTr/c.nii.gz").dataobj)
    assert list(loaded.structures) == ["organ", "lesion"]
    assert np.array_equal(inside(loaded, "organ"), (values == 1) | (values == 2))
    assert np.array_equal(inside(loaded, "lesion"), values == 2)


def test_a_mask_stored_the_other_way_round_lies_on_its_scan(tmp_path: Path) -> None:
    out = made("18", tmp_path) / "flipped"
    assert np.array_equal(inside(only(out), "liver"), labels_of(out))


@settings(max_examples=25)
@given(axes=st.permutations("RAS"), flips=st.tuples(*[st.booleans()] * 3))
def test_a_mask_of_the_same_grid_is_found_in_every_order_and_direction(
    tmp_path_factory: pytest.TempPathFactory, axes: list[str], flips: tuple[bool, ...]
) -> None:
    folder = tmp_path_factory.mktemp("turned")
    save_scan(folder / "a.nii.gz")
    labels = np.random.default_rng(3).integers(0, 2, SHAPE).astype(np.uint8)
    codes = "".join(
        {"R": "L", "A": "P", "S": "I"}[a] if flip else a for a, flip in zip(axes, flips, strict=True)
    )
    image = nib.Nifti1Image(labels, AFFINE)
    turned = image.as_reoriented(ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes)))
    nib.save(turned, folder / "a_mask.nii.gz")
    (folder / "labels.json").write_text('{"1": "liver"}')
    assert np.array_equal(inside(only(folder), "liver"), labels == 1)


@pytest.mark.parametrize("change", ["half a voxel more", "turned", "other spacing", "other size"])
def test_a_mask_of_another_grid_is_told(tmp_path: Path, change: str) -> None:
    save_scan(tmp_path / "a.nii.gz")
    affine, shape = AFFINE.copy(), list(SHAPE)
    if change == "half a voxel more":
        affine[0, 3] += 0.9 * 1.5
    elif change == "turned":
        affine[:2, :2] = [[-1.4, 0.5], [-0.5, -1.4]]
    elif change == "other spacing":
        affine[2, 2] = 2.5
    else:
        shape[0] -= 3
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), affine), tmp_path / "a_mask.nii.gz")
    (tmp_path / "labels.json").write_text('{"1": "liver"}')
    loaded, problems = load_case(read_cases(tmp_path)[0][0])
    assert loaded is None and problems[0].kind == ("size" if change == "other size" else "place")


def test_two_images_of_one_name_beside_one_mask_are_told(tmp_path: Path) -> None:
    for folder, mask in ((tmp_path / "beside", "a_mask.png"), (tmp_path / "two" / "images", "")):
        folder.mkdir(parents=True)
        for name in ("a.png", "a.jpg"):
            Image.fromarray(np.random.default_rng(4).integers(0, 255, (16, 16), np.uint8)).save(folder / name)
        place = folder / mask if mask else tmp_path / "two" / "masks" / "a.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(place)
    for folder in ("beside", "two"):
        (tmp_path / folder / "labels.json").write_text('{"any": "line"}')
        cases, problems = read_cases(tmp_path / folder)
        assert [case.id for case in cases] == ["a"]
        assert [each.kind for each in problems] == ["duplicate"]
        assert "a.jpg" in problems[0].text and "a.png" in problems[0].text


def test_manifests_are_read_as_spreadsheets_save_them(tmp_path: Path) -> None:
    out = made("29", tmp_path)
    excel, problems = read_cases(out / "excel.csv")
    assert [(case.id, case.structures) for case in excel] == [("ä1", ("Läsion",))] and not problems
    assert read_cases(out / "sep.csv")[0][0].structures == ("x",)
    named = read_cases(out / "labels.csv")[0]
    assert len(named) == 5 and named[0].structures == ("liver", "spleen", "kidney", "lung")
    assert [case.structures for case in read_cases(out / "quoted.csv")[0]] == [("liver", "spleen")] * 5
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.nii.gz").write_bytes((out / "m.nii.gz").read_bytes())
    text = "image\tmask\tstructure\r\na.nii.gz\tsub\\m.nii.gz\tliver\r\n"
    (out / "tabs.csv").write_bytes(text.encode("utf-16"))
    cases, problems = read_cases(out / "tabs.csv")
    assert problems == [] and load_case(cases[0])[0] is not None


def test_a_large_label_map_of_floats_is_read_in_little_more_than_its_integers_need(tmp_path: Path) -> None:
    shape = (256, 256, 200)
    labels = np.zeros(shape)
    labels[100:140, 80:120, 50:90] = 2
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16) + labels.astype(np.int16), AFFINE), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "a_labels.nii")
    (tmp_path / "labels.json").write_text(json.dumps({"2": "lesion"}))
    program = (
        "import sys; from pathlib import Path; from ibis_agent.cases.cases import read_cases; "
        "from ibis_agent.cases.data import load_case; import resource, nibabel, SimpleITK; "
        "cases, _ = read_cases(Path(sys.argv[1])); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "loaded, told = load_case(cases[0]); assert loaded.labels.dtype == 'u1' and not told; "
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)"
    )
    logic = str(Path(__file__).resolve().parents[4] / "Logic")
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": logic},
    )
    assert told.returncode == 0, told.stderr
    voxels = np.prod(shape) / 2**20
    # The scan (2 bytes a voxel) and the labels (1) stay; parts of 2**22 voxels pass through as floats.
    assert float(told.stdout) < 3 * voxels + 220, "a map of floats alone takes 8 bytes a voxel"
