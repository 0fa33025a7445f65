"""A run that begins from a mask in a file: what the policy sees, what is recorded, and where the mask must not go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ibis_agent.cli import commands as cli
from ibis_agent.cli.given_masks import MaskFiles
from ibis_agent.cli.request import Request
from ibis_agent.cli.runner import Runner
from ibis_agent.cli.several import Several
from ibis_agent.errors import InputError
from ibis_agent.mask.files import write_mask
from ibis_agent.record.review_view import view_of
from ibis_agent.scan.load import load_scan
from scripted_cli import (  # noqa: F401
    AFFINE,
    ENDS,
    SHAPE,
    DiscSegmenter,
    a_scan,
    in_use,
    interruptible,
    recorded,
    run,
    says,
)
from scripted_policy import ScriptedPolicy

Use = Callable[..., ScriptedPolicy]


def labels() -> np.ndarray:
    """Two boxes: label 5 on slices 2 to 6, largest on slice 4; label 7 beside it."""
    made = np.zeros(SHAPE, np.uint8)
    made[4:14, 6:20, 2:7] = 5
    made[4:16, 6:22, 4] = 5
    made[20:30, 6:20, 2:7] = 7
    return made


@pytest.fixture(name="map_file")
def a_label_map(tmp_path: Path) -> Path:
    """As TotalSegmentator writes one: the names stand in the header."""
    image = nib.Nifti1Image(labels(), AFFINE)
    names = b'<Label Key="5" Red="1" Alpha="1"><![CDATA[liver]]></Label><Label Key="7"><![CDATA[kidney_left]]></Label>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, names))
    nib.save(image, tmp_path / "total.nii.gz")
    return tmp_path / "total.nii.gz"


def in_file(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj) > 0


def test_a_policy_that_is_content_leaves_the_mask_that_it_was_given(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    policy, out = use([ENDS]), tmp_path / "out"
    assert run(scan, "--start-mask", map_file, "--start-label", "liver", "--out", out) == cli.OK
    (turn,) = policy.turns
    assert turn.has_mask and turn.number == 2
    assert turn.picture.shape[:2] == (SHAPE[1], SHAPE[0]) and (turn.picture.std(axis=2) > 0).any()
    expected = np.zeros(SHAPE, bool)
    expected[..., 4] = labels()[..., 4] == 5  # the slice where it is largest was chosen
    np.testing.assert_array_equal(in_file(out / "mask.nii.gz"), expected)


def test_a_click_goes_on_from_the_given_mask_and_replays(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    use([says(0.25, 0.5), ENDS])
    out = tmp_path / "out"
    assert run(scan, "--start-mask", map_file, "--start-label", "5", "--slice", "3", "--out", out) == cli.OK
    record = recorded(out)
    assert record.given.start_name == "total.nii.gz, 5" and set(record.given.start) == {3}
    # The discs of this segmenter grow with the logits: those of a start are 1, and without one 0.
    alone = DiscSegmenter().predict((30, 40), [record.steps[0].action]).mask  # type: ignore[list-item]
    assert record.steps[0].mask.sum() > alone.sum()
    assert cli.main(["replay", str(out / "trajectory.json"), "--quiet"]) == cli.OK


def test_the_page_shows_the_mask_as_what_was_before_the_first_step(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    use([says(0.25, 0.5), ENDS])
    run(scan, "--start-mask", map_file, "--start-label", "liver", "--out", tmp_path / "out")
    record = recorded(tmp_path / "out")
    view = view_of(record.to_json())
    assert view["slices"][0]["begun_area"] == record.given.start[4].sum() * 4.0
    assert view["slices"][0]["begun"]
    assert ("Started from", "total.nii.gz, liver") in view["facts"]


def test_the_mask_never_enters_what_is_excluded(scan: Path, use: Use, map_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    use([says(0.6, 0.5), says(0.65, 0.5), ENDS])
    assert (
        run(scan, "--slice", "4", "--exclude", map_file, "--exclude-label", "Left kidney", "--out", out)
        == cli.OK
    )
    record, kidney = recorded(out), labels() == 7
    assert record.mask.any() and not (in_file(out / "mask.nii.gz") & kidney).any()
    assert not any((step.mask & record.given.excluded[4]).any() for step in record.steps)
    assert cli.main(["replay", str(out / "trajectory.json"), "--quiet"]) == cli.OK
    use([ENDS])
    assert run(scan, "--slice", "4", "--out", tmp_path / "free") == cli.OK


def test_the_file_of_the_start_excludes_all_its_other_labels(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    use([ENDS])
    out = tmp_path / "out"
    assert (
        run(scan, "--start-mask", map_file, "--start-label", "liver", "--exclude", map_file, "--out", out)
        == cli.OK
    )
    given = recorded(out).given
    assert given.excluded_name == "total.nii.gz, all other labels"
    assert given.start[4].sum() == (labels()[..., 4] == 5).sum()
    assert given.excluded[4].sum() == (labels()[..., 4] == 7).sum()


def test_a_resumed_run_goes_on_from_the_mask_in_its_record(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    use([says(0.25, 0.5)])
    first = tmp_path / "first"
    run(scan, "--start-mask", map_file, "--start-label", "liver", "--max-turns", "1", "--out", first)
    use([ENDS])
    kept = first / "trajectory.json"
    assert (
        cli.main(["run", "--resume", str(kept), "--max-turns", "5", "--out", str(tmp_path / "second")])
        == cli.OK
    )
    again = recorded(tmp_path / "second")
    assert len(again.steps) == 2 and set(again.given.start) == {4}
    assert cli.main(["run", "--resume", str(kept), "--start-mask", str(map_file)]) == cli.BAD_INPUT


def test_a_segment_of_slicer_is_chosen_by_its_name(scan: Path, use: Use, tmp_path: Path) -> None:
    file, mask = tmp_path / "Segmentation.seg.nrrd", labels() == 5
    write_mask(file, mask, load_scan(scan), name="Liver")
    request = Request(
        scan=scan, question="Segment the liver", masks=MaskFiles((("", file),), "liver"), index=3
    )
    use([ENDS])
    runner = Runner(request)
    runner.load()
    assert runner.run.mask().sum() == mask[..., 3].sum()
    runner.discard()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Choose one of: 5 (liver), 7 (kidney_left)"),
        (("--start-label", "spleen"), "It has: liver, kidney_left"),
        (("--start-label", "liver", "--slice", "0"), "It covers slices 2 to 6"),
    ],
)
def test_a_mask_that_cannot_be_begun_from_is_refused_before_anything_is_written(
    scan: Path, use: Use, map_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    use([ENDS])
    out = tmp_path / "out"
    assert run(scan, "--start-mask", map_file, *options, "--out", out) == cli.BAD_INPUT
    assert words in capsys.readouterr().err and not out.exists()


def test_a_mask_of_another_grid_is_refused_with_the_file(
    scan: Path, use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use([ENDS])
    nib.save(nib.Nifti1Image(labels()[:-1], AFFINE), tmp_path / "other.nii.gz")
    assert run(scan, "--start-mask", tmp_path / "other.nii.gz") == cli.BAD_INPUT
    assert "other.nii.gz" in capsys.readouterr().err
    assert run(scan, "--start-label", "liver") == cli.BAD_INPUT
    assert "--start-mask is missing" in capsys.readouterr().err


# ---- several structures -------------------------------------------------------------------------------------


def begun(folder: Path, name: str) -> set[int]:
    return set(recorded(folder / name).given.start)


def test_each_of_several_structures_begins_from_the_label_of_its_name(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    policy = use([ENDS, ENDS])
    second = ("--prompt", "Segment the left kidney")
    assert run(scan, "--start-mask", map_file, "--exclude", map_file, "--out", out, *second) == cli.OK
    assert [turn.has_mask for turn in policy.turns] == [True, True]
    made = np.asarray(nib.load(out / "labels.nii.gz").dataobj)
    held = labels()[..., 4]
    np.testing.assert_array_equal(made[..., 4], np.select([held == 5, held == 7], [1, 2]))
    assert recorded(out / "liver").given.start_name == "total.nii.gz, liver"
    assert recorded(out / "left-kidney").given.excluded[4].sum() == (held == 5).sum()


def test_structures_have_files_of_their_own_and_one_without_begins_from_nothing(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    nib.save(nib.Nifti1Image((labels() == 7).astype(np.uint8), AFFINE), tmp_path / "k.nii.gz")
    out, kidney = tmp_path / "out", f"left kidney={tmp_path / 'k.nii.gz'}"
    policy = use([ENDS, ENDS])
    second = ("--prompt", "Segment the spleen")
    assert (
        run(scan, "--start-mask", kidney, "--out", out, *second, question="Segment the left kidney") == cli.OK
    )
    assert [turn.has_mask for turn in policy.turns] == [True, False]
    assert begun(out, "left-kidney") and not begun(out, "spleen")


def test_several_structures_that_were_stopped_go_on_from_their_masks_without_being_told_again(
    scan: Path, use: Use, map_file: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "out", ["Segment the liver", "Segment the left kidney"]
    use([says(0.25, 0.5), ENDS, ENDS])
    request = Request(scan=scan, masks=MaskFiles((("", map_file),)), out=out)
    several = Several(request, asked)
    several.load()
    for runner in several.runs():
        runner.do(runner.run.step)
        several.give_back()
        break  # killed in the first of two
    map_file.unlink()
    use([ENDS, ENDS])
    assert cli.main(["run", str(scan), "--resume", str(out), "--quiet"]) == cli.OK
    assert begun(out, "liver") == begun(out, "left-kidney") == {4}
    assert len(recorded(out / "liver").steps) == 2
    made = np.asarray(nib.load(out / "labels.nii.gz").dataobj)
    np.testing.assert_array_equal(made[..., 4] == 2, labels()[..., 4] == 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--start-mask", "MAP"), "no label for Spleen"),
        (("--start-mask", "aorta=MAP"), "no structure with this name"),
        (("--start-mask", "liver=MAP", "--start-mask", "liver=MAP"), "two masks are given"),
        (("--start-mask", "MAP", "--start-label", "liver"), "Leave --start-label out"),
    ],
)
def test_what_several_structures_cannot_begin_from_is_refused_before_anything_is_written(
    scan: Path, use: Use, map_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    use([ENDS])
    out = tmp_path / "out"
    said = [each.replace("MAP", str(map_file)) for each in options]
    assert run(scan, "--prompt", "Segment the spleen", *said, "--out", out) == cli.BAD_INPUT
    assert words in capsys.readouterr().err and not out.exists()


def test_a_structure_begins_from_the_label_of_its_own_name_and_of_no_part_of_it(
    scan: Path, tmp_path: Path
) -> None:
    values = np.zeros(SHAPE, np.uint8)
    values[4:8, 4:8], values[10:20, 4:8] = 1, 2
    path, names = tmp_path / "map.nii.gz", tmp_path / "map.json"
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    masks, read = MaskFiles((("liver", path),)), load_scan(scan)
    names.write_text('{"labels": {"background": 0, "liver_vessels": 1, "liver": 2}}')
    np.testing.assert_array_equal(masks.read(read, ["Liver"]).starts[0], values == 2)
    names.write_text('{"labels": {"background": 0, "liver_vessels": 1, "liver_segment_1": 2}}')
    with pytest.raises(InputError, match="several labels"):
        masks.read(read, ["Liver"])


@pytest.mark.parametrize("prompts", [(), ("--prompt", "Segment the spleen")])
def test_a_given_mask_is_never_overwritten(
    scan: Path, use: Use, map_file: Path, tmp_path: Path, prompts: tuple[str, ...]
) -> None:
    policy, before = use(), map_file.read_bytes()
    for option in ("--start-mask", "--exclude"):
        arguments = [*prompts, option, map_file, "--mask", map_file, "--out", tmp_path / "out"]
        assert run(scan, *arguments) == cli.BAD_INPUT
    assert map_file.read_bytes() == before and not policy.turns
