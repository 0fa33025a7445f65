"""Segmenters that rollout workers share: the same masks as one's own, batched, an embedding for a whole group."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sam2")

import ibis_agent.segmenter as segmenters
from ibis_agent.actions import Click
from ibis_agent.errors import ModelError
from ibis_agent.segmenter.contract import Prediction
from patient_ray import PATIENCE, begin

from training.grpo.tasks import phantom_tasks
from training.grpo.verl import shared_segmenter
from training.grpo.verl.shared_segmenter import Host, Shared

CLICKS = [Click(0.3, 0.5), Click(0.5, 0.5), Click(0.6, 0.4)]
with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    tasks = phantom_tasks(2, seed=11)
    return [tasks.shown(n).picture.rgb for n in range(2)]


def _alone(rgb: np.ndarray, click: Click) -> Prediction:
    segmenter = segmenters.open(None, device="cpu")
    return segmenter.predict(segmenter.embed(rgb), [click])


def test_what_is_asked_at_once_is_answered_together_and_as_if_alone(pictures: list[np.ndarray]) -> None:
    host = Host(None, "cpu")

    async def ask() -> list[Prediction | None]:
        return await asyncio.gather(
            *(host.predict(str(n), rgb, [click], None) for n, rgb in enumerate(pictures) for click in CLICKS)
        )

    found = asyncio.run(ask())
    assert asyncio.run(host.counts()) == {"answered": 6, "batches": 1, "pictures": 2}
    assert host._segmenter.kept.made == 2  # an embedding for each picture, not for each question
    for prediction, (rgb, click) in zip(found, [(p, c) for p in pictures for c in CLICKS], strict=True):
        assert prediction is not None
        alone = _alone(rgb, click)
        assert (prediction.mask != alone.mask).mean() < 1e-3
        assert prediction.logits == pytest.approx(alone.logits, abs=1e-3)


def test_any_states_are_answered_together_and_a_fault_is_its_askers_alone(
    pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, first = Host(None, "cpu"), _alone(pictures[0], CLICKS[0])
    predict = host._predict

    def faulty(known: Any) -> list[Prediction]:
        if any(len(asked.prompts) == 3 for asked in known):
            raise ModelError("out of memory")
        return predict(known)

    monkeypatch.setattr(host, "_predict", faulty)

    async def ask() -> list[Any]:
        return await asyncio.gather(
            host.predict("a", pictures[0], CLICKS[:1], None),
            host.predict("a", None, CLICKS[:2], first.logits),
            host.predict("a", None, CLICKS, first.logits),
            host.predict("never sent", None, CLICKS[:1], None),
            host.predict("a", None, CLICKS[1:2], None),
            return_exceptions=True,
        )

    one, two, three, unknown, other = asyncio.run(ask())
    assert one.mask.any() and two.mask.any() and other.mask.any()
    assert isinstance(three, ModelError) and unknown is None
    assert asyncio.run(host.counts())["batches"] == 1


def test_a_picture_that_was_sent_is_answered_also_where_more_arrive_than_are_held(
    pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_segmenter, "_PICTURES", 1)
    host = Host(None, "cpu")

    async def ask() -> list[Prediction | None]:
        return await asyncio.gather(
            *(host.predict(str(n), rgb, CLICKS[:1], None) for n, rgb in enumerate(pictures))
        )

    found = asyncio.run(ask())
    assert all(each is not None and each.mask.any() for each in found)
    assert asyncio.run(host.counts())["pictures"] == 1


def test_a_question_that_is_cancelled_does_not_keep_the_others_waiting(pictures: list[np.ndarray]) -> None:
    host = Host(None, "cpu")

    async def ask() -> Prediction | None:
        gone = asyncio.create_task(host.predict("a", pictures[0], CLICKS[:1], None))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await asyncio.wait_for(host.predict("b", pictures[1], CLICKS[:1], None), 60)
        return await asyncio.wait_for(host.predict("a", None, CLICKS[1:2], None), 60)

    found = asyncio.run(ask())
    assert found is not None and found.mask.any()


def test_threads_that_ask_at_once_get_one_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=5)

    def slow(*_: Any) -> object:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)  # passes only where two are being made
        return object()

    monkeypatch.setattr(shared_segmenter, "_made", functools.cache(slow))
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: shared_segmenter.shared(None, "cpu", 1, 0.0), range(2))
    assert first is second


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    os.environ |= PATIENCE
    import ray

    root = Path(__file__).parents[3]
    paths = {"PYTHONPATH": os.pathsep.join([str(root / "Logic"), str(root)]), "OMP_NUM_THREADS": "1"}
    begin(ray, num_cpus=3, num_gpus=0, runtime_env={"env_vars": paths})
    yield ray
    ray.shutdown()


@with_ray
def test_all_workers_of_a_job_share_a_segmenter_and_outlive_its_death(
    ray_here: Any, pictures: list[np.ndarray]
) -> None:
    def worker(rgb: np.ndarray, click: Click) -> Prediction:
        segmenter = Shared(None, "cpu")
        return segmenter.predict(segmenter.embed(rgb), [click])

    mine = Shared(None, "cpu")
    asked = ray_here.remote(worker)
    found = ray_here.get([asked.remote(pictures[0], click) for click in CLICKS[:2]])
    for prediction, click in zip(found, CLICKS, strict=False):
        assert (prediction.mask != _alone(pictures[0], click).mask).mean() < 1e-3
    (counts,) = mine.counts()
    assert counts["answered"] == 2 and counts["pictures"] == 1

    before = mine.predict(mine.embed(pictures[0]), CLICKS[:1])
    ray_here.kill(mine._actors[0], no_restart=False)
    again = mine.predict(mine.embed(pictures[0]), CLICKS[:1])  # the new one has to be sent the picture again
    assert np.array_equal(again.mask, before.mask)
    refined = mine.predict(mine.embed(pictures[0]), CLICKS[:2], again.logits)
    assert refined.mask.any() and mine.counts()[0]["answered"] == 2
    ray_here.kill(mine._actors[0])  # as when the worker that began it has ended
    assert np.array_equal(mine.predict(mine.embed(pictures[0]), CLICKS[:1]).mask, before.mask)


@with_ray
def test_an_actor_that_finds_no_gpu_is_told_with_what_is_free(ray_here: Any) -> None:
    # Also where one on the processor is running: another device is another segmenter.
    with pytest.raises(ModelError, match=r"did not start .* 0 GPUs .* Leave a GPU"):
        Shared(None, "cuda", share=0.5, patience=2)
