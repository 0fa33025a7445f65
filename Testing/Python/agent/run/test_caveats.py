"""What is told beside an answer: another structure than asked for, doubtful slices, a mask that reaches the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bright_volumes import MIDDLE, NOTHING, SEGMENTER, Bright, disc, grown, run_over
from chained_segmenter import ChainedSegmenter, clicking, picture
from ibis_agent.actions import Reply, Terminate, format_reply
from ibis_agent.cli.request import Request, check
from ibis_agent.policy.card import ModelCard
from ibis_agent.record.recorded_run import run_record_of
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.caveats import _in_ranges, caveats
from ibis_agent.run.measured import answer, measured
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.picture import cut
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import stack_of
from scripted_cli import DiscSegmenter
from scripted_policy import ScriptedPolicy


def run_of(question: str, *replies: str) -> Run:
    run = Run.on_picture(picture(), question, ScriptedPolicy(replies), ChainedSegmenter())
    run.run()
    return run


def ending(answered: str, thought: str = "It fits.") -> str:
    return format_reply(Reply(thought, Terminate(answered)))


def test_an_answer_about_another_structure_is_told_once() -> None:
    run = run_of(
        "Segment the liver", clicking(0.5, thought="The spleen is here."), ending("The spleen is segmented.")
    )
    assert caveats(run) == ("The reply is about the spleen, but the question asks for the liver.",)


def test_an_answer_about_what_was_asked_for_has_no_caveat() -> None:
    assert caveats(run_of("Segment the liver", clicking(0.5), ending("The liver is segmented."))) == ()


def test_a_caveat_is_kept_in_the_record(tmp_path: Path) -> None:
    run = run_of("Segment the left kidney", ending("There is no right kidney in this picture."))
    Trajectory.of(run).save(tmp_path / "trajectory.json")
    assert json.loads((tmp_path / "trajectory.json").read_text())["caveats"] == list(caveats(run)) != []
    assert Trajectory.load(tmp_path / "trajectory.json").caveats == caveats(run)


def a_scan(modality: str, hu: bool) -> Scan:
    """12 × 14 × 16 voxels of 3 mm."""
    voxels = np.full((12, 14, 16), 40, np.float32)
    voxels[:, :3] = -1000 if hu else 0
    return Scan(voxels, np.diag([3.0, 3.0, 3.0, 1.0]), "volume", Path("ct.nii.gz"), modality=modality)


def unfamiliar_run(plane: str = "axial", modality: str = "", hu: bool = True) -> Run:
    """A run of the demo's kind (CT, axial, trunk) over one slice."""
    policy = ScriptedPolicy([ending("The liver is segmented.")])
    policy.card = ModelCard(name="Demo", modalities=("CT",), planes=("axial",), regions=("trunk",))
    shown = cut(a_scan(modality, hu), plane, 6, (-160, 240) if hu else (0, 50))
    return Run.on_picture(shown, "Segment the liver", policy, ChainedSegmenter())


def test_a_scan_unlike_those_of_the_training_is_warned_of_from_the_first_action_on() -> None:
    assert caveats(unfamiliar_run()) == ()
    run = unfamiliar_run("coronal")
    warned = ("Demo was not trained on coronal slices (trained on axial slices): expect wrong answers.",)
    assert caveats(run) == warned
    run.run()
    assert caveats(run) == warned
    assert "MR (trained on CT)" in caveats(unfamiliar_run(modality="MR"))[0]
    assert "does not look like CT" in caveats(unfamiliar_run(hu=False))[0]


def test_a_region_that_the_policy_does_not_know_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibis_agent.scan.body_region.region_of", lambda hu, spacing: "head")
    assert "the head (trained on the trunk)" in caveats(unfamiliar_run())[0]


def test_a_mask_that_reaches_the_end_of_the_scan_is_told() -> None:
    run = grown([disc()] * 6, key=3)
    run.policy = None
    run.step()  # the end
    told = " ".join(caveats(run))
    assert "first slice of the scan (0)" in told and "last slice of the scan (5)" in told


def test_a_mask_that_reaches_the_end_of_a_range_is_told_as_such() -> None:
    whole = run_over([disc()] * 9).slices.scan
    stack = stack_of(whole, window=(0, 255), slices=(2, 6))
    run = Run(stack, "Segment it", None, SEGMENTER, Settings(follow="memory", patience_mm=12.0))
    run.click(4, MIDDLE)
    run.grow()
    run.step()
    told = " ".join(caveats(run))
    assert "first slice of the range (2)" in told and "last slice of the range (6)" in told


def test_slices_that_nobody_looked_at_again_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bright, "blind", frozenset({4, 5, 6}))
    run = grown([disc() if 0 < n < 11 else NOTHING for n in range(12)], key=3)
    run.policy = None
    run.step()
    assert caveats(run) == ("Doubtful: slices 4 to 6.",)


def test_slices_are_told_in_ranges() -> None:
    assert _in_ranges([4]) == "slice 4"
    assert _in_ranges([3, 4, 5, 7]) == "slices 3 to 5 and 7"
    assert _in_ranges([1, 2, 4, 6, 7]) == "slices 1 to 2, 4 and 6 to 7"


def test_a_question_about_size_is_answered_with_the_measures() -> None:
    run = run_of("How large is the liver?", clicking(0.5), ending("The liver is segmented."))
    assert measured(run).voxels == int(np.count_nonzero(run.mask()))
    assert str(answer(run)).startswith("The liver is segmented. It measures ")
    assert answer(run_of("Segment the liver", clicking(0.5), ending("Done."))) == "Done."


@pytest.mark.parametrize(("given", "said"), [("MR", "MR"), ("", "does not look like CT"), ("CT", "the head")])
@pytest.mark.parametrize("volume", [False, True])
def test_a_run_that_is_resumed_from_its_record_still_says_that_its_scan_is_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str, volume: bool
) -> None:
    file = tmp_path / "trajectory.json"
    with monkeypatch.context() as patched:
        patched.setattr("ibis_agent.scan.body_region.region_of", lambda hu, spacing: "head")
        run = unfamiliar_run(modality=given, hu=given == "CT")
        if volume:
            window = (-160, 240) if given == "CT" else (0, 50)
            stack = stack_of(a_scan(given, given == "CT"), "axial", window, slices=(5, 7))
            run = Run(stack, run.question, run.policy, SEGMENTER)
        Trajectory.of(run).save(file)
    assert said in caveats(run)[0]
    again = Trajectory.load(file).to_run(run.policy, run.segmenter)
    assert caveats(again) == caveats(run)
    if not volume:  # the command needs the scan for a volume
        assert said in check(Request(resume=file)).caution


def test_a_warning_of_an_unfamiliar_scan_stays_when_the_person_goes_back_or_accepts() -> None:
    asked = unfamiliar_run(modality="MR")
    assert asked.policy is not None
    policy = ScriptedPolicy([clicking(0.5), ending("Done.")], asked.policy.card)
    run = Run(asked.slices, asked.question, policy, DiscSegmenter())
    run.run()
    record = run_record_of(Trajectory.of(run), whole_scan=True)
    assert len(record.steps) == 2 and record.caveats == caveats(run) != ()
    record.back(1)
    assert record.caveats == caveats(run)
    record.finish()
    assert record.status == "ended" and record.trajectory()["caveats"] == list(caveats(run))
