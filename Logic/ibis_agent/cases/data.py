"""A case's voxels: the scan and its labels, read together, checked, and cut in the same way.

All problems with the contents are found here, once, before any slow work: see `Problem`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ibis_agent.cases.case import ANY, Case, Problem
from ibis_agent.errors import IbisError, InputError
from ibis_agent.mask.grid import Misplaced, laid_on, size_text
from ibis_agent.mask.segmentations import read_segmentation, segments_of
from ibis_agent.scan.checks import suffix_of, whole_numbers
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.load import load_labels, load_scan
from ibis_agent.scan.scan import Scan

_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(eq=False)
class LoadedCase:
    """A case with consistent data.

    Attributes:
        case: its description.
        scan: the scan.
        labels: (I, J, K) in the scan's index order, integers; (H, W) for a picture.
        structures: name → its values, for structures that occur in the labels.
        absent: names of the labelling that do not occur here.
    """

    case: Case
    scan: Scan
    labels: np.ndarray
    structures: dict[str, tuple[int, ...]]
    absent: tuple[str, ...]

    def truth(self, geometry: PictureGeometry, name: str) -> np.ndarray:
        """(H, W) bool mask of the structure `name` in the picture with this geometry; empty if absent."""
        plane = self.labels if self.scan.kind == "picture" else geometry.extract(self.labels)
        values = self.structures.get(name, ())
        return plane != 0 if ANY in values else np.isin(plane, values)


def load_case(
    case: Case, keep_empty: bool = False, scan: Scan | None = None
) -> tuple[LoadedCase | None, list[Problem]]:
    """The case's data, or None; and its problems.

    If the names were given for this case only and one of them does not occur, that is a problem of kind "label": the
    case is used without this structure.

    Args:
        keep_empty: a mask without any structure is not a problem, but an example of absence.
        scan: the picture, if it has already been read.
    """

    def problem(kind: str, file: Path, text: str, skipped: bool = True) -> Problem:
        return Problem(kind, case.id, str(file), text, skipped)

    file = case.image
    try:
        scan = load_scan(file) if scan is None else scan
        file = case.mask
        mask = read_map(file, case.reverse)
    except IbisError as error:
        # Without the path: the problem already names the file.
        kind = "nan" if "NaN" in str(error) else "unreadable"
        return None, [problem(kind, file, str(type(error)(error.problem, value=error.value)))]
    except (OSError, MemoryError) as error:
        return None, [problem("unreadable", file, f"cannot be read: {error}")]
    if scan.voxels.dtype.kind == "f" and not np.isfinite(scan.voxels).all():
        bad = int(scan.voxels.size - np.count_nonzero(np.isfinite(scan.voxels)))
        return None, [problem("nan", case.image, f"{bad} voxels are not numbers (NaN or infinite)")]
    try:
        labels = on_scan(mask, scan, case.mask)
    except Misplaced as error:
        return None, [problem(error.kind, case.mask, str(error))]
    there = values_in(labels)
    structures: dict[str, tuple[int, ...]] = {}
    for name, numbers in case.labels.items():
        meant = [code for number in numbers for code in mask.codes.get(number, (number,))]
        values = tuple(v for v in dict.fromkeys(meant) if v in there or (v == ANY and there))
        if values:
            structures[name] = values
    missing = tuple(name for name in case.structures if name not in structures)
    if not structures and not keep_empty:
        what = f"none of its values ({some_of(there)}) has a name" if there else "the mask is empty"
        return None, [problem("names" if there else "empty", case.mask, what)]
    problems = []
    if case.own_labels:
        problems = [
            problem("label", case.mask, f"the mask contains no {name}", skipped=False) for name in missing
        ]
        missing = ()  # the labelling itself is doubtful
    return LoadedCase(case, scan, labels, structures, missing), problems


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Labels as stored in a file.

    Attributes:
        labels: (I, J, K) integers, or (H, W) for a picture.
        affine: (4, 4) voxel → RAS mm; None for a picture or an .npz.
        codes: segment number → its values in `labels`, see mask.segmentations; empty for a plain label map.
        part: the labels may cover only a part of the scan's grid.
    """

    labels: np.ndarray
    affine: np.ndarray | None
    codes: dict[int, tuple[int, ...]]
    part: bool = False


def read_map(path: Path, reverse: bool = False) -> LabelMap:
    """Read a mask file, or all segments of a .seg.nrrd. reverse: see `read_mask`. Raises InputError."""
    if suffix_of(path) == ".seg.nrrd" and segments_of(path):
        held = read_segmentation(path)
        labels = (held.labels == 0).astype(np.uint8) if reverse else held.labels
        return LabelMap(labels, held.affine, {} if reverse else held.codes, part=not reverse)
    return LabelMap(*read_mask(path, reverse), {})


def on_scan(mask: LabelMap, scan: Scan, path: Path) -> np.ndarray:
    """The labels in the scan's own index order. Raises Misplaced."""
    if mask.affine is None or scan.kind == "picture":
        size = scan.voxels.shape[:2] if scan.kind == "picture" else scan.voxels.shape
        if mask.labels.shape != size:
            raise Misplaced("size", size_text(mask.labels.shape, size))
        return mask.labels
    target = scan.affine
    if scan.place is not None and scan.place.itk and suffix_of(path) not in (".nii", ".nii.gz"):
        # Programs based on ITK write masks at ITK's position of the scan.
        target = np.reshape(scan.place.itk, (4, 4))
    return laid_on(mask.labels, mask.affine, target, scan.voxels.shape, mask.part)


def values_in(labels: np.ndarray) -> set[int]:
    """All values except zero; computed slice by slice, so that a large map is not copied."""
    found: set[int] = set()
    for part in np.moveaxis(labels, -1, 0) if labels.ndim > 2 else [labels]:
        found.update(int(value) for value in np.unique(part))
    return found - {0}


def read_mask(path: Path, reverse: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """(labels, affine): integers (I, J, K) in the file's index order and the (4, 4) affine to RAS mm; for a picture
    (H, W) and None.

    reverse: zero is inside, everything else outside. Raises InputError.
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
    """A palette's indices, or a grey picture's values; for a colour picture, everything that is not black."""
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
    if lossy:  # compression leaves a halo around black and white regions
        values = np.where(values > 127, 255, 0)
    return values.astype(np.int32) if values.dtype.kind == "b" else values


def _archive_labels(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as held:
            if "gts" not in held:
                raise InputError("the archive contains no array `gts`", file=path)
            return np.asarray(held["gts"]).transpose()
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError("the archive cannot be read", file=path, value=error) from error


def some_of(values: set[int]) -> str:
    shown = sorted(values)[:6]
    return ", ".join(map(str, shown)) + (", …" if len(values) > len(shown) else "")
