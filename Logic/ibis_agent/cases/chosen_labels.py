"""Selected labels of a label map as one mask on a scan: the mask that a run starts from, or excluded voxels.

    chosen_labels(Path("segmentation.seg.nrrd"), ["liver"], scan)      # (I, J, K) bool

Labels are chosen by number, or by name if there are names: the segments of a .seg.nrrd, a JSON file with the same name
beside the map, or the label table in the header of TotalSegmentator's NIfTI files.
"""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ibis_agent.cases.case import read_labels
from ibis_agent.cases.data import LabelMap, on_scan, read_map, some_of, values_in
from ibis_agent.errors import InputError
from ibis_agent.mask.grid import Misplaced
from ibis_agent.mask.segmentations import numbered, segments_of
from ibis_agent.mask.structures import words_of
from ibis_agent.scan.checks import stem, suffix_of
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.scan import Scan

_LABEL = re.compile(rb'<Label Key="(\d{1,9})"[^>]*>\s*<!\[CDATA\[([^\]]{0,200})\]\]>')
_LARGEST_HEADER = 2**20


def chosen_labels(path: Path, labels: Sequence[str], scan: Scan, several: bool = False) -> np.ndarray:
    """(I, J, K) bool in the scan's index order; (H, W) for a picture.

    Args:
        labels: names or numbers; empty means everything except zero.
        several: without labels, use all labels of a map; otherwise a map with several labels is refused.

    Raises InputError naming the file, the label and the available ones.
    """
    return _Laid(path, scan).mask(labels, several)


def each_label(path: Path, labels: Sequence[str], scan: Scan) -> list[np.ndarray]:
    """One mask for each label, like `chosen_labels`, but the file is read only once. An empty label stands for the only
    label of the file. Raises InputError.
    """
    laid = _Laid(path, scan)
    return [laid.mask([label] if label else [], False) for label in labels]


def mask_of_file(path: Path, label: str | None = None) -> tuple[np.ndarray, np.ndarray | None, str]:
    """(mask, affine, labels) on the file's own grid: (I, J, K) or (H, W) bool; (4, 4), None for a picture; and the
    labels that it joins, if these are several and none was chosen.

    Raises InputError naming the file, the label and the available ones.
    """
    laid = _Laid(path, None)
    numbers = laid.numbers()
    joined = numbers if label is None and len(numbers) > 1 else set()
    mask, affine = laid.mask([] if label is None else [label], True), laid.affine
    if affine is None and mask.ndim == 3:
        affine = load_scan(path).affine  # an archive has one geometry for images and labels
    return mask, affine, some_of(joined)


class _Laid:
    """A label map on the grid of a scan, or on its own. Raises InputError naming the file."""

    def __init__(self, path: Path, scan: Scan | None) -> None:
        self._path, self._held = path, read_map(path)
        self.affine = self._held.affine
        try:
            self._values = self._held.labels if scan is None else on_scan(self._held, scan, path)
        except Misplaced as error:
            remedy = "Give a mask on the grid of this scan."
            raise InputError(str(error), file=path, remedy=remedy) from error
        self._names = names_of(path)
        self._there = values_in(self._values)

    def numbers(self) -> set[int]:
        """The labels that occur; of a .seg.nrrd the segments, which may share a value where they overlap."""
        if not self._held.codes:
            return self._there
        return {n for n in self._names if set(_values(self._held, n)) & self._there}

    def mask(self, labels: Sequence[str], several: bool) -> np.ndarray:
        held, names, there = self._held, self._names, self._there
        if not labels:
            if len(there) > 1 and min(there) < 0:
                raise InputError(
                    "is not a mask: it has negative values", file=self._path, value=some_of(there)
                )
            numbers = self.numbers()
            if len(numbers) > 1 and not several:
                said = ", ".join(f"{n} ({names[n]})" if n in names else str(n) for n in sorted(numbers)[:12])
                remedy = f"Choose one of: {said}{', …' if len(numbers) > 12 else ''}."
                raise InputError(
                    "the mask has several labels", file=self._path, value=some_of(there), remedy=remedy
                )
            return np.asarray(self._values != 0)
        values: set[int] = set()
        known = set(names) if held.codes else there
        for label in labels:
            values.update(_values(held, _number(label, names, known, self._path)))
        return np.isin(self._values, sorted(values))


def names_of(path: Path) -> dict[int, str]:
    """The label names in the file; may be empty. Raises InputError."""
    suffix = suffix_of(path)
    if suffix == ".seg.nrrd":
        return {n: each.name for n, each in numbered(segments_of(path)).items()}
    beside = path.with_name(f"{stem(path)}.json")
    if beside.is_file():
        # Other programs use a file with this name for a scan's settings, not for a label table.
        with contextlib.suppress(InputError):
            return {n: name for name, numbers in read_labels(beside).items() for n in numbers}
    if suffix not in (".nii", ".nii.gz"):
        return {}
    try:
        with gzip.open(path) if suffix == ".nii.gz" else open(path, "rb") as stream:
            head = stream.read(_LARGEST_HEADER)
    except (OSError, EOFError) as error:
        raise InputError("cannot be read", file=path, value=str(error)) from error
    return {int(key): name.decode("utf-8", "replace").strip() for key, name in _LABEL.findall(head)}


def _number(label: str, names: dict[int, str], known: set[int], path: Path) -> int:
    by_name = [n for n, name in names.items() if words_of(name) == words_of(label)]
    if by_name:
        return by_name[0]
    if label.strip().isdecimal() and int(label) in known:
        return int(label)
    said = [names.get(n, str(n)) for n in sorted(known)]
    remedy = f"It has: {', '.join(said[:12])}{', …' if len(said) > 12 else ''}." if said else "It is empty."
    raise InputError("the mask has no such label", file=path, value=label, remedy=remedy)


def _values(held: LabelMap, number: int) -> tuple[int, ...]:
    return held.codes.get(number, (number,))
