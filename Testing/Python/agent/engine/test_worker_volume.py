"""The worker asked about whole volumes: a real process, real weights, a scripted policy, real CT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.engine.client import WorkerClient
from ibis_agent.engine.job import DIED, Job
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.geometry import slice_geometry
from ibis_agent.scan.picture import cut
from ibis_agent.scan.scan import Scan
from worker_transport import Starter, write_script

pytest.importorskip("torch")

AFFINE = np.diag([-3.0, -3.2, 5.0, 1.0])
WINDOW = (0.0, 255.0)
REPLIES = [
    format_reply(Reply("I see it.", Click(0.45, 0.41))),
    format_reply(Reply("It fits.", Terminate("There it is."))),
]


@pytest.fixture(scope="module")
def voxels(data: Path) -> np.ndarray:
    """(K, J, I) uint8: 12 slices of a real CT at a quarter of its resolution."""
    return np.load(data / "lesion_000009.npz")["imgs"][:12, ::4, ::4].copy()


class Question:
    """A client with one open question about the volume, and all that it was told."""

    def __init__(self, folder: Path, voxels: np.ndarray, script: Path) -> None:
        self.folder, self.voxels = folder, voxels
        self.starter = Starter("--script", str(script))
        self.client = WorkerClient(self.starter)
        self.record = RunRecord("Segment the lesion", "volume")
        self.slices: list[dict[str, Any]] = []
        self.given: dict[str, np.ndarray] = {}  # (K, J, I)
        self.ends: list[tuple[str, Any]] = []
        self.client.open(self.record.session, self.describe)

    def describe(self, folder: Path) -> dict[str, Any]:
        np.save(folder / "volume.npy", self.voxels)
        image = {
            "file": str(folder / "volume.npy"),
            "shape": list(self.voxels.shape[::-1]),
            "affine": AFFINE.tolist(),
            "axis": 2,
            "window": list(WINDOW),
            "range": [1, 10],
            "name": "lesion",
        }
        limits = {"looks": 0, "follow": "carry", "patience_mm": 10.0}
        asked = {"question": self.record.question, "scope": "volume", "image": image, "limits": limits}
        for key, mask in self.given.items():
            np.save(folder / f"{key}.npy", mask)
            asked[key] = {"file": str(folder / f"{key}.npy"), "name": f"my {key}"}
        if self.record.head:
            asked |= {"head": self.record.head, "known": self.record.known()}
        return asked

    def submit(self, request: str = "step", **fields: Any) -> None:
        job = Job(request, {"after": self.record.after, **fields}, self.record.session)
        job.opened = lambda message: self.record.open(message["head"])
        job.step = lambda message: self.record.extend(message["after"], message["step"], message)
        job.slice = self.slices.append
        job.done = lambda message: self.ends.append(("done", message))
        job.failed = lambda kind, text: self.ends.append((kind, text))
        self.client.submit(job)

    def do(self, request: str = "step", **fields: Any) -> Any:
        """What the request ended with."""
        count = len(self.ends)
        self.submit(request, **fields)
        self.starter.pump_until(lambda: len(self.ends) > count, 120)
        return self.ends[-1]

    def run_until(self, kind: str) -> None:
        while not self.record.steps or self.record.steps[-1]["kind"] != kind:
            assert self.do()[0] == "done", self.ends[-1]

    def picture_of(self, index: int) -> Any:
        scan = Scan(self.voxels.transpose(), AFFINE, "volume", Path("lesion"), "lesion", "CT")
        return cut(scan, "z", index, WINDOW)


@pytest.fixture
def question(tmp_path: Path, voxels: np.ndarray, parity: Path) -> Iterator[Question]:
    script = write_script(tmp_path, REPLIES, segmenter=str(parity / "segmenter.pt"))
    made = Question(tmp_path, voxels, script)
    yield made
    made.starter.end_all()


def test_a_volume_is_answered_slice_by_slice_corrected_and_recorded(question: Question) -> None:
    q, record = question, question.record
    q.run_until("grow")
    assert list(Path(q.client.hello["folder"]).iterdir()) == []  # type: ignore[index] # a volume is large
    kinds = [step["kind"] for step in record.steps]
    assert kinds[0] == "look" and kinds[-3:] == ["click", "done", "grow"]
    assert record.answer == "There it is." and record.range == (1, 10)

    told = {each["slice"]: each for each in q.slices}
    grown = record.steps[-1]
    assert set(told) == {int(n) for n in grown["touched"]} != set()
    assert q.slices[-1]["done"] == len(q.slices) and q.slices[0]["total"] == 9
    assert all(each["seconds_left"] >= 0 for each in q.slices)
    assert all(record.slices()[n] == each["known"] for n, each in told.items())
    areas = record.areas_mm2()
    assert record.volume_ml() == pytest.approx(sum(areas.values()) * 5.0 / 1000) and record.volume_ml() > 0
    geometry = slice_geometry(q.voxels.shape[::-1], AFFINE, "z", 1)
    assert record.geometry == geometry

    # The person corrects a slice far away: it alone changes at once, its neighbours when asked.
    after, count = record.after, len(q.slices)
    key = next(step["slice"] for step in record.steps if step["kind"] == "click")
    far = 2 if key > 5 else 9
    assert q.do("add", slice=far, click={"x": 0.3, "y": 0.5, "positive": True})[0] == "done"
    assert list(record.steps[-1]["touched"]) == [str(far)] and len(q.slices) == count
    assert record.steps[-1]["by"] == "person" and record.clicks_on(far) == [Click(0.3, 0.5)]
    corrected = record.mask(index=far)
    assert q.do("spread", slice=far)[0] == "done"
    assert len(q.slices) > count and np.array_equal(record.mask(index=far), corrected)

    # The way back needs no request; what follows builds on what counts.
    record.undo()
    record.undo()
    assert record.after == after
    moved = {"x": 0.7, "y": 0.5, "positive": True}
    assert q.do("add", slice=far, click=moved)[0] == "done"
    record.undo()
    q.run_until("end")
    assert record.status == "ended"

    trajectory = Trajectory.from_json(json.loads(json.dumps(record.trajectory(q.picture_of))))
    assert trajectory.volume().sum() * 3.0 * 3.2 * 5.0 / 1000 == pytest.approx(record.volume_ml())
    again = RunRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert again.slices() == record.slices() and again.after == record.after


def test_stopping_a_growth_keeps_its_slices_and_the_next_step_goes_on(question: Question) -> None:
    q, record = question, question.record
    q.run_until("done")
    q.submit("step")
    q.starter.pump_until(lambda: q.slices, 120)
    token = q.client.stop()
    assert token and q.client.state == "stopping" and q.client.waiting
    count = len(q.ends)
    q.starter.pump_until(lambda: len(q.ends) > count, 120)
    assert q.ends[-1][0] == "done"
    grown = record.steps[-1]
    if grown["stopped"]:  # it was quick enough to be stopped
        assert set(grown["touched"]) == {str(each["slice"]) for each in q.slices}
        q.run_until("end")
    known = set(record.slices())
    key = next(step["slice"] for step in record.steps if step["kind"] == "click")
    assert known == set(range(min(known), max(known) + 1)) and key in known
    assert not q.client.end_if_stuck(token)


def test_a_volume_run_outlives_its_worker(question: Question) -> None:
    q, record = question, question.record
    q.run_until("grow")
    before, masks = record.after, record.slices()
    assert not any("touched" in step for step in record.known().values())  # it finds the masks again
    q.client.kill()
    far = min(record.slices())
    assert q.do("add", slice=far, click={"x": 0.4, "y": 0.5, "positive": True})[0] == "done"
    assert len(q.starter.started) == 2 and record.after[:-1] == before
    assert {n: each for n, each in record.slices().items() if n != far} == {
        n: each for n, each in masks.items() if n != far
    }
    assert DIED not in [kind for kind, _ in q.ends]


def test_a_mask_to_begin_from_is_there_before_the_first_step_and_after_the_worker_died(
    question: Question,
) -> None:
    q, record = question, question.record
    start, out = np.zeros(q.voxels.shape, bool), np.zeros(q.voxels.shape, bool)
    start[3:7, 40:60, 40:70], out[:, :, 60:] = True, True
    q.given = {"start": start, "exclude": out}
    assert q.do("add", slice=5, click={"x": 0.3, "y": 0.4, "positive": True})[0] == "done"
    assert record.head["start"]["name"] == "my start" and record.head["excluded"]["name"] == "my exclude"
    geometry = slice_geometry(q.voxels.shape[::-1], AFFINE, "z", 4)
    np.testing.assert_array_equal(record.mask(0, 4), geometry.extract((start & ~out).transpose()))
    assert not (record.mask(index=5) & geometry.extract(out.transpose())).any() and record.mask(index=5).any()

    corrected = record.mask(index=5)
    q.starter.end_all()
    q.given = {}  # the files are gone, and so is the worker: the record holds all that counts
    assert q.do("spread", slice=5)[0] in ("done", DIED)
    assert q.do("spread", slice=5)[0] == "done"
    np.testing.assert_array_equal(record.mask(index=5), corrected)
    np.testing.assert_array_equal(record.mask(index=4), record.mask(0, 4))
