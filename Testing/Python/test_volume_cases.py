"""Volume runs over objects of every shape: anisotropic, split, gone and back, long; what they cost, and the way back.

The network is replaced by an exact one that finds bright things that touch, so that what is tested is the run.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.found import Found
from ibis_agent.geometry import Orientation
from ibis_agent.key_slice import Search
from ibis_agent.model_card import ModelCard
from ibis_agent.policy import ScriptedPolicy, Turn
from ibis_agent.scan import Scan
from ibis_agent.stack import stack_of
from ibis_agent.terminal import Screen
from scipy import ndimage

torch = pytest.importorskip("torch")

from ibis_agent import cli, volume_job, volume_run  # noqa: E402
from ibis_agent.inspection import inspect  # noqa: E402
from ibis_agent.propagation import Propagation  # noqa: E402
from ibis_agent.session import Stopped  # noqa: E402
from ibis_agent.volume_actions import VolumeLimits, Watch  # noqa: E402
from ibis_agent.volume_record import VolumeTrajectory, volume_to_json  # noqa: E402
from ibis_agent.volume_run import VolumeRun  # noqa: E402
from ibis_agent.volume_session import VolumeSession  # noqa: E402
from ibis_agent.workbench_volume import KeptFeatures  # noqa: E402

SIDE = 32
MIDDLE = Click(0.5, 0.5)
END = format_reply(Reply("It fits.", Terminate("There it is.")))
NOWHERE = format_reply(Reply("Nothing.", Terminate("It is not there.")))


SEGMENTER: Any = SimpleNamespace(identity={"name": "bright", "sha256": "b"}, model=None, device="cpu")


class Bright(Propagation):
    """Finds the bright things that touch what was found in the slice before."""

    visits: list[int]

    def _clicked(self, index: int, clicks: Sequence[Click], previous_logits: Any) -> dict[str, Any]:
        parts, mask = self._parts(index), np.zeros(self.size, bool)
        for click in clicks:
            column, row = (int(n) for n in self.place(click))
            one = parts == parts[row, column] if parts[row, column] else np.zeros(self.size, bool)
            mask = mask | one if click.positive else mask & ~one
        return self._out(mask)

    def _settle(self, index: int, out: dict[str, Any], mask: np.ndarray | None = None) -> Found:
        self._anchors[index] = out
        self._tracked.pop(index, None)
        return self._keep(index, out, anchor=True)

    def _track(self, index: int, reverse: bool) -> Found:
        self.__dict__.setdefault("visits", []).append(index)
        step = 1 if reverse else -1
        beside = index + step
        while not self.found[beside].mask.any() and beside + step in self.found:
            beside += step
        parts = self._parts(index)
        touched = np.unique(parts[ndimage.binary_dilation(self.found[beside].mask, iterations=2)])
        self._tracked[index] = out = self._out(np.isin(parts, touched[touched > 0]))
        return self._keep(index, out, anchor=False)

    def _parts(self, index: int) -> np.ndarray:
        return ndimage.label(self.features.get(index))[0]

    def _out(self, mask: np.ndarray) -> dict[str, Any]:
        logits = torch.from_numpy(np.where(mask, 8.0, -8.0).astype(np.float32))[None, None]
        presence = torch.full((1, 1), 6.0 if mask.any() else -6.0)
        scores = np.array([0.9 if mask.any() else 0.0])
        return {"pred_masks": logits, "object_score_logits": presence, "scores": scores}


class Pictures:
    """Stands where a FeatureCache would: (H, W) bool of what is bright."""

    def __init__(self, rgb_of: Callable[[int], np.ndarray]) -> None:
        self.segmenter, self._rgb_of = SEGMENTER, rgb_of

    def get(self, index: int) -> np.ndarray:
        return np.asarray(self._rgb_of(index)[..., 0] > 128)


class Clicker(ScriptedPolicy):
    """Clicks the middle of whatever is bright and not yet marked in a picture."""

    def __init__(self) -> None:
        card = ModelCard(name="clicker", orientation=Orientation.RADIOLOGICAL, overlay_alpha=0.9)
        super().__init__([], card)

    def reply(self, turn: Turn, on_text: Any = None, cancelled: Any = None) -> str:
        self.turns.append(turn)
        if on_text is not None:
            on_text("<think>Let me see")
        bright = (turn.picture > 128).all(axis=2)
        if not bright.any():
            return END if turn.has_mask else NOWHERE
        depth = ndimage.distance_transform_edt(bright)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        click = Click((column + 0.5) / SIDE, (row + 0.5) / SIDE)
        return format_reply(Reply(f"Something bright at {row}.", click))


@pytest.fixture(autouse=True)
def bright_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_run, "Propagation", Bright)
    monkeypatch.setattr(volume_run, "FeatureCache", lambda segmenter, rgb_of, limit: Pictures(rgb_of))


def run_over(
    slices: Sequence[np.ndarray],
    gap_mm: float = 3.0,
    *,
    policy: Any = None,
    limits: Any = None,
    **options: Any,
) -> VolumeRun:
    """A run over (SIDE, SIDE) bool slices, as bright as their True is."""
    voxels = np.stack([np.where(each, 200, 10) for each in slices]).astype(np.int16).transpose()
    affine = np.diag([-1.0, -1.0, gap_mm, 1.0])
    scan = Scan(voxels, affine, "volume", Path("made.nii.gz"), "made", "CT")
    stack = stack_of(scan, window=(0, 255))
    limits = limits or VolumeLimits(follow="memory", patience_mm=12.0)
    return VolumeRun(stack, "Segment it", policy, SEGMENTER, limits, **options)


def disc(radius: float = 6, row: float = 16, column: float = 16) -> np.ndarray:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2)


NOTHING = np.zeros((SIDE, SIDE), bool)


def grown(slices: Sequence[np.ndarray], key: int, gap_mm: float = 3.0) -> VolumeRun:
    run = run_over(slices, gap_mm)
    rows, columns = np.nonzero(slices[key])
    run.click(key, Click((columns[0] + 0.5) / SIDE, (rows[0] + 0.5) / SIDE))
    run.grow()
    return run


def shown(run: VolumeRun) -> list[int]:
    return [index for index, area in run.areas_mm2().items() if area]


@pytest.mark.parametrize("gap_mm, beyond", [(1.0, 12), (3.0, 4), (6.0, 2), (20.0, 1)])
def test_an_object_is_followed_both_ways_and_left_alone_so_many_millimetres_beyond_its_ends(
    gap_mm: float, beyond: int
) -> None:
    slices = [disc() if 20 <= n <= 29 else NOTHING for n in range(60)]
    run = grown(slices, 24, gap_mm)
    assert shown(run) == list(range(20, 30))
    assert sorted(run.found) == list(range(20 - beyond, 30 + beyond))
    assert [way.ended for way in run.actions[-1].ways] == [True, True]
    assert run.volume_ml == pytest.approx(10 * disc().sum() * gap_mm / 1000)


def test_an_object_that_splits_is_followed_into_both_parts() -> None:
    slices = [disc(9) for _ in range(4)]
    slices += [disc(4, column=16 - 2 * n) | disc(4, column=16 + 2 * n) for n in (2, 3, 4, 5)]
    run = grown(slices, 1)
    assert shown(run) == list(range(8)) and all(np.array_equal(run.mask(n), slices[n]) for n in range(8))
    assert any("2 parts" in each.reason for each in run.doubts())


def test_an_object_that_vanishes_and_comes_back_is_found_again_within_the_patience() -> None:
    slices = [disc() if n not in (6, 7) else NOTHING for n in range(14)]
    run = grown(slices, 3)
    assert shown(run) == [n for n in range(14) if n not in (6, 7)]
    assert {each.index for each in run.doubts() if "gap" in each.reason} == {6, 7}
    far = grown([disc() if not 6 <= n <= 11 else NOTHING for n in range(20)], 3)
    assert shown(far) == list(range(6)), "six slices of 3 mm are more than 12 mm"


def test_a_volume_of_one_slice_has_no_ways() -> None:
    run = grown([disc()], 0)
    assert shown(run) == [0] and run.actions[-1].ways == () and run.stage == "finish"


def test_a_thousand_slices_are_visited_once_each() -> None:
    run = run_over([disc()] * 1000, 1.0)
    run.click(400, MIDDLE)
    told: list[tuple[int, int, float]] = []
    run.grow(Watch(progress=lambda p, found: told.append((p.done, p.total, p.seconds_left))))
    assert sorted(run.memory.visits) == [n for n in range(1000) if n != 400]  # type: ignore[attr-defined]
    assert [done for done, _, _ in told] == list(range(1, 1000)) and {total for _, total, _ in told} == {999}
    assert told[-1][2] == 0.0 and run.volume().sum() == 1000 * disc().sum()


def test_memory_does_not_grow_with_clicks_and_every_one_can_be_taken_back() -> None:
    limit = 12 * (SIDE * SIDE * 5)  # the logits and masks of twelve slices
    run = run_over([disc(5) | disc(3, 26, 26)] * 30, history_limit=limit)
    run.click(15, MIDDLE)
    run.grow()
    volumes, corner = [run.volume()], Click(26.5 / SIDE, 26.5 / SIDE)
    for n in range(12):
        run.click(2 * n + 2, corner if n % 2 else Click(corner.x, corner.y, False))
        run.spread(2 * n + 2)
        volumes.append(run.volume())
        assert run._history.held <= limit
    assert len(run._history) < len(run.actions) / 2
    for before in reversed(volumes[:-1]):
        run.undo()
        run.undo()
        assert np.array_equal(run.volume(), before)
    for _ in range(24):
        run.redo()
    assert np.array_equal(run.volume(), volumes[-1])


def two_things() -> list[np.ndarray]:
    return [disc(5) | disc(3, 5, 5) if 4 <= n <= 15 else NOTHING for n in range(24)]


def test_one_step_is_one_action_and_all_of_them_are_what_a_run_does() -> None:
    limits = VolumeLimits(follow="memory", looks=2, search=Search(fewest=3, most=3, rounds=1))
    alone = run_over(two_things(), policy=Clicker(), limits=limits)
    alone.run()
    told: list[Any] = []
    stepped = run_over(two_things(), policy=Clicker(), limits=limits)
    while stepped.status == "ready":
        before = len(stepped.actions)
        stepped.step(Watch(action=told.append))
        assert len(stepped.actions) in (before + 1, before + 2)
    kinds = [action.kind for action in stepped.actions]
    assert kinds == [action.kind for action in alone.actions] and tuple(told) == stepped.actions
    assert kinds[0] == "look" and [k for k in kinds if k != "look"][:4] == ["click", "click", "done", "grow"]
    assert kinds[-1] == "end" and stepped.answer == "There it is."
    assert np.array_equal(stepped.volume(), alone.volume())
    assert shown(stepped) == list(range(4, 16))


def test_the_person_may_take_part_on_the_key_slice_and_the_policy_goes_on_from_there() -> None:
    policy = Clicker()
    run = run_over(two_things(), policy=policy)
    while run.key is None:
        run.step()
    key = run.key
    run.click(key, Click(0.9, 0.9, positive=False), replace=1)
    assert run.actions[-1].by == "person" and not run.mask(key).any()
    run.step()
    assert run.actions[-1].by == "policy" and len(run.actions[-1].clicks) == 2
    run.step()
    run.step()
    assert run.actions[-1].kind == "done" and run.stage == "grow"


def test_a_word_that_is_rejected_is_taken_back_and_told() -> None:
    policy = Clicker()
    run = run_over(two_things(), policy=policy)
    while run.key is None:
        run.step()
    run.step()
    clicks = run.actions[-1].clicks
    run.reject()
    assert run.actions[-1].clicks == clicks[:1] and run.stage == "work"
    run.step()
    assert policy.turns[-1].note and "0." in policy.turns[-1].note
    run.step()
    run.grow()
    with pytest.raises(InputError, match="no word of the policy's"):
        run.reject()


def test_a_growth_that_is_stopped_goes_on_where_it_was_and_ends_as_if_it_had_not_been() -> None:
    slices = [disc() if 3 <= n <= 26 else NOTHING for n in range(30)]
    straight, run = grown(slices, 14), run_over(slices)
    rows, columns = np.nonzero(slices[14])
    run.click(14, Click((columns[0] + 0.5) / SIDE, (rows[0] + 0.5) / SIDE))
    for count in (3, 5, 12):
        done: list[int] = []
        with pytest.raises(Cancelled):
            run.step(Watch(progress=lambda p, f: done.append(p.done), cancelled=lambda: len(done) >= count))  # noqa: B023
        assert run.actions[-1].stopped and len(run.actions[-1].touched) == count
    run.step()
    assert not run.actions[-1].stopped and np.array_equal(run.volume(), straight.volume())
    assert len(run.memory.visits) == len(set(run.memory.visits))  # type: ignore[attr-defined]
    record = json.loads(json.dumps(volume_to_json(run, "made.nii.gz")))
    assert VolumeTrajectory.from_json(record).replay(SEGMENTER).differences == ()


def test_what_fails_in_the_middle_leaves_no_trace() -> None:
    run = run_over([disc()] * 12)
    run.click(5, MIDDLE)

    def fail(progress: Any, found: Any) -> None:
        if progress.done == 3:
            raise MemoryError("no room")

    with pytest.raises(MemoryError):
        run.grow(Watch(progress=fail))
    assert list(run.found) == [5] and len(run.actions) == 1
    run.grow()
    assert shown(run) == list(range(12))


def test_a_second_question_about_the_same_slices_finds_their_features_kept() -> None:
    kept, run = KeptFeatures(), run_over(two_things())
    features = kept.of(run.slices, SEGMENTER)
    assert kept.of(run_over(two_things()).slices, SEGMENTER) is features
    assert kept.of(run_over(two_things()[::-1]).slices, SEGMENTER) is not features
    other = dataclasses.replace(run.slices, window=(0.0, 100.0))  # type: ignore[type-var]
    assert kept.of(run.slices, SEGMENTER) is not kept.of(other, SEGMENTER)


# At the terminal


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    import nibabel

    voxels = np.stack([np.where(each, 200, 10) for each in two_things()]).astype(np.int16).transpose()
    path = tmp_path / "made.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, scan_file: Path) -> Callable[..., str]:
    """Run the command with typed lines; what it printed."""
    monkeypatch.setattr(volume_job.request, "_check_models", lambda *_: None)
    monkeypatch.setattr(volume_job, "load_segmenter", lambda asked: SEGMENTER)
    monkeypatch.setattr(volume_job, "load_policy", lambda folder, asked: Clicker())

    def command(*arguments: str, typed: str = "", code: int = 0) -> str:
        out = io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        monkeypatch.setattr("sys.stdout", out)
        given = ["run", str(scan_file), "--volume", "--follow", "memory", "--window", "0", "255", *arguments]
        if "--resume" in arguments:
            given = [each for each in given if each not in ("--window", "0", "255")]
        assert cli.main(given) == code
        return out.getvalue()

    return command


def test_step_by_step_at_the_terminal_the_person_corrects_any_slice_and_undoes(
    terminal: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    typed = "?\nall\n20 + 5 5 px\n4 - 16 16 px\n4g\nu\nu\n99 + 0.5 0.5\nb\na\n"
    said = terminal("--prompt", "Segment it", "--step", "--out", str(out), typed=typed)
    assert "your own positive click on slice 57" in said and "followed from slice" in said
    assert "not in the range" in said and "now after action" in said
    recorded = VolumeTrajectory.load(out / "trajectory.json")
    assert recorded.actions[-1]["slice"] != 4 and recorded.masks[4].any()
    facts = inspect(out / "trajectory.json")["Trajectory"]
    assert facts["object"].startswith("in slices 4 to 15, ") and facts["object"].endswith(" mL")
    assert (out / "review.html").is_file() and (out / "mask.nii.gz").is_file()


def test_a_run_that_was_left_is_resumed_with_its_scan(
    terminal: Callable[..., str], tmp_path: Path, scan_file: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    terminal("--prompt", "Segment it", "--step", "--out", str(first), typed="\n\n\nq\n")
    left = VolumeTrajectory.load(first / "trajectory.json")
    assert left.head["status"] == "ready" and len(left.actions) == 4
    terminal("--resume", str(first / "trajectory.json"), "--out", str(second))
    ended = VolumeTrajectory.load(second / "trajectory.json")
    assert ended.head["status"] == "ended" and ended.actions[:4] == left.actions
    whole = tmp_path / "whole"
    terminal("--prompt", "Segment it", "--out", str(whole))
    assert np.array_equal(VolumeTrajectory.load(whole / "trajectory.json").volume(), ended.volume())
    terminal("--resume", str(second / "trajectory.json"), "--plane", "sagittal", code=2)
    terminal("--resume", str(second / "trajectory.json"), code=2)  # it has ended


def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(
    terminal: Callable[..., str], tmp_path: Path, scan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ibis_agent.request import Request

    asked = volume_job.VolumeRequest(
        Request(scan=scan_file, question="Segment it", window=(0, 255), out=tmp_path / "out"), follow="memory"
    )
    session = VolumeSession(volume_job.VolumeJob(asked), Screen(io.StringIO()))
    session.load()
    on_progress = session._watch.progress
    stopping = Watch(
        session._watch.action,
        lambda progress, found: (on_progress(progress, found), setattr(session, "_stop", True)),
        cancelled=lambda: session._stop,
    )
    session._watch = stopping
    with pytest.raises(Stopped, match="--volume --resume"):
        session.go()
    recorded = VolumeTrajectory.load(tmp_path / "out" / "trajectory.json")
    assert recorded.actions[-1]["stopped"] and len(recorded.actions[-1]["ways"]) == 1
