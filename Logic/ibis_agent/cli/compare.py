"""`ibis-agent compare A B`: compare two runs, or a run and a reference mask, in figures and side by side on a page."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.cases.chosen_labels import mask_of_file
from ibis_agent.cli import terminal
from ibis_agent.cli.mask_paths import spare_other_kinds
from ibis_agent.cli.record_path import TRAJECTORY_NAME, record_in
from ibis_agent.cli.several_results import STRUCTURES_NAME
from ibis_agent.errors import InputError
from ibis_agent.mask.comparison import compare
from ibis_agent.mask.grid import Misplaced, laid_on
from ibis_agent.record import journal
from ibis_agent.record.comparison_page import write_comparison
from ibis_agent.record.recorded_slices import recorded_slices
from ibis_agent.scan.geometry import PictureGeometry, slice_geometry


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two masks.

    Attributes:
        name: for display. path: the file.
        mask: (I, J, K) bool in the scan's voxel order.
        geometry: of one of its slices, or of the only slice.
        single: whether only that slice is compared.
        labels: the labels of a mask file that were combined; empty if it has only one.
        pictures: by slice, as in a record.
    """

    name: str
    path: Path
    mask: np.ndarray
    geometry: PictureGeometry
    single: bool
    pictures: dict[int, Any]
    labels: str = ""


def run_compare(options: argparse.Namespace) -> int:
    """Compare, print the figures and write the page. Raises InputError, OutputError."""
    a, b = (read_side(path, options.label) for path in (options.a, options.b))
    if options.label is not None and a.pictures and b.pictures:
        remedy = "Leave it out, or compare with a mask file."
        raise InputError(
            "--label applies to mask files, but both are runs", value=options.label, remedy=remedy
        )
    page = None
    if not options.no_page:
        page = options.out or (a if a.pictures or not b.pictures else b).path.with_name("comparison.html")
        spare_other_kinds(page, ".html", ".htm")
    a, b = (a, _on_grid(b, a)) if a.pictures or not b.pictures else (_on_grid(a, b), b)
    # A run on one slice says nothing about the others.
    single = next((side for side in (a, b) if side.single), None)
    if a.single and b.single and a.geometry.index != b.geometry.index:
        raise InputError(
            "the runs are on different slices",
            file=b.path,
            value=f"{a.geometry.index} and {b.geometry.index}",
            remedy="Compare runs on one slice, or whole volumes.",
        )
    geometry = (single or (a if a.pictures else b)).geometry
    if single:
        found = compare(geometry.extract(a.mask), geometry.extract(b.mask), _in_plane(geometry))
    else:
        sides = tuple(np.linalg.norm(geometry.affine[:3, :3], axis=0))
        found = compare(a.mask, b.mask, None if _in_plane(geometry) is None else sides)
    lines = found.lines()
    lines += [
        (f"Labels of {name}", f"{side.labels} (combined; choose one with --label)")
        for name, side in (("A", a), ("B", b))
        if side.labels
    ]
    if page is not None:
        _write_page(page, a, b, geometry, single is not None, lines)
    if options.json:
        told = {
            "a": str(a.path),
            "b": str(b.path),
            **found.to_json(),
            "labels_a": a.labels,
            "labels_b": b.labels,
            "page": None if page is None else str(page),
        }
        print(json.dumps(told))
    else:
        screen = terminal.Screen()
        for term, value in [*lines, *([("Page", str(page))] if page else [])]:
            screen.line(f"{screen.dim(f'{term:<22}')} {terminal.one_line(value)}")
    if options.open and page is not None:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def read_side(path: Path, label: str | None = None) -> Side:
    """A run's mask, or a mask file. label: use only this one of the file, a number or a name.

    Raises InputError naming the file.
    """
    path = record_in(path)
    if path.suffix.lower() == ".json":
        return _recorded(path)
    if (path / STRUCTURES_NAME).is_file():
        remedy = "Name the folder of one structure in it, or the label file and --label."
        raise InputError("is a run over several structures", file=path, remedy=remedy)
    mask, affine, labels = mask_of_file(path, label)
    if affine is None:
        geometry = PictureGeometry.of_picture(*mask.shape)
        return Side(path.name, path, geometry.embed_mask(mask) != 0, geometry, True, {}, labels)
    geometry = slice_geometry(mask.shape, affine, "axial", None)
    return Side(path.name, path, mask, geometry, False, {}, labels)


def _recorded(path: Path) -> Side:
    record = journal.read(path)
    try:
        found = recorded_slices(record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            "this is not a trajectory written by this program",
            file=path,
            value=f"{type(error).__name__}: {error}",
        ) from error
    mask = np.zeros(found[0].geometry.shape, np.uint8)
    for each in found:
        each.geometry.embed_mask(each.mask, mask)
    name = f"{path.parent.name}/{path.name}" if path.name == TRAJECTORY_NAME else path.name
    pictures = {each.geometry.index: each.picture for each in found}
    return Side(name, path, mask != 0, found[0].geometry, "slices" not in record, pictures)


def _on_grid(side: Side, of: Side) -> Side:
    """Read a mask file in the voxel order of the other mask. Raises InputError if the grids differ."""
    try:
        where = side.geometry.affine, of.geometry.affine, of.mask.shape
        mask = laid_on(side.mask, *where, part=_is_part(side), slack=0.02)
    except Misplaced as error:
        raise InputError(
            f"has a different grid from {of.path}",
            file=side.path,
            value=str(error),
            remedy="Resample one to the other first; in 3D Slicer: Resample Image (BRAINS), nearest neighbour.",
        ) from error
    if mask is side.mask:
        return side
    return replace(side, mask=mask, geometry=of.geometry)


def _is_part(side: Side) -> bool:
    """3D Slicer writes only the bounding box of a segmentation."""
    return not side.pictures and side.path.name.lower().endswith(".seg.nrrd")


def _in_plane(geometry: PictureGeometry) -> tuple[float, float] | None:
    return None if geometry.row_mm is None or geometry.col_mm is None else (geometry.row_mm, geometry.col_mm)


def _write_page(
    page: Path, a: Side, b: Side, geometry: PictureGeometry, single: bool, lines: list[tuple[str, str]]
) -> None:
    others = tuple(n for n in range(3) if n != geometry.axis)
    either = np.flatnonzero((a.mask | b.mask).any(axis=others)).tolist() or [geometry.index]
    masks = {}
    for index in [geometry.index] if single else either:
        values = {**geometry.to_json(), "index": index}
        here = PictureGeometry.from_json(values)
        masks[index] = here.extract(a.mask), here.extract(b.mask)
    pictures = {**b.pictures, **a.pictures}
    write_comparison(page, (a.name, b.name), lines, geometry, masks, pictures)
