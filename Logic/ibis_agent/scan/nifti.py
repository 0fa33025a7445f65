"""Reading NIfTI → a Scan."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import (
    check_kind,
    check_length,
    check_size,
    damaged,
    native,
    stem,
    suffix_of,
    three_axes,
)
from ibis_agent.scan.geometry import check_affine
from ibis_agent.scan.scan import Scan

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def read_nifti(path: Path, series: str | None = None) -> Scan:
    """A NIfTI file in its own index order, with its own affine (sform before qform, as nibabel has it).

    Raises InputError.
    """
    packed = suffix_of(path) == ".nii.gz"
    opened: Any = gzip.open if packed else open
    try:
        with opened(path, "rb") as stream:
            image = _image(stream)
            kind = image.header.get_data_dtype()
            shape = three_axes(image.shape, path)
            check_kind(kind, path)
            check_size(shape, path)
            check_length(path, math.prod(shape) * kind.itemsize, packing=1032 if packed else 1)
            affine = np.array(image.affine, dtype=np.float64)
            affine[:3] *= _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
            affine = check_affine(affine, path)
            source = image.dataobj
            plain = source.slope == 1 and source.inter == 0
            array = source.get_unscaled() if plain else np.asarray(source, dtype=np.float32)
            while stream.read(2**20):
                pass  # to the end, where gzip compares its checksum
    except InputError:
        raise
    except Exception as error:  # nibabel raises a dozen unrelated kinds on damaged files
        raise damaged(path, error) from error
    return Scan(native(array.reshape(shape)), affine, "volume", path, stem(path))


def _image(stream: Any) -> Any:
    """The nibabel image, its voxels not read yet."""
    import nibabel

    length = stream.read(4)
    stream.seek(0)
    second = 540 in (int.from_bytes(length, order) for order in ("little", "big"))
    return (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_stream(stream)
