"""A case's voxels: the scan and its labels read together, checked, and cut alike.

Everything that is wrong with the contents is found here, once, before any slow work: see `Problem`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.cases.case import ANY, Case, Problem
from ibis_agent.errors import IbisError, InputError
from ibis_agent.scan.checks import suffix_of, whole_numbers
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.load import load_labels, load_scan
from ibis_agent.scan.scan import Scan

_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(eq=False)
class LoadedCase:
    """A case whose data hold together.

    Attributes:
        case: what was read.
        scan: as ibis_agent reads it.
        labels: (I, J, K) in the scan's index order, integers; (H, W) for a picture.
        structures: name → its values, for all that occur in the labels.
        absent: names that belong to the labelling and do not occur here.
    """

    case: Case
    scan: Scan
    labels: np.ndarray
    structures: dict[str, tuple[int, ...]]
    absent: tuple[str, ...]

    def truth(self, geometry: PictureGeometry, name: str) -> np.ndarray:
        """(H, W) bool: the structure `name` in the picture with this geometry; empty where it is absent."""
        plane = self.labels if self.scan.kind == "picture" else geometry.extract(self.labels)
        values = self.structures.get(name, ())
        return plane != 0 if ANY in values else np.isin(plane, values)


def load_case(
    case: Case, keep_empty: bool = False, scan: Scan | None = None
) -> tuple[LoadedCase | None, list[Problem]]:
    """The case's data, or None; and what is wrong with them.

    A name that was given for this case alone but does not occur is a problem of kind "label": the case is
    used without it. keep_empty: a mask without any structure is no problem, the case shows what absence
    looks like. scan: the picture, where it was read before.
    """

    def problem(kind: str, file: Path, text: str, skipped: bool = True) -> Problem:
        return Problem(kind, case.id, str(file), text, skipped)

    read: dict[str, Any] = {} if scan is None else {"scan": scan}
    for what, file in (("scan", case.image), ("labels", case.mask))[len(read) :]:
        try:
            read[what] = load_scan(file) if what == "scan" else read_mask(file, case.reverse)
        except IbisError as error:
            # Said without the path: the problem names the file.
            kind = "nan" if "NaN" in str(error) else "unreadable"
            return None, [problem(kind, file, str(type(error)(error.problem, value=error.value)))]
        except (OSError, MemoryError) as error:
            return None, [problem("unreadable", file, f"cannot be read: {error}")]
    scan, (labels, affine) = read["scan"], read["labels"]
    assert scan is not None
    size = scan.voxels.shape[:2] if scan.kind == "picture" else scan.voxels.shape
    if labels.shape != size:
        text = f"the mask has the size {_by(labels.shape)}, the picture {_by(size)}"
        return None, [problem("size", case.mask, text)]
    if scan.voxels.dtype.kind == "f" and not np.isfinite(scan.voxels).all():
        bad = int(scan.voxels.size - np.count_nonzero(np.isfinite(scan.voxels)))
        return None, [problem("nan", case.image, f"{bad} voxels are not numbers (NaN or infinite)")]
    if affine is not None and scan.kind == "volume":
        apart = _apart(scan.affine, affine, size)
        if apart > 0.5:
            text = f"the mask lies {apart:.1f} voxels away from the picture"
            return None, [problem("place", case.mask, text)]
    there = {int(value) for value in np.unique(labels)} - {0}
    structures: dict[str, tuple[int, ...]] = {}
    for name in case.structures:
        values = tuple(
            v for v, n in case.labels.items() if n == name and (v in there or (v == ANY and there))
        )
        if values:
            structures[name] = values
    missing = tuple(name for name in case.structures if name not in structures)
    if not structures and not keep_empty:
        what = f"none of its values ({_some(there)}) has a name" if there else "the mask is empty"
        return None, [problem("names" if there else "empty", case.mask, what)]
    problems = []
    if case.own_labels:
        problems = [
            problem("label", case.mask, f"the mask holds no {name}", skipped=False) for name in missing
        ]
        missing = ()  # the labelling itself is in doubt
    return LoadedCase(case, scan, labels, structures, missing), problems


def read_mask(path: Path, reverse: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """(labels, affine): integers, (I, J, K) in the file's index order with its (4, 4) affine to RAS mm; or
    (H, W) of a picture without one.

    reverse: zero is inside and everything else outside. Raises InputError.
    """
    if suffix_of(path) in _PICTURES:
        labels, affine = _picture_labels(path), None
    elif suffix_of(path) == ".npz":
        labels, affine = _archive_labels(path), None
    else:
        scan = load_labels(path)
        labels, affine = scan.voxels, scan.affine
    labels = whole_numbers(labels, path)
    return ((labels == 0).astype(np.uint8) if reverse else labels), affine


def _picture_labels(path: Path) -> np.ndarray:
    """A palette's indices, a grey picture's values; of a colour picture, what is not black."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            opened.load()
            lossy = opened.format == "JPEG"
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("LA", "RGBA"):
                image = image.convert("L" if image.mode == "LA" else "RGB")
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError("the mask cannot be decoded", file=path, value=error) from error
    if values.ndim == 3:
        same = (values == values[:, :, :1]).all()
        values = values[:, :, 0] if same else values.max(axis=2)
    if lossy:  # compression leaves a halo around what was black and white
        values = np.where(values > 127, 255, 0)
    return values.astype(np.int32) if values.dtype.kind == "b" else values


def _archive_labels(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as held:
            if "gts" not in held:
                raise InputError("the archive has no array `gts`", file=path)
            return np.asarray(held["gts"]).transpose()
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError("the archive cannot be read", file=path, value=error) from error


def _apart(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far the farthest corner of the volume moves from one affine to the other, in voxels."""
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape])).reshape(3, -1)
    moved = (a[:3, :3] - b[:3, :3]) @ corners + (a[:3, 3:] - b[:3, 3:])
    return float(np.linalg.norm(moved, axis=0).max() / np.linalg.norm(a[:3, :3], axis=0).min())


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _some(values: set[int]) -> str:
    shown = sorted(values)[:6]
    return ", ".join(map(str, shown)) + (", …" if len(values) > len(shown) else "")
