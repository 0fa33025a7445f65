"""A segmenter that sees only a frame of each slice; prompts and masks refer to the whole slice.

seen = framed(segmenter, picture.frame)
seen.predict(seen.embed(picture.rgb), clicks).mask      # of the whole picture
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ibis_agent.actions import Prompt
from ibis_agent.scan.frame import Frame
from ibis_agent.segmenter.contract import (
    Abilities,
    Follower,
    Following,
    Found,
    PictureOf,
    PictureSegmenter,
    Prediction,
    Way,
)


def framed(segmenter: Any, frame: Frame | None) -> Any:
    """A segmenter that sees only `frame`; `segmenter` itself if that is None or its own frame."""
    if frame is None or getattr(segmenter, "frame", None) == frame:
        return segmenter
    return FramedSegmenter(segmenter, frame)


class FramedSegmenter:
    """A contract.Segmenter for whole slices around one that sees the frame."""

    def __init__(self, segmenter: PictureSegmenter, frame: Frame) -> None:
        self.inner: Any = segmenter
        self.frame, self.identity = frame, segmenter.identity

    @property
    def can(self) -> Abilities:
        return self.inner.can

    def embed(self, rgb: np.ndarray) -> Any:
        return self.inner.embed(np.ascontiguousarray(self.frame.crop(rgb)))

    def embed_beside(self, rgb: np.ndarray) -> Any:
        return self.inner.embed_beside(np.ascontiguousarray(self.frame.crop(rgb)))

    def predict(
        self, embedding: Any, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        made = self.inner.predict(embedding, self.frame.clicks_inward(clicks), previous_logits)
        return replace(made, mask=self.frame.paste(made.mask))

    def started(self, mask: np.ndarray) -> Prediction:
        """The mask outside the frame stays in the result, but the network does not see it."""
        return replace(self.inner.started(self.frame.crop(mask)), mask=mask)

    def predict_many(
        self,
        embeddings: Sequence[Any],
        clicks: Sequence[Sequence[Prompt]],
        previous_logits: Sequence[np.ndarray | None],
    ) -> list[Prediction]:
        inside = [self.frame.clicks_inward(each) for each in clicks]
        made = self.inner.predict_many(embeddings, inside, previous_logits)
        return [replace(each, mask=self.frame.paste(each.mask)) for each in made]

    def follower(
        self,
        picture_of: PictureOf,
        count: int,
        size: tuple[int, int],
        way: Way = "auto",
        following: Following | None = None,
    ) -> FramedFollower:
        frame, segmenter = self.frame, self.inner

        def inside(index: int) -> np.ndarray:
            return np.ascontiguousarray(frame.crop(picture_of(index)))

        return FramedFollower(segmenter.follower(inside, count, frame.shape, way, following), frame)


@dataclass(frozen=True)
class FramedState:
    """See contract.FollowerState."""

    inner: Any
    found: dict[int, Found]

    def pieces(self) -> dict[int, int]:
        own = {id(each): each.nbytes for each in self.found.values()}
        return {**self.inner.pieces(), **own}


class _Outward(Mapping[int, Found]):
    """The masks of a framed follower in whole slices, computed at each access."""

    def __init__(self, follower: FramedFollower) -> None:
        self._follower = follower

    def __getitem__(self, index: int) -> Found:
        return self._follower._outward(self._follower.inner.found[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self._follower.inner.found)

    def __len__(self) -> int:
        return len(self._follower.inner.found)


class FramedFollower:
    """A contract.Follower for whole slices around one that sees the frame."""

    def __init__(self, inner: Follower, frame: Frame) -> None:
        self.inner, self.frame = inner, frame
        self.size, self.way = (frame.height, frame.width), inner.way
        self._whole: dict[int, tuple[Found, Found]] = {}  # slice → (in the frame, in the whole slice)

    @property
    def found(self) -> Mapping[int, Found]:
        return _Outward(self)

    @property
    def anchors(self) -> list[int]:
        return self.inner.anchors

    def state(self) -> FramedState:
        return FramedState(self.inner.state(), dict(self.found))

    def restore(self, state: FramedState) -> None:
        self.inner.restore(state.inner)

    def predict(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        made = self.inner.predict(index, self.frame.clicks_inward(clicks), previous_logits)
        return replace(made, mask=self.frame.paste(made.mask))

    def standing(self, index: int) -> Prediction | None:
        known = self.inner.standing(index)
        return None if known is None else replace(known, mask=self.frame.paste(known.mask))

    def anchor(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Found:
        return self._outward(self.inner.anchor(index, self.frame.clicks_inward(clicks), previous_logits))

    def begin(self, masks: Mapping[int, np.ndarray]) -> None:
        """Masks are cut to the frame."""
        self.inner.begin({index: self.frame.crop(mask) for index, mask in masks.items()})

    def follow(
        self, start: int, direction: int, last: int, patience: int | None = None, settle: bool = False
    ) -> Iterator[Found]:
        for each in self.inner.follow(start, direction, last, patience, settle):
            yield self._outward(each)

    def missed(self, start: int, direction: int) -> int:
        return self.inner.missed(start, direction)

    def forget_beyond(self, index: int, direction: int, last: int) -> None:
        self.inner.forget_beyond(index, direction, last)

    def _outward(self, found: Found) -> Found:
        """The mask in the whole slice; the same object for the same input, because callers compare by identity."""
        known = self._whole.get(found.index)
        if known is None or known[0] is not found:
            whole = replace(found, mask=self.frame.paste(found.mask))
            known = self._whole[found.index] = found, whole
        return known[1]
