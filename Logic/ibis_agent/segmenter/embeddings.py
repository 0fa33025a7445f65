"""Embeddings of pictures, made once and kept within a stated limit: the one cache of its kind.

Each segmenter has one. A picture is known by its content, so that whoever asks again gets what is there: a run over
slices, the next run over the same volume, rollouts that share a picture. On CUDA embeddings stay first on the device,
then in main memory. Beyond the limit those that were longest unused are let go and made again when they are asked
for, to the same bits: each picture is encoded by itself, since in a batch its last bits would depend on its company.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from ibis_agent.segmenter.contract import Embedding

# In half precision one slice of MedSAM2 takes 2 MiB, one of the demo segmenter 32 KiB.
LIMIT = 2**30
DEVICE_LIMIT = 2**29


class KeptEmbeddings:
    """Embeddings by key.

    Attributes:
        limit, device_limit: bytes that may be kept, the second on a GPU and a part of the first.
        half: slices of stacks are kept in half precision.
        made: how many embeddings were made.
        held: bytes kept now.
    """

    def __init__(self, limit: int = LIMIT, device_limit: int = DEVICE_LIMIT, half: bool = True) -> None:
        self.limit, self.device_limit, self.half = limit, min(device_limit, limit), half
        self.made = self.held = 0
        self._kept: OrderedDict[Hashable, Embedding] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Embedding]) -> Embedding:
        """What is kept under `key`, else what `make` gives. Raises what that raises."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                self.made += 1
                self.held += self._kept[key].nbytes
            self._kept.move_to_end(key)
            self._shrink()
            return self._kept[key]

    def forget(self) -> None:
        """Give all the memory back."""
        with self._lock:
            self._kept.clear()
            self.held = 0

    def _shrink(self) -> None:
        """Down to the limits: off the device first, then let go; the last one used always stays."""
        while self.held > self.limit and len(self._kept) > 1:
            self.held -= self._kept.popitem(last=False)[1].nbytes
        on_device = sum(each.nbytes for each in self._kept.values() if each.on_device)
        for key in list(self._kept)[:-1] if on_device > self.device_limit else ():
            if on_device <= self.device_limit:
                break
            if self._kept[key].on_device:
                on_device -= self._kept[key].nbytes
                self._kept[key] = self._kept[key].off_device()


def key_of(rgb: np.ndarray) -> bytes:
    """The same for the same picture, whoever holds it."""
    kind = f"{rgb.dtype} {rgb.shape}".encode()
    return hashlib.blake2b(kind + rgb.tobytes(), digest_size=16).digest()
