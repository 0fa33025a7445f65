"""Data sets as people have them, and as they should not be: everything wrong is told by name, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ibis_agent.cases.case import ANY, plain_name, read_labels
from ibis_agent.cases.cases import read_cases, refuse, tally
from ibis_agent.cases.data import load_case, read_mask
from ibis_agent.errors import InputError
from ibis_agent.scan.picture import cut
from PIL import Image

LABELS = {"1": "liver", "2": "kidney_left"}


def volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def scan(path: Path, shape: tuple[int, ...] = (12, 10, 4)) -> Path:
    return volume(path, np.random.default_rng(1).integers(-100, 100, shape).astype(np.int16))


def label_map(path: Path, shape: tuple[int, ...] = (12, 10, 4), kind: str = "u1") -> Path:
    labels = np.zeros(shape, kind)
    labels[2:6, 2:6] = 1
    labels[7:10, 3:8, 1] = 2
    return volume(path, labels)


def picture(path: Path, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (side, side + 4), np.uint8)).save(path)
    return path


def mask(path: Path, side: int = 16, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((side, side + 4), np.uint8)
    values[3:9, 4:10] = value
    Image.fromarray(values).save(path)
    return path


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def kinds(problems: list) -> dict[str, str]:
    return {each.case: each.kind for each in problems}


def test_pairs_beside_each_other_are_found(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label_map(tmp_path / "a_labels.nii.gz")
    scan(tmp_path / "deep" / "b.nii.gz")
    label_map(tmp_path / "deep" / "b_seg.nii.gz")
    write(tmp_path / "labels.json", LABELS)
    cases, problems = read_cases(tmp_path)
    assert [case.id for case in cases] == ["a", "deep/b"] and problems == []
    assert cases[0].labels == {"liver": (1,), "left kidney": (2,)} and not cases[0].own_labels


def test_folders_of_images_and_of_labels_are_found_with_a_channel_in_the_name(tmp_path: Path) -> None:
    scan(tmp_path / "imagesTr" / "case_1_0000.nii.gz")
    label_map(tmp_path / "labelsTr" / "case_1.nii.gz")
    write(tmp_path / "dataset.json", {"labels": {"background": 0, "liver": 1, "left kidney": 2}})
    cases, problems = read_cases(tmp_path)
    assert [(case.id, case.structures) for case in cases] == [("case_1", ("liver", "left kidney"))]
    assert problems == []


def test_a_folder_of_masks_for_each_structure_gives_a_case_for_each(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "x.png")
    for name in ("liver", "spleen"):
        mask(tmp_path / "masks" / name / "x.png")
    scan(tmp_path / "other" / "s1" / "ct.nii.gz")
    label_map(tmp_path / "other" / "s1" / "segmentations" / "kidney_right.nii.gz")
    cases, _ = read_cases(tmp_path)
    assert [(case.id, case.labels) for case in cases] == [
        ("x/liver", {"liver": (ANY,)}),
        ("x/spleen", {"spleen": (ANY,)}),
    ]
    cases, _ = read_cases(tmp_path / "other")
    assert [(case.id, case.labels) for case in cases] == [("s1/kidney_right", {"right kidney": (ANY,)})]


def test_a_csv_and_a_json_manifest_say_the_same(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label_map(tmp_path / "m.nii.gz")
    picture(tmp_path / "p.png")
    mask(tmp_path / "q.png")
    columns = "id,image,mask,structure,value,labels,window_min,window_max,reverse"
    rows = [
        "one,a.nii.gz,m.nii.gz,,,1=liver;2=kidney_left,-100,200,",
        "two,p.png,q.png,lesion,255,,,,yes",
    ]
    from_csv, problems = read_cases(write(tmp_path / "list.csv", "\n".join([columns, *rows]) + "\n"))
    entries = [
        {"id": "one", "image": "a.nii.gz", "mask": "m.nii.gz", "labels": LABELS, "window": [-100, 200]},
        {
            "id": "two",
            "image": "p.png",
            "mask": "q.png",
            "structure": "lesion",
            "value": 255,
            "reverse": True,
        },
    ]
    from_json, more = read_cases(write(tmp_path / "list.json", entries))
    assert from_csv == from_json and problems == more == []
    assert from_csv[0].labels == {"liver": (1,), "left kidney": (2,)} and from_csv[0].window == (-100, 200)
    assert from_csv[1].labels == {"lesion": (255,)} and from_csv[1].reverse


def test_all_that_can_be_wrong_with_a_case_is_told_by_its_name_and_the_others_are_used(
    tmp_path: Path,
) -> None:
    rows = []

    def row(name: str, image: Path, labels: Path, names: dict[str, str] | None = None) -> None:
        rows.append({"id": name, "image": image.name, "mask": labels.name, "labels": names or LABELS})

    good = scan(tmp_path / "good.nii.gz")
    fine = label_map(tmp_path / "fine.nii.gz")
    row("good", good, fine)
    row("other size", good, label_map(tmp_path / "small.nii.gz", (12, 9, 4)))
    row("empty", good, volume(tmp_path / "empty.nii.gz", np.zeros((12, 10, 4), np.uint8)))
    row("damaged", good, write(tmp_path / "damaged.nii.gz", "nothing"))
    row("not there", good, tmp_path / "nowhere.nii.gz")
    row("good", good, fine)
    row("no such label", good, fine, {"1": "liver", "9": "spleen"})
    row("no named label", good, fine, {"9": "spleen"})
    holes = np.ones((12, 10, 4), np.float32)
    holes[3, 3, 3] = np.nan
    row("nan", volume(tmp_path / "holes.nii.gz", holes), fine)
    row("nan in the mask", good, volume(tmp_path / "holes2.nii.gz", holes))
    row("halves", good, volume(tmp_path / "halves.nii.gz", np.full((12, 10, 4), 0.5, np.float32)))
    far = np.eye(4)
    far[0, 3] = 30
    row("elsewhere", good, volume(tmp_path / "far.nii.gz", label_values(fine), far))
    rows += [{"id": "no mask", "image": "good.nii.gz"}, "a text", {"image": "good.nii.gz", "msk": "x"}]
    cases, problems = read_cases(write(tmp_path / "list.json", rows))
    usable = []
    for case in cases:
        loaded, more = load_case(case)
        problems += more
        usable += [] if loaded is None else [(case.id, tuple(loaded.structures))]
    assert usable == [("good", ("liver", "left kidney")), ("no such label", ("liver",))]
    assert kinds(problems) == {
        "not there": "missing",
        "good": "duplicate",
        "no mask": "manifest",
        "entry 14": "manifest",
        "entry 15": "manifest",
        "other size": "size",
        "empty": "empty",
        "damaged": "unreadable",
        "no such label": "label",
        "no named label": "names",
        "nan": "nan",
        "nan in the mask": "nan",
        "halves": "unreadable",
        "elsewhere": "place",
    }
    counted = tally(problems)
    assert counted["count"] == 14 and counted["kinds"]["manifest"] == 3
    assert {each["case"] for each in counted["each"]} == set(kinds(problems))
    with pytest.raises(InputError, match="and 13 more"):
        refuse(problems)


def label_values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_masks_without_a_picture_and_pictures_without_a_mask_are_named(tmp_path: Path) -> None:
    scan(tmp_path / "alone.nii.gz")
    label_map(tmp_path / "lonely_mask.nii.gz")
    _, problems = read_cases(tmp_path)
    assert kinds(problems) == {"alone": "missing", "lonely": "missing"}


def test_masks_whose_values_nobody_names_are_told_with_the_file_to_write(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label_map(tmp_path / "a_mask.nii.gz")
    _, problems = read_cases(tmp_path)
    assert [each.kind for each in problems] == ["names"] and "a_mask.json" in problems[0].text
    write(tmp_path / "a_mask.json", LABELS)
    cases, problems = read_cases(tmp_path)
    assert problems == [] and cases[0].own_labels


def test_a_labelling_shared_by_many_cases_may_lack_structures_in_one(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label_map(tmp_path / "a_labels.nii.gz")
    write(tmp_path / "labels.json", {**LABELS, "7": "spleen"})
    loaded, problems = load_case(read_cases(tmp_path)[0][0])
    assert loaded is not None and problems == [] and loaded.absent == ("spleen",)
    empty = volume(tmp_path / "a_labels.nii.gz", np.zeros((12, 10, 4), np.uint8))
    case = read_cases(empty.parent)[0][0]
    assert load_case(case)[1][0].kind == "empty"
    kept, problems = load_case(case, keep_empty=True)
    assert kept is not None and len(kept.absent) == 3 and problems == []


def test_the_truth_is_cut_as_the_picture_is_and_values_of_one_name_are_one_structure(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label_map(tmp_path / "a_labels.nii.gz")
    write(tmp_path / "labels.json", {"1": "kidneys", "2": "kidneys"})
    loaded, _ = load_case(read_cases(tmp_path)[0][0])
    assert loaded is not None
    for plane, index in (("axial", 1), ("coronal", 4), ("sagittal", 8)):
        geometry = cut(loaded.scan, plane, index).geometry
        expected = geometry.extract(label_values(tmp_path / "a_labels.nii.gz")) != 0
        truth = loaded.truth(geometry, "kidneys")
        assert expected.any() and np.array_equal(truth, expected)
        assert not loaded.truth(geometry, "spleen").any()


def test_a_label_map_in_nrrd_fits_the_same_scan_in_nifti(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    scan(tmp_path / "a.nii.gz")
    label_map(tmp_path / "m.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "m.nii.gz")), str(tmp_path / "a_labels.nrrd"))
    (tmp_path / "m.nii.gz").unlink()
    write(tmp_path / "labels.json", LABELS)
    cases, problems = read_cases(tmp_path)
    loaded, more = load_case(cases[0])
    assert loaded is not None and set(loaded.structures) == {"liver", "left kidney"} and problems + more == []


def test_picture_masks_are_read_as_grey_values_palettes_bits_colours_and_reversed(tmp_path: Path) -> None:
    values = np.zeros((8, 9), np.uint8)
    values[2:5, 3:6] = 3
    grey = Image.fromarray(values)
    grey.save(tmp_path / "grey.png")
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 50, 50, 50, 200, 10, 10])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values > 0).save(tmp_path / "bits.png")
    Image.merge("RGB", [grey, grey, grey]).save(tmp_path / "rgb.png")
    red = Image.merge("RGB", [grey, Image.new("L", grey.size), Image.new("L", grey.size)])
    red.save(tmp_path / "red.png")
    Image.fromarray((values > 0).astype(np.uint8) * 255).save(tmp_path / "lossy.jpg")
    for name, value in (
        ("grey.png", 3),
        ("palette.png", 3),
        ("bits.png", 1),
        ("rgb.png", 3),
        ("red.png", 3),
        ("lossy.jpg", 255),
    ):
        labels, affine = read_mask(tmp_path / name)
        assert affine is None and np.array_equal(labels, (values > 0) * value), name
    assert np.array_equal(read_mask(tmp_path / "grey.png", reverse=True)[0], values == 0)


def test_a_source_or_names_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match="contains no pictures"):
        read_cases(tmp_path)
    with pytest.raises(InputError, match="no column mask"):
        read_cases(write(tmp_path / "a.csv", "image,structure\nx,y\n"))
    with pytest.raises(InputError, match="unknown column"):
        read_cases(write(tmp_path / "b.csv", "image,mask,colour\nx,y,z\n"))
    with pytest.raises(InputError, match="whole number and a name"):
        read_labels(write(tmp_path / "c.json", {"1.5": "liver"}))
    with pytest.raises(InputError, match="not a list"):
        read_cases(write(tmp_path / "d.json", {"image": "x"}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kidney_left", "left kidney"),
        ("rib_right_7", "right rib 7"),
        ("small_bowel", "small bowel"),
        ("Left Kidney", "Left Kidney"),
    ],
)
def test_names_of_data_sets_become_what_people_say(name: str, said: str) -> None:
    assert plain_name(name) == said
