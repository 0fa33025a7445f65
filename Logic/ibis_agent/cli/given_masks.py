"""The masks that a run is given in files, read onto its scan and cut into its slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ibis_agent.cases.chosen_labels import chosen_labels
from ibis_agent.errors import InputError
from ibis_agent.run.given import Given, given
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import Stack


@dataclass(frozen=True)
class MaskFiles:
    """What --start-mask, --start-label, --exclude and --exclude-label say."""

    start: Path | None = None
    label: str | None = None
    exclude: Path | None = None
    exclude_labels: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises InputError for a label without its file."""
        for label, file, option in (
            (self.label, self.start, "start-mask"), (self.exclude_labels, self.exclude, "exclude"),
        ):  # fmt: skip
            if label and file is None:
                what = f"a label is chosen of no file: --{option} is missing"
                raise InputError(what, value=label, remedy=f"Add --{option} FILE.")

    def read(self, scan: Scan) -> GivenVolumes:
        """Both on the scan. Raises InputError naming the file."""
        start = out = None
        if self.start is not None:
            start = chosen_labels(self.start, [self.label] if self.label else [], scan)
            if not start.any():
                raise InputError("the mask to begin from is empty", file=self.start, value=self.label or "")
        if self.exclude is not None:
            out = chosen_labels(self.exclude, self.exclude_labels, scan, several=True)
            if start is not None and self._all_others:
                out = out & ~start
        return GivenVolumes(self, scan, start, out)

    @property
    def _all_others(self) -> bool:
        """The file that the start is in is excluded as a whole: all of its labels but the start's are meant."""
        both = self.start is not None and self.exclude is not None and not self.exclude_labels
        return both and self.start.resolve() == self.exclude.resolve()  # type: ignore[union-attr]

    def names(self) -> tuple[str, str]:
        """Of the start and the exclusion, for people."""
        labels = ", ".join(self.exclude_labels) or ("all other labels" if self._all_others else "")
        start = "" if self.start is None else _name(self.start, self.label or "")
        return start, "" if self.exclude is None else _name(self.exclude, labels)


@dataclass(frozen=True, eq=False)
class GivenVolumes:
    """The masks on their scan: (I, J, K) bool, or (H, W) for a picture; None where none was given."""

    files: MaskFiles
    scan: Scan
    start: np.ndarray | None
    excluded: np.ndarray | None

    def fullest(self, geometry: PictureGeometry) -> int | None:
        """The slice across the geometry's axis where the start is largest; None without one."""
        if self.start is None or self.start.ndim < 3:
            return None
        axes = tuple(axis for axis in range(3) if axis != geometry.axis)
        return int(np.argmax(self.start.sum(axis=axes)))

    def on_slice(self, geometry: PictureGeometry) -> Given:
        """For a slice alone. Raises InputError where the start is not on it."""
        return self._given(_planes(self.start, [geometry]), _planes(self.excluded, [geometry]), geometry)

    def on_stack(self, stack: Stack) -> Given:
        """For the range of a stack, within its region of interest. Raises InputError where the start is not in it."""
        every = [stack.geometry(n) for n in range(stack.first, stack.last + 1)]
        clips = {each.index: stack.inside(each.index) for each in every}
        start = {
            n: mask if clips[n] is None else mask & clips[n] for n, mask in _planes(self.start, every).items()
        }
        return self._given(start, _planes(self.excluded, every), every[0])

    def _given(
        self, start: Mapping[int, np.ndarray], out: Mapping[int, np.ndarray], geometry: PictureGeometry
    ) -> Given:
        made = given(start, out, *self.files.names())
        if self.start is not None and not made.start:
            there = self.start.ndim > 2 and self.start.any(
                axis=tuple(axis for axis in range(3) if axis != geometry.axis)
            )
            where = np.flatnonzero(there)
            remedy = f"It is on slices {where[0]} to {where[-1]}." if where.size else "Exclude less."
            what = "the mask to begin from is not on these slices, or all of it is excluded"
            raise InputError(what, file=self.files.start, remedy=remedy)
        return made


def _planes(mask: np.ndarray | None, geometries: Sequence[PictureGeometry]) -> dict[int, np.ndarray]:
    if mask is None:
        return {}
    return {each.index: mask if mask.ndim == 2 else each.extract(mask) for each in geometries}


def _name(path: Path, label: str) -> str:
    name = path.resolve().name
    return f"{name}, {label}" if label else name
