"""The masks given to a run as files: read, checked against its scan, and cut into its slices, for each structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.cases.chosen_labels import chosen_labels, each_label, names_of
from ibis_agent.errors import InputError
from ibis_agent.mask.structures import called, same_name, words_of
from ibis_agent.run.given import Given, given
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import Stack

_EACH = "Name a file for each: --start-mask liver=FILE."


@dataclass(frozen=True)
class MaskFiles:
    """The values of --start-mask, --start-label, --exclude and --exclude-label.

    start: (structure, file); an empty structure stands for all structures of the run.
    """

    start: tuple[tuple[str, Path], ...] = ()
    label: str | None = None
    exclude: Path | None = None
    exclude_labels: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.start or self.exclude)

    def to_json(self) -> dict[str, Any] | None:
        """Plain values; None if there are no masks."""
        said = {"start": [[name, str(path)] for name, path in self.start], "label": self.label}
        out = {"exclude": str(self.exclude or "") or None, "exclude_labels": list(self.exclude_labels)}
        return {key: value for key, value in {**said, **out}.items() if value} or None

    def check(self, count: int = 1) -> None:
        """Raises InputError for options that do not fit together. count: number of structures of the run."""
        for label, file, option in (
            (self.label, self.start, "start-mask"), (self.exclude_labels, self.exclude, "exclude"),
        ):  # fmt: skip
            if label and not file:
                what = f"a label is given without a file: --{option} is missing"
                raise InputError(
                    what,
                    value=", ".join(label if isinstance(label, tuple) else [label]),
                    remedy=f"Add --{option} FILE.",
                )
        named = [words_of(name) for name, _ in self.start]
        if len(set(named)) < len(named):
            twice = next(
                path for (name, path), each in zip(self.start, named, strict=True) if named.count(each) > 1
            )
            raise InputError("two masks are given for one structure", file=twice, remedy=_EACH)
        if self.label and count > 1:
            raise InputError(
                "one label cannot be used for several structures", value=self.label,
                remedy="Leave --start-label out: each structure starts from the label with its name.",
            )  # fmt: skip

    def read(self, scan: Scan, structures: Sequence[str] = ("",)) -> GivenVolumes:
        """Read the masks for structures with these names. Raises InputError naming the file."""
        self.check(len(structures))
        chosen = self._chosen(structures)
        starts = [None] * len(structures) if not self.start else self._starts(scan, chosen)
        outs: list[np.ndarray | None] = [None] * len(structures)
        if self.exclude is not None:
            out = chosen_labels(self.exclude, self.exclude_labels, scan, several=True)
            outs = [
                out if start is None or not self._all_others(part) else out & ~start
                for part, start in zip(chosen, starts, strict=True)
            ]
        names = ["" if part is None else _name(*part) for part in chosen]
        excluded = [self._excluded_name(part) for part in chosen]
        return GivenVolumes(scan, starts, outs, names, excluded)

    def _chosen(self, structures: Sequence[str]) -> list[tuple[Path, str] | None]:
        """(file, label) to start from, for each structure; None without one."""
        found: list[tuple[Path, str] | None] = []
        for name in structures:
            own = [path for said, path in self.start if said and same_name(said, name)]
            common = [path for said, path in self.start if not said]
            path = next(iter(own or common), None)
            label = self.label or ""
            if path is not None and not label and (own or len(structures) > 1):
                label = _label_of(name, path, alone=bool(own))
            found.append(None if path is None else (path, label))
        for said, path in self.start:
            if said and not any(same_name(said, name) for name in structures):
                raise InputError(
                    "the run has no structure with this name", file=path, value=said,
                    remedy=f"Its structures: {', '.join(structures)}.",
                )  # fmt: skip
        return found

    def _starts(self, scan: Scan, chosen: Sequence[tuple[Path, str] | None]) -> list[np.ndarray | None]:
        found: list[np.ndarray | None] = [None] * len(chosen)
        for path in dict.fromkeys(part[0] for part in chosen if part is not None):
            here = [n for n, part in enumerate(chosen) if part is not None and part[0] == path]
            labels = [chosen[n][1] for n in here]  # type: ignore[index]
            for n, mask in zip(here, each_label(path, labels, scan), strict=True):
                found[n] = mask
        if not any(mask is not None and mask.any() for mask in found):
            path, label = next(part for part in chosen if part is not None)
            raise InputError("the mask to start from is empty", file=path, value=label or None)
        return found

    def _excluded_name(self, part: tuple[Path, str] | None) -> str:
        labels = ", ".join(self.exclude_labels) or ("all other labels" if self._all_others(part) else "")
        return "" if self.exclude is None else _name(self.exclude, labels)

    def _all_others(self, part: tuple[Path, str] | None) -> bool:
        """If the same file is given for --exclude without a label, all labels except the start's are excluded."""
        both = part is not None and self.exclude is not None and not self.exclude_labels
        return both and part[0].resolve() == self.exclude.resolve()  # type: ignore[index, union-attr]


@dataclass(frozen=True, eq=False)
class GivenVolumes:
    """The masks on the grid of their scan, by structure: (I, J, K) bool, or (H, W) for a picture; None without one."""

    scan: Scan
    starts: Sequence[np.ndarray | None]
    excluded: Sequence[np.ndarray | None]
    names: Sequence[str]
    excluded_names: Sequence[str]

    def fullest(self, geometry: PictureGeometry) -> int | None:
        """Index of the slice, along the geometry's axis, where the starts are largest; None without a start."""
        known = [each for each in self.starts if each is not None and each.ndim > 2]
        if not known:
            return None
        axes = tuple(axis for axis in range(3) if axis != geometry.axis)
        return int(np.argmax(sum(each.sum(axis=axes) for each in known)))

    def on_slice(self, geometry: PictureGeometry) -> tuple[Given, ...]:
        """The masks on a single slice. Raises InputError if all starts are empty there."""
        return self._given([geometry], lambda index, mask: mask)

    def on_stack(self, stack: Stack) -> tuple[Given, ...]:
        """The masks in the range and region of interest of a stack. Raises InputError if all starts are empty there."""

        def inside(index: int, mask: np.ndarray) -> np.ndarray:
            clip = stack.inside(index)
            return mask if clip is None else mask & clip

        return self._given([stack.geometry(n) for n in range(stack.first, stack.last + 1)], inside)

    def _given(self, geometries: Sequence[PictureGeometry], inside: Any) -> tuple[Given, ...]:
        made = []
        for start, out, *names in zip(
            self.starts, self.excluded, self.names, self.excluded_names, strict=True
        ):
            shown = {n: inside(n, mask) for n, mask in _planes(start, geometries).items()}
            made.append(given(shown, _planes(out, geometries), *names))
        first = next((n for n, start in enumerate(self.starts) if start is not None), None)
        if first is not None and not any(each.start for each in made):
            there = self.starts[first]
            assert there is not None
            axes = tuple(axis for axis in range(3) if axis != geometries[0].axis)
            where = np.flatnonzero(there.any(axis=axes)) if there.ndim > 2 else np.zeros(0)
            remedy = f"It covers slices {where[0]} to {where[-1]}." if where.size else "Exclude less."
            what = "the mask to start from is not on these slices, or is excluded entirely"
            raise InputError(what, value=self.names[first], remedy=remedy)
        return tuple(made)


def named_file(text: str) -> tuple[str, Path]:
    """(structure, file) from `FILE` or `STRUCTURE=FILE` of the command line."""
    name, equals, path = text.partition("=")
    if not equals or not name.strip() or not path or "/" in name or "\\" in name or Path(text).exists():
        return "", Path(text)
    return name.strip(), Path(path)


def _planes(mask: np.ndarray | None, geometries: Sequence[PictureGeometry]) -> Mapping[int, np.ndarray]:
    if mask is None:
        return {}
    return {each.index: mask if mask.ndim == 2 else each.extract(mask) for each in geometries}


def _label_of(structure: str, path: Path, alone: bool) -> str:
    """The label for a structure. alone: the file was given for this structure only, so it needs no names.

    Raises InputError, which lists the available names.
    """
    names = list(names_of(path).values())
    found = called(structure, names)
    if found or alone:
        return found
    known = ", ".join(names[:12]) or "its labels have no names"
    raise InputError(f"the mask has no label for {structure}", file=path, value=known, remedy=_EACH)


def _name(path: Path, label: str) -> str:
    name = path.resolve().name
    return f"{name}, {label}" if label else name
