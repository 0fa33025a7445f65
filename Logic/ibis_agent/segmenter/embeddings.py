"""What the image encoder sees in each slice of a stack: computed once, kept within a stated limit.

Kept in half precision; on CUDA first on the device, then on the host. Beyond the limit the slices that were
longest unused are let go and computed again when they are asked for. Whether a slice is kept or computed again
makes no difference to a single bit of what comes out; so each is encoded by itself, since in a batch a picture's
last bits depend on its company, and a replay, which has other slices, would differ. What is done with the features
is in propagation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ibis_agent.segmenter.sam2.predictor import Segmenter

# One slice of MedSAM2 takes 2 MiB in half precision, one of the demo segmenter 32 KiB.
LIMIT = 2**30
DEVICE_LIMIT = 2**29


@dataclass(frozen=True)
class SliceFeatures:
    """Features of one slice on the segmenter's device, finest first: (1, C, H, W) each, float32."""

    levels: tuple[Tensor, ...]


class FeatureCache:
    """The features of a stack's slices.

    Attributes:
        encoded: how many times a slice went through the encoder.
        held: bytes kept now.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        rgb_of: Callable[[int], np.ndarray],
        limit: int = LIMIT,
        device_limit: int = DEVICE_LIMIT,
        precision: torch.dtype = torch.float16,
    ) -> None:
        """rgb_of: slice index → (H, W, 3) uint8. limit, device_limit: bytes, the second a part of the first."""
        self.segmenter, self._rgb_of = segmenter, rgb_of
        self._limit, self._device_limit = limit, min(device_limit, limit)
        self._precision = precision
        self._kept: OrderedDict[int, tuple[Tensor, ...]] = OrderedDict()
        self._positions: tuple[Tensor, ...] = ()
        self.encoded = 0
        self.held = 0

    @property
    def positions(self) -> tuple[Tensor, ...]:
        """The position encodings of the levels, (1, C, H, W) each: the same for all slices."""
        if not self._positions:
            side = self.segmenter.image_size
            self._encode_picture(np.zeros((side, side, 3), np.uint8))
        return self._positions

    def get(self, index: int) -> SliceFeatures:
        """The features of a slice. Raises what cutting and encoding raise."""
        if index not in self._kept:
            found = self._encode_picture(self._rgb_of(index))
            self.encoded += 1
            self._kept[index] = tuple(level.to(self._precision).clone() for level in found)
            self.held += _bytes(self._kept[index])
        else:
            self._kept.move_to_end(index)
        levels = self._kept[index]
        self._shrink()
        device = self.segmenter.device
        return SliceFeatures(tuple(level.to(device).float() for level in levels))

    @torch.inference_mode()
    def _encode_picture(self, rgb: np.ndarray) -> list[Tensor]:
        segmenter = self.segmenter
        prepared = segmenter.prepare(rgb)[None]
        with segmenter.computing():
            out = segmenter.model.forward_image(prepared)
        if not self._positions:
            self._positions = tuple(each.float().clone() for each in out["vision_pos_enc"])
        return list(out["backbone_fpn"])

    def _shrink(self) -> None:
        """Down to the limits: off the device first, then let go; the last one used always stays."""
        while self.held > self._limit and len(self._kept) > 1:
            _, levels = self._kept.popitem(last=False)
            self.held -= _bytes(levels)
        if self.segmenter.device.type == "cpu":
            return
        on_device = sum(_bytes(levels) for levels in self._kept.values() if levels[0].device.type != "cpu")
        for index in list(self._kept)[:-1]:
            if on_device <= self._device_limit:
                break
            levels = self._kept[index]
            if levels[0].device.type != "cpu":
                on_device -= _bytes(levels)
                self._kept[index] = tuple(level.cpu() for level in levels)


def _bytes(levels: tuple[Tensor, ...]) -> int:
    return sum(level.numel() * level.element_size() for level in levels)
