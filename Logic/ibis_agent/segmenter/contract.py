"""What a run needs to know of a segmenter: pictures are embedded, prompts become masks, masks go from slice to slice.

The kinds of segmenters that there are lie beside this file, a package each; `segmenter.open` tells them apart. No
torch here: what an embedding holds is its own kind's matter.
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
    """What a segmenter can be asked.

    Attributes:
        clicks: with clicks, in or outside of the object.
        boxes: with a box around the object.
        starting_mask: to go on from a mask that it did not make itself.
        volume: a prompt on one slice gives a mask in all slices at once (3D); without it, the object is followed
            from slice to slice (2D).
    """

    clicks: bool = True
    boxes: bool = False
    starting_mask: bool = False
    volume: bool = False


class Embedding(Protocol):
    """What a segmenter keeps of one picture, so that every prompt on it is cheap."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def on_device(self) -> bool:
        """It takes memory of a GPU."""
        ...

    def off_device(self) -> Embedding:
        """The same in main memory."""
        ...


@dataclass(frozen=True)
class Prediction:
    """A mask and what the next prompt needs of it.

    Attributes:
        mask: (H, W) bool, in the picture's own pixels.
        logits: (S/4, S/4) float32 within ±32, to be passed on as `previous_logits`.
        score: the network's own estimate of the mask's IoU.
        scores: (n,) float32, of all masks that it offered.
    """

    mask: np.ndarray
    logits: np.ndarray
    score: float
    scores: np.ndarray


@packed
@dataclass(frozen=True, eq=False)
class Found:
    """What is known of one slice of a volume.

    Attributes:
        index: the slice.
        mask: (H, W) bool, read-only; kept a bit a pixel, and unpacked whenever it is asked for.
        score: the network's estimate of the mask's IoU, 0 to 1.
        presence: probability that the object is in the slice, from the object score.
        anchor: it was clicked or given, not found from other slices.
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
    """What counts as the object while it is followed from slice to slice.

    Attributes:
        settled_iou, settled_slices: so many masks in a row that are so nearly those of before: what follows would be
            the same too.
        most_anchors: so many clicked slices, the nearest ones, are attended to: a slice costs no more for clicks far
            away.
        least_fit, least_score: carried masks that fit the one beside them less (Dice), or of a lower score, are not
            the object.
    """

    settled_iou: float = 0.985
    settled_slices: int = 2
    most_anchors: int = 8
    least_fit: float = 0.3
    least_score: float = 0.25


class PictureSegmenter(Protocol):
    """Answers prompts on one picture with masks. `identity` holds "name", "sha256", and what else tells it apart."""

    identity: dict[str, str]

    def embed(self, rgb: np.ndarray) -> Any:
        """The Embedding of an (H, W, 3) uint8 picture. Raises InputError, ModelError."""
        ...

    def predict(
        self, embedding: Any, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """The mask for all prompts so far, in their order. Raises InputError, ModelError."""
        ...


class Segmenter(PictureSegmenter, Protocol):
    """A segmenter of pictures and of stacks of slices."""

    @property
    def can(self) -> Abilities: ...

    def started(self, mask: np.ndarray) -> Prediction:
        """An (H, W) bool mask that it did not make, in the form that prompts go on from; for `can.starting_mask`."""
        ...

    def predict_many(
        self,
        embeddings: Sequence[Any],
        clicks: Sequence[Sequence[Prompt]],
        previous_logits: Sequence[np.ndarray | None],
    ) -> list[Prediction]:
        """`predict` for several pictures or several states of one, together, whatever each was prompted with."""
        ...

    def follower(
        self,
        picture_of: PictureOf,
        count: int,
        size: tuple[int, int],
        way: Way = "auto",
        following: Following | None = None,
    ) -> Follower:
        """One object in a stack of slices, of which nothing is known yet.

        Args:
            picture_of: gives a slice as the segmenter is to see it.
            count: slices along the whole axis.
            size: (H, W) of a slice.
            way: how the object goes from slice to slice, for segmenters that know several ways.
            following: what counts as the object on the way; None for the usual.
        """
        ...


class FollowerState(Protocol):
    """All that a follower knows at some time, to come back to; shares everything with its neighbours in time."""

    @property
    def found(self) -> dict[int, Found]: ...

    def pieces(self) -> dict[int, int]:
        """Bytes by `id` of everything that it keeps alive."""
        ...


class Follower(Protocol):
    """One object of a stack, from prompts on some slices (anchors) to masks on all."""

    found: dict[int, Found]
    size: tuple[int, int]
    way: Way

    @property
    def anchors(self) -> list[int]:
        """The slices that were clicked or given, in order."""
        ...

    def state(self) -> Any:
        """A FollowerState: what `restore` takes back. Costs no copies of arrays."""
        ...

    def restore(self, state: Any) -> None: ...

    def predict(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """What the clicks make of a slice, other slices included; changes nothing."""
        ...

    def standing(self, index: int) -> Prediction | None:
        """What is known of a slice in the form that clicks go on from; None where nothing is."""
        ...

    def anchor(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Found:
        """Make a slice an anchor as `predict` answers it."""
        ...

    def anchor_mask(self, index: int, mask: np.ndarray) -> Found:
        """Make a slice an anchor with a given (H, W) mask, which is kept to the pixel."""
        ...

    def begin(self, masks: Mapping[int, np.ndarray]) -> None:
        """What is known before anything was prompted: (H, W) bool masks by slice, each kept to the pixel.

        A single one is an anchor. Of several, prompts on a slice go on from its own mask, and ways from other slices
        end before one that is not empty. Raises what the network raises.
        """
        ...

    def release(self, index: int) -> None:
        """Take an anchor back: its slice is unknown until it is found again."""
        ...

    def follow(
        self, start: int, direction: int, last: int, patience: int | None = None, settle: bool = False
    ) -> Iterator[Found]:
        """Find the object again in the slices after `start` up to `last`, one by one. Raises InputError.

        Args:
            start: an anchor, or a slice that is known.
            direction: +1 or -1.
            last: the last slice to visit, included.
            patience: end after so many slices in a row without the object; None goes on to `last`.
            settle: what is visited was known before: end where it comes out as it was.
        """
        ...

    def missed(self, start: int, direction: int) -> int:
        """How many slices in a row are without the object where a way has got to `start`; 0 at an anchor."""
        ...

    def forget_beyond(self, index: int, direction: int, last: int) -> None:
        """The object has ended: what was found further on is gone."""
        ...
