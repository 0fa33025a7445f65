"""nnInteractive as a segmenter of single slices, and of stacks, where every prompt segments all slices at once.

The server receives the slices as displayed (windowed, grey), not the scan's values. It does not estimate the quality of
masks: scores are 1. The same prompts in the same order give the same masks, so that runs can be replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibis_agent.actions import Prompt
from ibis_agent.errors import InputError
from ibis_agent.segmenter.contract import (
    Abilities,
    Following,
    Found,
    PictureOf,
    PictureSegmenter,
    Prediction,
    Way,
)
from ibis_agent.segmenter.nninteractive.session import Asked, Session, Start

_NOTHING = np.zeros((1, 1), np.float32)
_ONE = np.ones(1, np.float32)


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture for the server, which is recognised by object identity."""

    grey: np.ndarray

    @property
    def height(self) -> int:
        return int(self.grey.shape[0])

    @property
    def width(self) -> int:
        return int(self.grey.shape[1])

    @property
    def nbytes(self) -> int:
        return self.grey.nbytes

    on_device = False

    def off_device(self) -> Shown:
        return self


class NnInteractive(PictureSegmenter):
    """A contract.Segmenter on a server."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.can = Abilities(
            clicks=session.can("points"),
            boxes=session.can("bbox2d"),
            starting_mask=session.takes_a_start,
            volume=True,
        )
        self.identity = {
            "name": f"nnInteractive at {session.address}",
            "sha256": "",
            "version": session.version,
            "licence": session.licence,
        }
        self._starts: list[tuple[np.ndarray, Start]] = []

    def embed(self, rgb: np.ndarray) -> Shown:
        return Shown(_grey(rgb))

    def started(self, mask: np.ndarray) -> Prediction:
        """See contract.Segmenter. The logits have the size of the mask."""
        return Prediction(np.array(mask, bool), np.where(mask, 10, -10).astype(np.float32), 1.0, _ONE)

    def predict(
        self, embedding: Shown, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """previous_logits: those of `started` if there was a starting mask; others are ignored."""
        if not clicks:
            raise InputError("the segmenter needs a click", remedy="Pass at least one click.")
        begun = previous_logits is not None and previous_logits.shape == embedding.grey.shape
        start = self._start(previous_logits) if begun and previous_logits is not None else None
        prompts = [(0, each) for each in clicks]
        mask = self.session.mask(embedding, lambda: embedding.grey[None], start, prompts)[0]
        kept = previous_logits if begun and previous_logits is not None else _NOTHING
        return Prediction(mask, kept, 1.0, _ONE)

    def predict_many(
        self,
        embeddings: Sequence[Shown],
        clicks: Sequence[Sequence[Prompt]],
        previous_logits: Sequence[np.ndarray | None],
    ) -> list[Prediction]:
        every = zip(embeddings, clicks, previous_logits, strict=True)
        return [self.predict(*each) for each in every]

    def follower(
        self,
        picture_of: PictureOf,
        count: int,
        size: tuple[int, int],
        way: Way = "auto",
        following: Following | None = None,
    ) -> Volume:
        """See contract.Segmenter. way and following are ignored."""
        return Volume(self.session, picture_of, count, size)

    def _start(self, logits: np.ndarray) -> Start:
        for known, start in self._starts:
            if known is logits:
                return start
        self._starts = [*self._starts[-3:], (logits, Start((logits > 0)[None]))]
        return self._starts[-1][1]


@dataclass(frozen=True)
class State:
    """See contract.FollowerState."""

    prompts: tuple[Asked, ...]
    found: dict[int, Found]

    def pieces(self) -> dict[int, int]:
        return {id(each): each.nbytes for each in self.found.values()}


class Volume:
    """A contract.Follower without propagation: every prompt segments all slices."""

    way: Way = "auto"

    def __init__(self, session: Session, picture_of: PictureOf, count: int, size: tuple[int, int]) -> None:
        self._session, self._picture_of, self._count, self.size = session, picture_of, count, size
        self._prompts: tuple[Asked, ...] = ()
        self._start: Start | None = None
        self.found: dict[int, Found] = {}

    @property
    def anchors(self) -> list[int]:
        return sorted({index for index, _ in self._prompts})

    def state(self) -> State:
        return State(self._prompts, dict(self.found))

    def restore(self, state: State) -> None:
        self._prompts, self.found = state.prompts, dict(state.found)

    def begin(self, masks: Mapping[int, np.ndarray]) -> None:
        """See contract.Follower. A mask on a single slice is extended to the others."""
        whole = np.zeros((self._count, *self.size), bool)
        for index, mask in masks.items():
            whole[index] = mask
        self._start = Start(whole)
        self._show(self._mask(()) if len(self._start.slices) == 1 else whole)

    def predict(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        if not clicks:
            raise InputError("the segmenter needs a click", remedy="Pass at least one click.")
        return Prediction(self._mask(self._with(index, clicks))[index], _NOTHING, 1.0, _ONE)

    def standing(self, index: int) -> Prediction | None:
        known = self.found.get(index)
        return None if known is None else Prediction(known.mask, _NOTHING, 1.0, _ONE)

    def anchor(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Found:
        prompts = self._with(index, clicks)
        mask = self._mask(prompts)
        self._prompts = prompts
        self._show(mask)
        return self.found[index]

    def follow(self, start: int, direction: int, last: int, *_: Any, **__: Any) -> Iterator[Found]:
        return iter(())

    def missed(self, start: int, direction: int) -> int:
        return 0

    def forget_beyond(self, index: int, direction: int, last: int) -> None:
        return None

    def _with(self, index: int, clicks: Sequence[Prompt]) -> tuple[Asked, ...]:
        """The prompts so far with those of a slice; new ones come last."""
        before = [prompt for n, prompt in self._prompts if n == index]
        kept, new = self._prompts, list(clicks)
        if new[: len(before)] == before:
            new = new[len(before) :]
        else:
            kept = tuple(each for each in self._prompts if each[0] != index)
        return (*kept, *((index, each) for each in new))

    def _mask(self, prompts: Sequence[Asked]) -> np.ndarray:
        return self._session.mask(self, self._slices, self._start, prompts)

    def _slices(self) -> np.ndarray:
        """(K, H, W) float32 along the whole axis; slices missing from a record are black."""
        made = np.zeros((self._count, *self.size), np.float32)
        for index in range(self._count):
            try:
                made[index] = _grey(self._picture_of(index))
            except InputError:
                continue
        return made

    def _show(self, whole: np.ndarray) -> None:
        """Update `found`; unchanged slices keep their Found."""
        anchors, found = set(self.anchors), dict[int, Found]()
        there = np.flatnonzero(whole.any(axis=(1, 2)))
        inside = range(int(there[0]), int(there[-1]) + 1) if there.size else range(0)
        for index in sorted({*inside, *anchors}):
            known, mask = self.found.get(index), whole[index]
            if known is None or known.anchor != (index in anchors) or not np.array_equal(known.mask, mask):
                known = Found(index, mask, 1.0, float(mask.any()), index in anchors)
            found[index] = known
        self.found = found


def _grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 → (H, W) float32."""
    return np.asarray(rgb, np.float32).mean(axis=2)
