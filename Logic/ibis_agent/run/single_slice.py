"""The memory of a run over a single slice: the mask of its prompts. No torch.

Takes the place of a Follower (segmenter.contract), without propagation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ibis_agent.actions import Prompt
from ibis_agent.run.episode import frozen
from ibis_agent.scan.slices import Slices
from ibis_agent.segmenter.contract import Found, Prediction, Segmenter
from ibis_agent.segmenter.framed import framed


@dataclass(frozen=True)
class Known:
    """A FollowerState of at most one slice."""

    found: dict[int, Found]
    standing: dict[int, Prediction]

    def pieces(self) -> dict[int, int]:
        return {id(each): each.nbytes for made in self.standing.values() for each in (made.mask, made.logits)}


class SingleSlice:
    """One slice. Its picture is embedded once: by `prepare`, during the policy's first turn, or at the first click."""

    way = "alone"

    def __init__(self, slices: Slices, segmenter: Segmenter, size: tuple[int, int]) -> None:
        self._picture = slices.picture(slices.first)
        self.segmenter, self.size = framed(segmenter, slices.frame), size
        self._embedding: Future[Any] | None = None
        self._last: tuple[Sequence[Prompt], np.ndarray | None, Prediction] | None = None
        self.found: dict[int, Found] = {}
        self._standing: dict[int, Prediction] = {}

    def prepare(self) -> None:
        """Start embedding the picture in a thread. A failure is raised at the first click."""
        if self._embedding is not None:
            return
        self._embedding = waiting = Future[Any]()

        def embed() -> None:
            try:
                waiting.set_result(self.segmenter.embed_beside(self._picture.rgb))
            except BaseException as error:  # raised again by embedding()
                waiting.set_exception(error)

        # Not a daemon: Python aborts if a daemon thread is still inside the network at exit.
        threading.Thread(target=embed, name="embed").start()

    def embedding(self) -> Any:
        """The picture's embedding; waits for it. Raises what embedding raised; the next call tries again."""
        if self._embedding is None:
            made = self.segmenter.embed(self._picture.rgb)
            self._embedding = Future[Any]()
            self._embedding.set_result(made)
        try:
            return self._embedding.result()
        except BaseException:
            self._embedding = None
            raise

    @property
    def anchors(self) -> list[int]:
        return [index for index, found in self.found.items() if found.anchor]

    def predict(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """The mask for all clicks so far. A following `anchor` with the same clicks reuses the result."""
        if self._last is not None and self._last[1] is previous_logits and self._last[0] == tuple(clicks):
            return self._last[2]
        made = self.segmenter.predict(self.embedding(), list(clicks), previous_logits)
        scores = np.array([made.score], np.float32)
        made = Prediction(frozen(made.mask), frozen(made.logits), made.score, scores)
        self._last = tuple(clicks), previous_logits, made
        return made

    def anchor(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Found:
        made = self.predict(index, clicks, previous_logits)
        self._last = None
        self._standing[index] = made
        self.found[index] = Found(index, made.mask, made.score, 1.0, anchor=True)
        return self.found[index]

    def begin(self, masks: Mapping[int, np.ndarray]) -> None:
        """See contract.Follower."""
        for index, mask in masks.items():
            made = self.segmenter.started(mask)
            self._standing[index] = replace(made, mask=frozen(mask), logits=frozen(made.logits))
            self.found[index] = Found(index, self._standing[index].mask, made.score, 1.0)

    def standing(self, index: int) -> Prediction | None:
        return self._standing.get(index)

    def show(self, index: int, mask: np.ndarray) -> None:
        """Set the mask to the recorded one; another machine may round differently."""
        self.found[index] = replace(self.found[index], mask=mask)
        self._standing[index] = replace(self._standing[index], mask=mask)

    def state(self) -> Known:
        return Known(dict(self.found), dict(self._standing))

    def restore(self, state: Any) -> None:
        self.found, self._standing = dict(state.found), dict(state.standing)

    def follow(self, start: int, direction: int, last: int, *_: Any) -> Iterator[Found]:
        return iter(())

    def missed(self, start: int, direction: int) -> int:
        return 0

    def forget_beyond(self, index: int, direction: int, last: int) -> None:
        return None
