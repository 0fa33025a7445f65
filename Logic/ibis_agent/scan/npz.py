"""Reading MedSAM2-style .npz archives → a Scan."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import check_kind, damaged, native, stem
from ibis_agent.scan.geometry import MOST_VOXELS, check_affine
from ibis_agent.scan.scan import Scan


def read_npz(path: Path, series: str | None = None) -> Scan:
    """A MedSAM2-style archive: `imgs` (slices, H, W), `spacing` (x, y, z) mm, and `direction` and `origin`
    (LPS).

    The voxels come out as (I, J, K) with i along W. 8-bit images are shown unchanged: they were windowed
    before. Raises InputError.
    """
    wanted = {"imgs": True, "spacing": True, "direction": False, "origin": False}
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for key, needed in wanted.items():
                if f"{key}.npy" in names:
                    found[key] = _member(archive, f"{key}.npy", path)
                elif needed:
                    raise InputError(
                        f"the archive contains no array `{key}`",
                        file=path,
                        value=", ".join(sorted(names))[:120],
                        remedy="A MedSAM2-style archive contains imgs (slices, H, W) and spacing (x, y, z).",
                    )
    except InputError:
        raise
    except Exception as error:  # numpy evaluates the header as a Python literal, with any of its errors
        raise damaged(path, error) from error
    images = found["imgs"]
    check_kind(images.dtype, path)
    if images.ndim != 3:
        raise InputError(
            "`imgs` is not (slices, H, W)", file=path, value=images.shape, remedy="Save one grey volume."
        )
    spacing = _numbers(found["spacing"], 3, "spacing", path)
    direction = _numbers(found.get("direction", np.eye(3)), 9, "direction", path).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = _numbers(found.get("origin", np.zeros(3)), 3, "origin", path)
    affine[:2] *= -1
    window = (0.0, 255.0) if images.dtype == np.uint8 else None
    return Scan(
        native(images.transpose()), check_affine(affine, path), "volume", path, stem(path), window=window
    )


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """One array, after checking its header against its length in the archive."""
    information = archive.getinfo(name)
    with archive.open(information) as stream:
        version = np.lib.format.read_magic(stream)
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
        if kind.hasobject:
            raise InputError(f"`{name}` contains Python objects, which are never loaded", file=path)
        if min(shape, default=1) < 1:
            raise InputError(f"`{name}` is empty", file=path, value=shape)
        length = stream.tell() + math.prod(shape) * kind.itemsize
    if math.prod(shape) > MOST_VOXELS or length != information.file_size:
        raise InputError(
            f"`{name}` does not have the length in its header",
            file=path,
            value=shape,
            remedy="Copy the file again.",
        )
    with archive.open(information) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _numbers(array: np.ndarray, count: int, name: str, path: Path) -> np.ndarray:
    if array.size != count or array.dtype.kind not in "iuf":
        raise InputError(f"`{name}` is not {count} numbers", file=path, value=array.tolist())
    return array.astype(np.float64).ravel()
