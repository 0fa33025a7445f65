"""The cache of embeddings within a memory limit; each segmenter has one.

The key is a hash of the picture, so that runs over the same volume and rollouts on the same picture share embeddings.
On CUDA they stay on the device first, then in main memory. Beyond the limit the least recently used ones are dropped
and computed again when needed, with identical bits: pictures are encoded one at a time, because results in a batch
depend on the batch.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from ibis_agent.segmenter.contract import Embedding

# In half precision a slice takes 2 MiB with MedSAM2 and 0.8 MiB with the demo segmenter.
LIMIT = 2**30
DEVICE_LIMIT = 2**29


class KeptEmbeddings:
    """Embeddings by key.

    Attributes:
        limit: largest size in bytes. device_limit: the part of it that may be on a GPU.
        half: whether slices of stacks are kept in half precision.
        made: number of embeddings computed.
        held: present size in bytes.
    """

    def __init__(self, limit: int = LIMIT, device_limit: int = DEVICE_LIMIT, half: bool = True) -> None:
        self.limit, self.device_limit, self.half = limit, min(device_limit, limit), half
        self.made = self.held = 0
        self._kept: OrderedDict[Hashable, Embedding] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Embedding]) -> Embedding:
        """The embedding of `key`, from `make` if it is not cached. Raises what that raises."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                self.made += 1
                self.held += self._kept[key].nbytes
            self._kept.move_to_end(key)
            self._shrink()
            return self._kept[key]

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._kept.clear()
            self.held = 0

    def _shrink(self) -> None:
        """Enforce the limits; the last used embedding always stays."""
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
    """A hash of a picture's data type, shape and pixels."""
    kind = f"{rgb.dtype} {rgb.shape}".encode()
    return hashlib.blake2b(kind + rgb.tobytes(), digest_size=16).digest()
