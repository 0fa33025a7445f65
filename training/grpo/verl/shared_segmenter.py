"""Segmenters shared by all rollout workers: Ray actors, each with a share of a GPU, that answer in batches.

    segmenter = Shared("models/MedSAM2_latest.pt", "cuda", count=2, share=0.25)    # in any worker of the job
    found = segmenter.predict(segmenter.embed(rgb), prompts, previous_logits)

A hash of its content assigns each picture to one actor, so all rollouts of a question share one embedding, whichever
worker runs them. Requests that arrive while an actor computes are answered together next. Actors end with the job; one
that dies is restarted, and its requests are repeated. Ray is imported when the first is opened.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ibis_agent.segmenter as segmenters
import numpy as np
from ibis_agent.actions import Prompt
from ibis_agent.errors import InputError, ModelError
from ibis_agent.segmenter.contract import PictureSegmenter, Prediction
from ibis_agent.segmenter.embeddings import key_of

_NAME = "ibis_segmenter"
_PICTURES = 256  # kept by an actor; others are sent again
_AT_ONCE = 1024  # requests that may wait in an actor
_TRIES = 8
_PAUSE = 0.1  # seconds before the second try, twice as long before each further one


@dataclass(frozen=True)
class Sent:
    """What `embed` returns here: a picture and the hash of its content."""

    key: str
    rgb: np.ndarray


@dataclass(frozen=True, eq=False)
class _Asked:
    rgb: np.ndarray
    prompts: Sequence[Prompt]
    logits: np.ndarray | None
    answer: asyncio.Future[Prediction | None]


class Host:
    """The code of an actor: one segmenter and its queue of requests. Runs without Ray, too.

    most: the greatest batch; limited by GPU memory.
    """

    def __init__(self, checkpoint: str | None, device: str, most: int = 64) -> None:
        self._segmenter = segmenters.open(checkpoint, device=device)
        self._most = most
        self._pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self._waiting: list[_Asked] = []
        self._serving: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._batches = self._answered = 0

    async def identity(self) -> dict[str, str]:
        return dict(self._segmenter.identity)

    async def counts(self) -> dict[str, int]:
        """Numbers of requests answered and of batches computed so far, and of pictures kept."""
        return {"answered": self._answered, "batches": self._batches, "pictures": len(self._pictures)}

    async def predict(
        self, key: str, rgb: np.ndarray | None, prompts: Sequence[Prompt], logits: np.ndarray | None
    ) -> Prediction | None:
        """The mask for all prompts so far; None if the picture is not kept and `rgb` is needed."""
        rgb = self._pictures.get(key) if rgb is None else rgb
        if rgb is None:
            return None
        self._pictures[key] = rgb
        self._pictures.move_to_end(key)
        if len(self._pictures) > _PICTURES:
            self._pictures.popitem(last=False)
        # Keeps its picture: others may push it out before it is computed.
        asked = _Asked(rgb, prompts, logits, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return await asked.answer

    async def _serve(self) -> None:
        while self._waiting:
            part, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, self._compute, part)
            self._batches, self._answered = self._batches + 1, self._answered + len(part)
            for asked, answer in zip(part, found, strict=True):
                if asked.answer.done():  # the caller was cancelled
                    continue
                if isinstance(answer, Exception):
                    asked.answer.set_exception(answer)
                else:
                    asked.answer.set_result(answer)
        self._serving = None

    def _compute(self, part: Sequence[_Asked]) -> list[Prediction | Exception]:
        """Compute as a batch; one by one if that fails, so that only the faulty request gets the error."""
        try:
            return list(self._predict(part))
        except Exception as error:
            if len(part) == 1:
                return [error]
            return [answer for each in part for answer in self._compute([each])]

    def _predict(self, part: Sequence[_Asked]) -> list[Prediction]:
        return self._segmenter.predict_many(
            [self._segmenter.embed(asked.rgb) for asked in part],
            [asked.prompts for asked in part],
            [asked.logits for asked in part],
        )


class Shared(PictureSegmenter):
    """The job's shared segmenters as one PictureSegmenter. Blocks while an actor computes: call it from threads.

    Args:
        checkpoint, device: of each actor.
        count: number of actors; share: of a GPU for each, 0 on a CPU.
        patience: seconds to wait for the first actor to start and load its weights.
    """

    def __init__(
        self, checkpoint: str | None, device: str, count: int = 1, share: float = 0.0, patience: float = 600.0
    ) -> None:
        """Raises InputError without Ray, ModelError if an actor does not start."""
        try:
            import ray
        except ImportError as error:
            remedy = 'Install it: pip install "ibis-agent[ray]".'
            raise InputError("shared segmenters need Ray, which is not installed", remedy=remedy) from error
        self._ray = ray
        made: Any = ray.remote(Host)
        lasting: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "get_if_exists": True}
        takes = {"num_cpus": 1, "num_gpus": share, "max_concurrency": _AT_ONCE}
        kind = hashlib.sha256(f"{checkpoint}|{device}".encode()).hexdigest()[:8]
        names = [f"{_NAME}-{kind}-{n}" for n in range(count)]
        # The first worker starts an actor; any worker restarts it if the one that started it is gone.
        self._start = lambda n: made.options(name=names[n], **takes, **lasting).remote(checkpoint, device)
        self._actors: list[Any] = [self._start(n) for n in range(count)]  # they load in parallel
        self._sent: OrderedDict[str, None] = OrderedDict()
        try:
            self.identity: dict[str, str] = ray.get(self._actors[0].identity.remote(), timeout=patience)
        except ray.exceptions.GetTimeoutError as error:
            free = ray.available_resources()
            raise ModelError(
                f"a shared segmenter did not start within {patience:g} s",
                value=f"{free.get('GPU', 0):g} GPUs and {free.get('CPU', 0):g} CPUs free, {share:g} and 1 needed",
                remedy="Leave a GPU for it (verl takes whole ones), or set share: 0.",
            ) from error
        except ray.exceptions.ActorDiedError as error:
            raise ModelError(
                "a shared segmenter could not be loaded", value=str(error.__cause__ or error)
            ) from error

    def embed(self, rgb: np.ndarray) -> Sent:
        """Only hashes the (H, W, 3) uint8 picture; its actor computes the embedding, once."""
        return Sent(key_of(rgb).hex(), rgb)

    def predict(
        self, embedding: Sent, prompts: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """See contract.PictureSegmenter. Raises ModelError if the actor keeps dying."""
        which = int(embedding.key[:8], 16) % len(self._actors)
        question = (embedding.key, prompts, previous_logits)
        for n in range(_TRIES):
            try:
                found = None
                if embedding.key in self._sent:
                    found = self._ask(which, None, *question)
                if found is None:  # never sent, dropped since, or the actor is new
                    found = self._ask(which, embedding.rgb, *question)
            except self._ray.exceptions.ActorDiedError:
                time.sleep(_PAUSE * 2**n)  # until Ray has released its name
                self._actors[which] = self._start(which)
                continue
            assert found is not None, "an actor keeps the picture that was just sent"
            self._sent[embedding.key] = None
            self._sent.move_to_end(embedding.key)
            if len(self._sent) > _PICTURES * len(self._actors):
                self._sent.popitem(last=False)
            return found
        raise ModelError("a shared segmenter keeps dying", value=f"{_TRIES} tries")

    def _ask(self, which: int, rgb: np.ndarray | None, *question: Any) -> Prediction | None:
        key, prompts, logits = question
        found: Prediction | None = self._ray.get(
            self._actors[which].predict.remote(key, rgb, prompts, logits)
        )
        return found

    def counts(self) -> list[dict[str, int]]:
        """Host.counts of each actor."""
        found: list[dict[str, int]] = self._ray.get([actor.counts.remote() for actor in self._actors])
        return found


def shared(checkpoint: str | None, device: str, count: int, share: float) -> Shared:
    """This process's Shared with these arguments; made once, even if threads ask at the same time."""
    # If two were made, dropping one would end the actors of both.
    with _MAKING:
        return _made(checkpoint, device, count, share)


_made = functools.cache(Shared)
_MAKING = threading.Lock()
