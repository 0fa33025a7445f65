"""The contracts of segmenters: pictures are embedded, prompts become masks, and masks propagate through slices.

No torch here: each kind of segmenter has its own embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ibis_agent.actions import Prompt
from ibis_agent.mask.packed import packed, packed_bytes

Way = Literal["auto", "memory", "linked", "carry"]
PictureOf = Callable[[int], np.ndarray]
"""Slice index → (H, W, 3) uint8."""


@dataclass(frozen=True)
class Abilities:
    """What a segmenter supports.

    Attributes:
        clicks: positive and negative clicks.
        boxes: a box around the object.
        starting_mask: refining a given mask.
        volume: a prompt on one slice gives the mask in all slices at once (3D); otherwise the mask is propagated from
            slice to slice (2D).
    """

    clicks: bool = True
    boxes: bool = False
    starting_mask: bool = False
    volume: bool = False


class Embedding(Protocol):
    """A segmenter's features of one picture, which make every prompt on it cheap."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def on_device(self) -> bool:
        """Whether it is in GPU memory."""
        ...

    def off_device(self) -> Embedding:
        """A copy in main memory."""
        ...


@dataclass(frozen=True)
class Prediction:
    """A mask, and what the next prompt needs.

    Attributes:
        mask: (H, W) bool, in the picture's pixels.
        logits: (S/4, S/4) float32 within ±32, the next `previous_logits` (S: the network's picture size).
        score: the network's estimate of the mask's IoU.
        scores: (n,) float32, the estimates for all candidate masks.
    """

    mask: np.ndarray
    logits: np.ndarray
    score: float
    scores: np.ndarray


@packed
@dataclass(frozen=True, eq=False)
class Found:
    """The mask of one slice of a volume.

    Attributes:
        index: the slice.
        mask: (H, W) bool, read-only; stored as one bit per pixel and unpacked at each access.
        score: the network's estimate of the mask's IoU, 0 to 1.
        presence: probability that the object is in the slice, from the object score.
        anchor: whether it was prompted or given, not propagated from other slices.
    """

    index: int
    mask: np.ndarray
    score: float
    presence: float
    anchor: bool = False

    @property
    def nbytes(self) -> int:
        return packed_bytes(self)


@dataclass(frozen=True)
class Following:
    """Settings of propagation.

    Attributes:
        settled_iou, settled_slices: propagating a correction stops after this many masks in a row whose IoU with the
            earlier ones is at least settled_iou.
        most_anchors: the number of nearest anchors that a slice attends to, which limits its cost.
        least_fit, least_score: carried masks with a lower Dice with the neighbouring mask, or a lower score, are
            dropped.
    """

    settled_iou: float = 0.985
    settled_slices: int = 2
    most_anchors: int = 8
    least_fit: float = 0.3
    least_score: float = 0.25


class PictureSegmenter(Protocol):
    """Segments single pictures. `identity` has at least "name" and "sha256"."""

    identity: dict[str, str]

    def embed(self, rgb: np.ndarray) -> Any:
        """The Embedding of an (H, W, 3) uint8 picture. Raises InputError, ModelError."""
        ...

    def embed_beside(self, rgb: np.ndarray) -> Any:
        """`embed` in a thread, while another network computes on the same card."""
        return self.embed(rgb)

    def predict(
        self, embedding: Any, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """The mask for all prompts so far, in order. previous_logits: of the prediction before the last prompt.

        Raises InputError, ModelError.
        """
        ...


class Segmenter(PictureSegmenter, Protocol):
    """Segments pictures and stacks of slices."""

    @property
    def can(self) -> Abilities: ...

    def started(self, mask: np.ndarray) -> Prediction:
        """A given (H, W) bool mask as a prediction that prompts can refine; needs `can.starting_mask`."""
        ...

    def predict_many(
        self,
        embeddings: Sequence[Any],
        clicks: Sequence[Sequence[Prompt]],
        previous_logits: Sequence[np.ndarray | None],
    ) -> list[Prediction]:
        """`predict` for several pictures, or several states of one, in a batch."""
        ...

    def follower(
        self,
        picture_of: PictureOf,
        count: int,
        size: tuple[int, int],
        way: Way = "auto",
        following: Following | None = None,
    ) -> Follower:
        """A follower for one object in a stack of slices.

        Args:
            picture_of: slice index → its picture, (H, W, 3) uint8.
            count: number of slices along the axis.
            size: (H, W) of a slice.
            way: the kind of propagation, for segmenters with several.
            following: settings; None for the defaults.
        """
        ...


class FollowerState(Protocol):
    """A snapshot of a follower, which shares unchanged arrays with other snapshots."""

    @property
    def found(self) -> dict[int, Found]: ...

    def pieces(self) -> dict[int, int]:
        """Size in bytes, by `id`, of everything that it keeps alive."""
        ...


class Follower(Protocol):
    """Segments one object in a stack: from prompts on some slices (anchors) to masks on all."""

    found: dict[int, Found]
    size: tuple[int, int]
    way: Way

    @property
    def anchors(self) -> list[int]:
        """The slices that were prompted or given, in order."""
        ...

    def state(self) -> Any:
        """A FollowerState for `restore`, without copies of arrays."""
        ...

    def restore(self, state: Any) -> None: ...

    def predict(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """The mask of a slice for these prompts, using other slices too. Changes nothing."""
        ...

    def standing(self, index: int) -> Prediction | None:
        """The mask of a slice as a prediction that prompts can refine; None if it has none."""
        ...

    def anchor(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Found:
        """Make a slice an anchor, with the mask that `predict` gives."""
        ...

    def begin(self, masks: Mapping[int, np.ndarray]) -> None:
        """Start from (H, W) bool masks by slice, which stay unchanged until prompted.

        A single mask becomes an anchor. With several, prompts refine a slice's own mask, and propagation from other
        slices ends before non-empty ones. Raises what the network raises.
        """
        ...

    def follow(
        self, start: int, direction: int, last: int, patience: int | None = None, settle: bool = False
    ) -> Iterator[Found]:
        """Propagate from `start` to the following slices, one at a time. Raises InputError.

        Ends before another anchor. Stopping early keeps the slices done.

        Args:
            start: a slice with a mask.
            direction: +1 or -1.
            last: the last slice to visit.
            patience: end after this many slices in a row without the object; None continues to `last`.
            settle: end where the masks no longer change, see Following.
        """
        ...

    def missed(self, start: int, direction: int) -> int:
        """The number of propagated slices without the object up to `start`, in a row; 0 at an anchor."""
        ...

    def forget_beyond(self, index: int, direction: int, last: int) -> None:
        """Remove masks beyond `index`, because the object has ended; at most up to `last`."""
        ...
