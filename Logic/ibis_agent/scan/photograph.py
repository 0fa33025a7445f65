"""Reading a PNG or JPEG → a Scan that is one 8-bit RGB picture."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import by, stem
from ibis_agent.scan.geometry import picture_affine
from ibis_agent.scan.picture import LONGEST_RATIO, apply_window, percentile_window
from ibis_agent.scan.scan import Scan

_MOST_PIXELS = 2**26
_CONSTANT = "the picture is constant: there is nothing to see"


def read_photograph(path: Path, series: str | None = None) -> Scan:
    """A PNG or JPEG as 8-bit RGB.

    It is rotated according to its EXIF data, as in viewers, and a mask has the rotated size. Transparent
    parts become black. 16-bit and float grey pictures are windowed by their 1st and 99th
    percentile. Raises InputError.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            size = image.size
            if size[0] * size[1] > _MOST_PIXELS:
                raise InputError("the picture is too large", file=path, value=f"{by(size)} pixels")
            # A camera's JPEG may contain a second, smaller picture (MPO): the first is the photograph.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise InputError("the picture is animated", file=path, remedy="Save one frame as a picture.")
            image.load()
            rgb = _rgb(ImageOps.exif_transpose(image), path)
    except Image.DecompressionBombError as error:
        raise InputError("the picture is too large", file=path, value=str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise InputError(
            "the picture cannot be decoded",
            file=path,
            value=error,
            remedy="It may be cut off; copy it again.",
        ) from error
    return colour_picture(rgb, path)


def colour_picture(rgb: np.ndarray, path: Path) -> Scan:
    """(H, W, 3) uint8 → a Scan of this picture. Raises InputError if it is constant."""
    size = rgb.shape[1], rgb.shape[0]
    short, long = sorted(size)
    if short < 2 or long > LONGEST_RATIO * short:
        raise InputError("the picture is too thin", file=path, value=f"{by(size)} pixels")
    if (rgb == rgb[0, 0]).all():
        raise InputError(_CONSTANT, file=path, value=f"{rgb[0, 0].tolist()} everywhere")
    return Scan(rgb, picture_affine(), "picture", path, stem(path))


def _rgb(image: Any, path: Path) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        window = percentile_window(values)
        if window is None:
            raise InputError(_CONSTANT, file=path, value=f"{values.flat[0]} everywhere")
        return np.repeat(apply_window(values, window)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        from PIL import Image

        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.array(image.convert("RGB"))
