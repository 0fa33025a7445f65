"""A session on an nnInteractive server: its image and its prompts.

The caller asks for the mask of a list of prompts. The session sends only new prompts, uses the server's undo for the
last one, or starts again. The client renews the lease while the session exists; if it has expired, everything is sent
again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.errors import InputError, ModelError

_REMEMBERED = 6
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Start:
    """A starting mask, (K, H, W) bool. One on a single slice is extended to the others."""

    mask: np.ndarray

    @property
    def slices(self) -> np.ndarray:
        return np.flatnonzero(self.mask.any(axis=(1, 2)))


Asked = tuple[int, Prompt]
"""(slice, click or box)."""


class Session:
    """Masks from `nninteractive-client`, by image and prompts. All errors become ModelError."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._image: object = None
        self._start: Start | None = None
        self._given: tuple[Asked, ...] = ()
        self._known: OrderedDict[tuple[Asked, ...], np.ndarray] = OrderedDict()
        self._shape: tuple[int, int, int] = (0, 0, 0)
        self._remote = self._guarded(self._claim)

    @property
    def licence(self) -> str:
        """The licence of the weights, as the server reports it."""
        said = getattr(self._remote, "license", None)
        return "" if said in (None, "!!MISSING!!") else str(said)

    @property
    def version(self) -> str:
        return str(getattr(self._remote, "INFERENCE_SESSION_VERSION", ""))

    def can(self, interaction: str) -> bool:
        """Whether the weights support "points", "bbox2d" or "lasso"."""
        return bool(self._remote.supported_interactions.get(interaction))

    @property
    def takes_a_start(self) -> bool:
        return bool(self._remote.supports_initial_label)

    def mask(
        self,
        image: object,
        slices: Callable[[], np.ndarray],
        start: Start | None,
        prompts: Sequence[Asked],
    ) -> np.ndarray:
        """The mask after these prompts in order, (K, H, W) bool.

        Args:
            image: identifies the image: another object is another image.
            slices: gives the image, (K, H, W) float32.
            start: the starting mask, recognised by object identity.
        """
        wanted = tuple(prompts)
        with self._lock:
            return self._guarded(lambda: self._mask(image, slices, start, wanted))

    def close(self) -> None:
        self._remote.close()

    def _mask(
        self, image: object, slices: Callable[[], np.ndarray], start: Start | None, wanted: tuple[Asked, ...]
    ) -> np.ndarray:
        from nnInteractive.inference.remote.remote_session import SessionExpiredError

        try:
            try:
                return self._brought(image, slices, start, wanted)
            except SessionExpiredError:
                self._remote.close()
                self._image, self._remote = None, self._claim()
                return self._brought(image, slices, start, wanted)
        except BaseException:
            self._image = None  # the server's state is unknown: the next call sends everything again
            raise

    def _brought(
        self, image: object, slices: Callable[[], np.ndarray], start: Start | None, wanted: tuple[Asked, ...]
    ) -> np.ndarray:
        if image is not self._image:
            self._image = None
            voxels = slices()
            self._shape = voxels.shape
            self._remote.set_image(voxels[None])
            self._remote.set_target_buffer(np.zeros(self._shape, np.uint8))
            self._image, self._start, self._given = image, None, ()
            self._known.clear()
        if start is not self._start:
            self._from_the_start(start)
            self._known.clear()
        if wanted in self._known:
            self._known.move_to_end(wanted)
            return self._unpacked(self._known[wanted])
        if wanted == self._given[:-1] and self._remote.supports_undo and self._remote.undo():
            self._given = wanted
        elif self._given != wanted[: len(self._given)]:
            self._from_the_start(start)
        for each in wanted[len(self._given) :]:
            self._give(each)
            self._given = (*self._given, each)
        self._known[wanted] = np.packbits(self._remote.target_buffer != 0)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return self._unpacked(self._known[wanted])

    def _unpacked(self, packed: np.ndarray) -> np.ndarray:
        count = int(np.prod(self._shape))
        return np.unpackbits(packed, count=count).reshape(self._shape).astype(bool)

    def _from_the_start(self, start: Start | None) -> None:
        self._remote.reset_interactions()
        self._given, self._start = (), None
        if start is None:
            return
        if len(start.slices) == 1 < self._shape[0] and self.can("lasso"):
            self._lasso(start)
        else:
            self._remote.add_initial_seg_interaction(start.mask.astype(np.uint8))
        self._start = start

    def _lasso(self, start: Start) -> None:
        index = int(start.slices[0])
        rows, columns = (np.flatnonzero(start.mask[index].any(axis=axis)) for axis in (1, 0))
        place = [[index, index + 1], *([int(n[0]), int(n[-1]) + 1] for n in (rows, columns))]
        part = start.mask[tuple(slice(a, b) for a, b in place)].astype(np.uint8)
        self._remote.add_lasso_interaction(np.ascontiguousarray(part), True, interaction_bbox=place)

    def _give(self, asked: Asked) -> None:
        index, prompt = asked
        height, width = self._shape[1:]
        if isinstance(prompt, Box):
            edges = [
                [int(prompt.y0 * height), max(int(np.ceil(prompt.y1 * height)), int(prompt.y0 * height) + 1)],
                [int(prompt.x0 * width), max(int(np.ceil(prompt.x1 * width)), int(prompt.x0 * width) + 1)],
            ]
            self._remote.add_bbox_interaction([[index, index + 1], *edges], True)
        elif isinstance(prompt, Click):
            point = (index, *prompt.pixel((height, width)))
            self._remote.add_point_interaction(point, prompt.positive)
        else:
            raise InputError("nnInteractive takes clicks and boxes", value=type(prompt).__name__)

    def _claim(self) -> Any:
        from nnInteractive.inference.remote.remote_session import nnInteractiveRemoteInferenceSession

        return nnInteractiveRemoteInferenceSession(self.address)

    def _guarded(self, act: Callable[[], T]) -> T:
        """Call `act`; errors of client and network become a ModelError without keys and paths."""
        import httpx
        from nnInteractive.inference.remote.remote_session import ServerAtCapacityError

        try:
            return act()
        except ServerAtCapacityError as error:
            remedy = "Wait, or raise its --max-sessions."
            raise ModelError("the nnInteractive server is full", value=self.address, remedy=remedy) from error
        except httpx.HTTPStatusError as error:
            remedy = (
                "The API key is read from NN_INTERACTIVE_API_KEY."
                if error.response.status_code == 401
                else ""
            )
            what = f"the nnInteractive server answered {error.response.status_code}"
            raise ModelError(what, value=self.address, remedy=remedy) from error
        except httpx.HTTPError as error:
            remedy = "Start it: nninteractive-server, or choose another segmenter."
            raise ModelError(
                "the nnInteractive server does not answer", value=self.address, remedy=remedy
            ) from error
        except (ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
            what = "the nnInteractive server's reply was not what its client expects"
            raise ModelError(what, value=f"{self.address}: {type(error).__name__}") from error
