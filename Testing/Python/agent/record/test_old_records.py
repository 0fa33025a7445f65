"""Records as the project wrote them before slices and volumes had one run: they open, replay and are gone on with.

Testing/Python/data/records: a run of the terminal on a slice with corrections (slice), one over a volume (volume), and
what Slicer saved of two such runs (saved_…). All were made with the recorded segmenter of the shared data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.mask.masks import decode_rle
from ibis_agent.record.review_view import view_of
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.trajectory import Trajectory
from scripted_policy import ScriptedPolicy

pytest.importorskip("torch")

import ibis_agent.segmenter as segmenters

RECORDS = Path(__file__).resolve().parents[2] / "data" / "records"
CLICK = format_reply(Reply("More.", Click(0.3, 0.4)))
END = format_reply(Reply("It fits.", Terminate("There it is.")))


def text_of(name: str) -> dict[str, Any]:
    return dict(json.loads((RECORDS / f"{name}.json").read_text("utf-8")))


def like(recorded: Trajectory, *replies: str) -> ScriptedPolicy:
    """A script under the name of the recorded policy."""
    policy = ScriptedPolicy(replies)
    policy.identity = dict(recorded.policy or {})
    return policy


@pytest.fixture(scope="module")
def segmenter(parity: Path) -> Any:
    return segmenters.open(parity / "segmenter.pt", device="cpu")


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_old_slice_opens_replays_and_is_gone_on_with(segmenter: Any) -> None:
    old, read = text_of("slice"), Trajectory.load(RECORDS / "slice.json")
    assert read.alone and read.question == old["question"] and read.limits.max_turns == 5
    assert [step.by for step in read.steps] == ["policy", "person", "person", "person", "person"]
    assert read.replay(segmenter).differences == ()
    run = read.to_run(like(read, CLICK, END), segmenter)
    assert run.status == "ended" and np.array_equal(run.mask(), read.mask)
    run.back(4)
    run.run()
    assert run.answer == "There it is." and len(run.steps) == 6
    again = Trajectory.of(run, "scan.nii.gz")
    assert Trajectory.from_json(json.loads(json.dumps(again.to_json()))).replay(segmenter).differences == ()


def pictures_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [each["picture"] for each in record.get("slices", [record])]


def test_what_is_read_is_written_as_it_was() -> None:
    for name in ("slice", "volume"):
        old, new = text_of(name), json.loads(json.dumps(Trajectory.load(RECORDS / f"{name}.json").to_json()))
        for part in ("doubt", "following"):  # settings that old records do not hold
            assert new["limits"].pop(part, None) or name == "slice"
        for framed in (new.get("volume"), *pictures_of(new)):
            assert framed is None or framed.pop("frame") is None
        for one, other in zip(pictures_of(new), pictures_of(old), strict=True):
            assert len(one.pop("png")) <= len(other.pop("png")), (
                "of one channel; their pixels have the same SHA-256"
            )
        assert new == old


@pytest.mark.parametrize("name", ["slice", "volume"])
def test_the_page_is_the_same_of_pictures_that_were_never_packed(name: str) -> None:
    read = Trajectory.load(RECORDS / f"{name}.json")
    light = read.to_json(png=False)
    assert not any("png" in each for each in pictures_of(light))
    assert view_of(light, read.slices.picture) == view_of(read.to_json())


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_old_volume_opens_replays_and_is_gone_on_with(segmenter: Any) -> None:
    old, read = text_of("volume"), Trajectory.load(RECORDS / "volume.json")
    assert not read.alone and read.settings.follow == "memory" and read.settings.looks == 1
    assert [each.kind for each in read.actions] == [each["kind"] for each in old["actions"]]
    assert read.replay(segmenter).differences == ()
    run = read.to_run(like(read, END), segmenter)
    assert run.status == "ended" and np.array_equal(run.volume(), read.volume()) and run.volume().any()
    run.back(len(run.actions) - 1)
    run.click(19, Click(0.3, 0.4))
    run.run()
    again = Trajectory.from_json(json.loads(json.dumps(Trajectory.of(run, "scan.nii.gz").to_json())))
    assert run.status == "ended" and again.replay(segmenter).differences == ()


@pytest.mark.parametrize("name", ["saved_slice", "saved_volume"])
def test_what_slicer_saved_opens_with_its_way_back_and_is_saved_as_it_was(name: str) -> None:
    old = text_of(name)
    record = RunRecord.from_json(old)
    assert record.scope == name.split("_")[1]
    assert json.loads(json.dumps(record.to_json())) == old
    steps = len(record.after)
    record.undo()
    assert len(record.after) != steps and record.can_redo()
    record.redo()
    assert record.after == old["state"]["steps"]


def test_a_slice_that_slicer_saved_is_gone_on_with_in_a_fresh_worker(segmenter: Any) -> None:
    from ibis_agent.engine.question import Question
    from ibis_agent.policy.card import ModelCard
    from ibis_agent.scan.geometry import Orientation

    record = RunRecord.from_json(text_of("saved_slice"))
    card = ModelCard(name="scripted", orientation=Orientation.RADIOLOGICAL)
    policy = ScriptedPolicy([END], card)
    asked = {"question": record.question, "scope": record.scope, "head": record.head, "known": record.known()}
    question = Question(asked, policy, segmenter)
    told: list[dict[str, Any]] = []
    end = question.step(
        {"after": record.after}, lambda event, **parts: told.append({"event": event, **parts}), lambda: False
    )
    assert end["status"] == "ended" and end["answer"] == "There it is."
    (step,) = [each["step"] for each in told if each["event"] == "step"]
    shape = record.geometry.height, record.geometry.width
    assert np.array_equal(decode_rle(step["mask_rle"], shape), record.mask())
