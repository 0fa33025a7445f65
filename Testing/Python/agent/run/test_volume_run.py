"""Volume runs: what is done in which order, stopping, going back, records. Quality is not tested here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.mask.masks import area
from ibis_agent.policy.contract import Turn
from ibis_agent.scan.scan import Scan
from scripted_policy import ScriptedPolicy

torch = pytest.importorskip("torch")

import ibis_agent.segmenter as segmenters
from ibis_agent.record.review import review_page
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Watch
from ibis_agent.run.key_slice import Search
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.slices import Stack, stack_of
from ibis_agent.segmenter.contract import Segmenter
from ibis_agent.segmenter.embeddings import KeptEmbeddings

SEEN = range(4, 8)
HERE = Click(0.45, 0.41)
CLICK = format_reply(Reply("I see it.", HERE))
END = format_reply(Reply("It fits.", Terminate("There it is.")))
NOWHERE = format_reply(Reply("Nothing here.", Terminate("It is not there.")))
FEW = Settings(looks=1, patience_mm=15.0, search=Search(fewest=3, most=3, rounds=1), follow="memory")


class Eyes(ScriptedPolicy):
    """Clicks the middle of pictures that it was told show the object, and ends once there is a mask."""

    def __init__(self, stack: Stack, seen: Any = SEEN) -> None:
        super().__init__([])
        self._shown = [stack.picture(n).rgb for n in seen if stack.first <= n <= stack.last]

    def reply(self, turn: Turn, on_text: Any = None, cancelled: Any = None) -> str:
        self.turns.append(turn)
        if turn.has_mask:
            return END
        return CLICK if any(np.array_equal(turn.picture, each) for each in self._shown) else NOWHERE


@pytest.fixture(scope="module")
def loaded(parity: Path) -> Any:
    return segmenters.open(parity / "segmenter.pt", device="cpu")


@pytest.fixture
def segmenter(loaded: Any) -> Any:
    """It has not seen any picture yet."""
    loaded.kept = KeptEmbeddings()
    return loaded


@pytest.fixture(scope="module")
def scan(data: Path) -> Scan:
    """12 slices of a real CT at half its resolution; a click at `HERE` leaves a mask in all that are looked at."""
    voxels = np.load(data / "lesion_000009.npz")["imgs"][:12, ::2, ::2].transpose()
    affine = np.diag([-1.5, -1.6, 5.0, 1.0])
    return Scan(voxels, affine, "volume", Path("lesion.nii.gz"), "lesion", "CT")


@pytest.fixture
def stack(scan: Scan) -> Stack:
    return stack_of(scan, window=(0, 255))


@pytest.fixture
def done(stack: Stack, segmenter: Segmenter) -> Run:
    run = Run(stack, "Segment the lesion", Eyes(stack), segmenter, FEW)
    run.run()
    return run


def masks(run: Run) -> np.ndarray:
    return run.volume()


def test_the_run_looks_works_grows_and_says_so(done: Run) -> None:
    kinds = [action.kind for action in done.actions]
    assert kinds[:3] == ["look"] * 3 and "click" in kinds and kinds.index("grow") > kinds.index("click")
    assert done.key in SEEN and done.answer == "There it is." and done.status == "ended"
    assert "seen, " in next(a.words for a in done.actions if a.index == done.key)
    assert done.segmenter.kept.made == len(
        {*done.found, *(a.index for a in done.actions if a.words.startswith("seen"))}
    )
    assert done.volume_ml == pytest.approx(masks(done).sum() * 1.5 * 1.6 * 5.0 / 1000)


def test_what_is_nowhere_is_answered_so(stack: Stack, segmenter: Segmenter) -> None:
    run = Run(stack, "Segment the spleen", Eyes(stack, ()), segmenter, FEW)
    assert run.run() == "ended" and run.answer == "It is not there."
    assert run.key is None and not masks(run).any() and "did not see it in any of the slices" in run.reason
    assert run.segmenter.kept.made == 0


def test_a_range_and_a_region_are_kept(scan: Scan, segmenter: Segmenter) -> None:
    stack = stack_of(scan, window=(0, 255), slices=(3, 8), roi=(112, 120, 0, 255, 4, 11))
    assert (stack.first, stack.last) == (4, 8)
    run = Run(stack, "Segment the lesion", Eyes(stack), segmenter, FEW)
    run.run()
    i, _, k = np.nonzero(masks(run))
    assert len(i) and i.min() >= 112 and i.max() <= 120 and k.min() >= 4 and k.max() <= 8


def test_a_stack_of_one_slice_is_a_run_too(scan: Scan, segmenter: Segmenter) -> None:
    stack = stack_of(scan, window=(0, 255), slices=(5, 5))
    run = Run(stack, "Segment the lesion", Eyes(stack), segmenter, FEW)
    assert run.run() == "ended" and set(run.found) == {5} and masks(run).any()


def test_undo_and_redo_go_over_corrections(done: Run) -> None:
    before, actions = masks(done), len(done.actions)
    done.click(9, Click(0.5, 0.5))
    assert done.actions[-1].by == "person" and 9 in done.memory.anchors
    clicked = masks(done)
    done.spread(9)
    redone = masks(done)
    done.undo()
    assert np.array_equal(masks(done), clicked)
    done.undo()
    assert np.array_equal(masks(done), before) and len(done.actions) == actions
    done.redo()
    done.redo()
    assert np.array_equal(masks(done), redone)
    with pytest.raises(InputError, match="nothing to redo"):
        done.redo()


def test_going_back_is_undone_whole(done: Run) -> None:
    actions, whole = done.actions, masks(done)
    done.back(len(actions) - 3)
    fewer = masks(done)
    done.undo()
    assert done.actions == actions and np.array_equal(masks(done), whole)
    done.redo()
    assert done.actions == actions[:-3] and np.array_equal(masks(done), fewer)


def test_going_back_that_fails_leaves_the_run_where_it_was(
    done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions, whole = done.actions, masks(done)
    worked = [action.kind for action in actions].index("done") + 1
    with monkeypatch.context() as broken:
        broken.setattr(done, "repeat", _runs_out_of_memory)
        with pytest.raises(MemoryError):
            done.back(worked)
    assert done.actions == actions and np.array_equal(masks(done), whole)
    done.back(worked)
    assert done.actions == actions[:worked] and not np.array_equal(masks(done), whole)


def _runs_out_of_memory(*_: object) -> None:
    raise MemoryError


def test_a_click_that_is_moved_is_as_if_it_had_been_made_there(done: Run) -> None:
    done.click(9, Click(0.5, 0.5))
    straight = done.mask(9)
    done.undo()
    done.click(9, Click(0.2, 0.2))
    done.click(9, Click(0.5, 0.5), replace=1)
    assert np.array_equal(done.mask(9), straight)
    with pytest.raises(InputError, match="no such click"):
        done.click(9, Click(0.5, 0.5), replace=3)
    with pytest.raises(InputError, match="not in the range"):
        done.click(12, Click(0.5, 0.5))


def test_a_click_that_is_moved_on_a_slice_that_nothing_has_reached_is_as_if_made_there(
    stack: Stack, segmenter: Segmenter
) -> None:
    run = Run(stack, "Segment the lesion", None, segmenter, FEW)
    run.click(3, HERE)
    run.click(9, Click(0.5, 0.5))
    straight = run.mask(9)
    run.undo()
    run.click(9, Click(0.2, 0.2))
    run.click(9, Click(0.5, 0.5), replace=1)
    assert straight.any() and np.array_equal(run.mask(9), straight)


def test_a_correction_encodes_nothing_again(done: Run) -> None:
    encoded, known = done.segmenter.kept.made, len(done.found)
    done.click(done.key + 1, Click(0.45, 0.5))  # type: ignore[operator]
    done.spread(done.key + 1)  # type: ignore[operator]
    assert done.segmenter.kept.made - encoded == len(done.found) - known


def test_a_second_run_over_the_same_pictures_encodes_nothing(
    scan: Scan, stack: Stack, segmenter: Segmenter
) -> None:
    def encoded_by_a_click(stack: Stack) -> int:
        before = segmenter.kept.made  # type: ignore[attr-defined]
        Run(stack, "Segment the lesion", None, segmenter, FEW).click(5, HERE)
        return int(segmenter.kept.made - before)  # type: ignore[attr-defined]

    assert encoded_by_a_click(stack) == 1
    assert encoded_by_a_click(stack_of(scan, window=(0, 255), slices=(3, 8))) == 0
    affine = (
        np.diag([-1.0, 1.0, 1.0, 1.0]) @ scan.affine
    )  # as a transform does: the same voxels, seen mirrored
    assert encoded_by_a_click(stack_of(dataclasses.replace(scan, affine=affine), window=(0, 255))) == 1
    assert encoded_by_a_click(stack_of(scan, window=(0, 100))) == 1


def test_stopping_keeps_the_slices_that_are_done(stack: Stack, segmenter: Segmenter) -> None:
    run = Run(stack, "Segment the lesion", Eyes(stack), segmenter, FEW)
    grown: list[int] = []
    with pytest.raises(Cancelled):
        run.run(
            Watch(
                progress=lambda progress, found: grown.append(found.index), cancelled=lambda: len(grown) > 1
            )
        )
    assert len(grown) == 2 and set(run.found) == {run.key, *grown}
    assert "stopped" in run.actions[-1].words
    record = json.loads(json.dumps(Trajectory.of(run, "lesion.nii.gz").to_json()))
    assert Trajectory.from_json(record).replay(segmenter).differences == ()


def test_the_record_is_replayed_to_the_same_masks(done: Run, segmenter: Segmenter, tmp_path: Path) -> None:
    done.click(8, Click(0.5, 0.45))
    done.spread(8)
    done.click(8, Click(0.3, 0.45, positive=False))
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(Trajectory.of(done, "folder/lesion.nii.gz").to_json()))
    recorded = Trajectory.load(path)
    assert np.array_equal(recorded.volume(), masks(done))
    replay = recorded.replay(segmenter)
    assert replay.differences == () and replay.warnings == ()
    assert np.array_equal(replay.volume, masks(done))
    assert "folder" not in path.read_text()


def test_a_record_holds_slices_that_were_gone_through_and_are_unknown_again(
    stack: Stack, segmenter: Segmenter
) -> None:
    limits = dataclasses.replace(FEW, follow="carry", patience_mm=5.0)
    run = Run(stack, "Segment the lesion", None, segmenter, limits)
    run.click(3, HERE)
    run.grow()
    far = run.actions[-1].ways[0].last
    run.click(4, dataclasses.replace(HERE, positive=False))
    run.spread(4)
    assert far not in run.found, "the correction was to end the object before it"
    recorded = Trajectory.from_json(json.loads(json.dumps(Trajectory.of(run, "lesion.nii.gz").to_json())))
    assert recorded.replay(segmenter).differences == () and not recorded.mask_of(far).any()


def test_weights_without_a_trained_memory_are_carried_from_slice_to_slice(
    stack: Stack, segmenter: Segmenter
) -> None:
    limits = dataclasses.replace(FEW, follow="auto", looks=0)
    run = Run(stack, "Segment the lesion", Eyes(stack), segmenter, limits)
    run.run()
    assert run.memory.way == "linked", "the recorded weights' memory is not trained"
    areas = run.areas_mm2()
    assert sum(1 for each in areas.values() if each) > 1
    record = json.loads(json.dumps(Trajectory.of(run, "lesion.nii.gz").to_json()))
    assert Trajectory.from_json(record).replay(segmenter).differences == ()


@pytest.mark.parametrize("way", ["carry", "linked"])
def test_a_record_is_replayed_the_way_that_it_names(stack: Stack, segmenter: Segmenter, way: Any) -> None:
    run = Run(stack, "Segment the lesion", Eyes(stack), segmenter, dataclasses.replace(FEW, follow=way))
    run.run()
    record = json.loads(json.dumps(Trajectory.of(run, "lesion.nii.gz").to_json()))
    recorded = Trajectory.from_json(record)
    assert recorded.settings.follow == way
    assert recorded.replay(segmenter).differences == ()


def test_a_record_that_was_changed_is_refused_by_field(done: Run) -> None:
    text = json.dumps(Trajectory.of(done, "lesion.nii.gz").to_json())

    def refused(words: str, change: Any) -> None:
        record = json.loads(text)
        change(record)
        with pytest.raises(InputError, match=words):
            Trajectory.from_json(record, "t.json")

    refused("schema", lambda r: r.update(schema="ibis-volume/9"))
    refused("slice", lambda r: r["actions"][0].update(slice=11_000))
    refused("kind", lambda r: r["actions"][0].update(kind="dance"))
    refused("mask_rle", lambda r: r["slices"][0].update(mask_rle="9 9 9"))
    refused("last", lambda r: r["volume"].update(last=99))
    refused("slices", lambda r: r.update(slices=[]))


def test_the_person_may_work_alone(stack: Stack, segmenter: Segmenter) -> None:
    run = Run(stack, "Segment the lesion", None, segmenter, FEW)
    with pytest.raises(InputError, match="no policy"):
        run.step()
    run.click(5, HERE)
    run.grow()
    assert run.key == 5 and len(run.found) > 1 and area(run.mask(5))


def test_a_thousand_slices_cost_only_those_that_are_visited(scan: Scan, segmenter: Segmenter) -> None:
    long = dataclasses.replace(scan, voxels=np.tile(scan.voxels[64:192, 64:192], (1, 1, 84))[:, :, :1000])
    stack = stack_of(long, window=(0, 255), slices=(100, 900))
    run = Run(stack, "Segment the lesion", None, segmenter, FEW)
    run.click(500, Click(0.4, 0.32))
    seen: list[int] = []
    with pytest.raises(Cancelled):
        run.grow(Watch(progress=lambda p, found: seen.append(p.total), cancelled=lambda: len(seen) >= 3))
    assert run.segmenter.kept.made == len(run.found) == 4 and seen[0] == 800
    assert run.volume().shape == (128, 128, 1000)


def test_the_review_page_shows_every_slice_and_lets_nothing_act(done: Run) -> None:
    record = json.loads(json.dumps(Trajectory.of(done, "lesion.nii.gz").to_json()))
    record["question"] = "</script><script>alert(1)</script>"
    page = review_page(record)
    assert page.count("<script") == 2 and "alert(1)</script>" not in page
    assert all(f'"index":{row["slice"]},' in page for row in record["slices"])
    with pytest.raises(InputError, match="not a trajectory"):
        review_page({"schema": "ibis-trajectory/1"})


def test_what_cannot_be_a_stack_is_refused(scan: Scan) -> None:
    with pytest.raises(InputError, match="range of slices"):
        stack_of(scan, slices=(4, 12))
    with pytest.raises(InputError, match="not inside the scan"):
        stack_of(scan, roi=(0, 256, 0, 255, 0, 11))
    with pytest.raises(InputError, match="none of the slices"):
        stack_of(scan, slices=(0, 2), roi=(0, 255, 0, 255, 5, 11))
