"""A picture → scaled, normalised patches for Qwen2.5-VL, with PIL and numpy alone.

Equal to transformers' processor for this family, which takes seconds to import and mostly needs torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.folder import read_json

_THINNEST = 200
_REMEDY = "Take it from the model that this one was fine-tuned from."


@dataclass(frozen=True)
class PictureProcessor:
    """How pictures are prepared.

    Attributes:
        patch_size: side of a patch, in pixels.
        merge_size: merge_size × merge_size patches become one token.
        temporal_patch_size: how often a still picture is repeated.
        least, most: the range of pixels that a picture is scaled into, keeping the aspect ratio as far as whole tokens
            allow.
        mean, std: of red, green and blue, for values from 0 to 1.
        resample: the number of PIL's filter.
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    least: int = 56 * 56
    most: int = 28 * 28 * 1280
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resample: int = 3

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) in pixels that a picture is scaled to. Raises InputError for a very thin one."""
        if max(height, width) > _THINNEST * min(height, width):
            raise InputError(
                "the picture is too thin for the policy",
                value=f"{width} × {height} pixels",
                remedy="Choose another plane or a larger region.",
            )
        side = self.patch_size * self.merge_size
        sides = [round(each / side) * side for each in (height, width)]
        if math.prod(sides) > self.most:
            scale = math.sqrt(height * width / self.most)
            sides = [max(side, math.floor(each / scale / side) * side) for each in (height, width)]
        elif math.prod(sides) < self.least:
            scale = math.sqrt(self.least / (height * width))
            sides = [math.ceil(each * scale / side) * side for each in (height, width)]
        return sides[0], sides[1]

    def patches_of(self, height: int, width: int) -> int:
        """The number of patches of a picture of this size in pixels."""
        return math.prod(self.size_of(height, width)) // self.patch_size**2

    def scaled(self, picture: np.ndarray) -> np.ndarray:
        """An (H, W, 3) uint8 picture in the size that the policy sees: (h, w, 3) uint8."""
        height, width = self.size_of(*picture.shape[:2])
        if picture.shape[:2] == (height, width):
            return picture
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling(self.resample)))

    def patches(self, picture: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
        """((P, 3·t·p·p) float32 patches ordered by token, their number in time, height and width).

        Raises InputError if the picture is not (H, W, 3) uint8, or is very thin.
        """
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise InputError(
                "a picture must be (height, width, 3) of 8 bits", value=f"{picture.shape} {picture.dtype}"
            )
        seen = self.scaled(picture)
        # A table of 256 values per colour is faster than computing each pixel.
        grey = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        table = (grey[:, None] - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        p, m, t = self.patch_size, self.merge_size, self.temporal_patch_size
        rows, columns = seen.shape[0] // p, seen.shape[1] // p
        cut = seen.reshape(rows // m, m, p, columns // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        colours = np.stack([table[cut[..., n, :, :], n] for n in range(3)], axis=-3)
        repeated = np.repeat(colours[..., None, :, :], t, axis=-3)
        return repeated.reshape(rows * columns, 3 * t * p * p), (1, rows, columns)


def load_processor(folder: Path, vision: Mapping[str, Any], card: ModelCard) -> PictureProcessor:
    """The picture settings of a policy's folder; the card's limits take precedence. Raises ModelError."""
    file, values = folder / "preprocessor_config.json", {}
    if file.is_file():
        values = read_json(file)
    elif (folder / "processor_config.json").is_file():
        file = folder / "processor_config.json"
        values = read_json(file).get("image_processor") or {}
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if values.get(step, True) is not True:
            raise ModelError(f"skips a required step: {step}", file=file, value=values[step], remedy=_REMEDY)
    plain = PictureProcessor()
    size = values.get("size") or {}
    least = card.min_pixels or values.get("min_pixels") or size.get("shortest_edge") or plain.least
    most = card.max_pixels or values.get("max_pixels") or size.get("longest_edge") or plain.most
    try:
        if not 0 < least <= most:
            raise ModelError(
                "the minimum picture size is above the maximum",
                file=folder,
                value=f"{least} and {most} pixels",
            )
        processor = PictureProcessor(
            int(values.get("patch_size") or plain.patch_size),
            int(values.get("merge_size") or plain.merge_size),
            int(values.get("temporal_patch_size") or plain.temporal_patch_size),
            int(least),
            int(most),
            _three(values.get("image_mean") or plain.mean),
            _three(values.get("image_std") or plain.std),
            int(Image.Resampling(int(values.get("resample") or plain.resample))),
        )
    except (TypeError, ValueError) as error:
        raise ModelError("has invalid picture settings", file=file, value=error, remedy=_REMEDY) from error
    for key, theirs in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):
        if vision.get(theirs, getattr(processor, key)) != getattr(processor, key):
            raise ModelError(
                f"picture settings and configuration disagree on the {key}",
                file=folder,
                value=f"{getattr(processor, key)} and {vision[theirs]}",
                remedy="Take both from the same model.",
            )
    return processor


def _three(values: Any) -> tuple[float, ...]:
    red, green, blue = (float(each) for each in values)
    return red, green, blue
