"""Reading 3D Slicer's segmentations (.seg.nrrd): the list of segments, and their voxels as one label map.

Segments may be in several layers and overlap, and the file may contain only their bounding box, with its position in
the affine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import by, check_size, damaged, three_axes
from ibis_agent.scan.geometry import check_affine
from ibis_agent.scan.itk import affine_of

_MOST_SEGMENTS = 4096


@dataclass(frozen=True)
class Segment:
    """One segment of a file: its name, and the value and layer of its voxels."""

    name: str
    value: int
    layer: int


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The voxels of all segments.

    Attributes:
        labels: (I, J, K) codes, 0 outside of all segments; overlaps of segments have separate codes.
        affine: (4, 4) voxel → RAS mm.
        codes: number of a segment (see `numbered`) → the codes of its voxels.
    """

    labels: np.ndarray
    affine: np.ndarray
    codes: dict[int, tuple[int, ...]]


def segments_of(path: Path) -> tuple[Segment, ...]:
    """The segments listed in the header, empty for a plain label map. Raises InputError."""
    return _segments(_header(path), path)


def numbered(segments: tuple[Segment, ...]) -> dict[int, Segment]:
    """The segments by number: their values if these are unique, otherwise their order from 1."""
    values = [segment.value for segment in segments]
    alone = len(set(values)) == len(values) and min(values, default=1) > 0
    return dict(zip(values if alone else range(1, len(values) + 1), segments, strict=True))


def read_segmentation(path: Path) -> Segmentation:
    """Read all segments of a file that lists them. Raises InputError."""
    import SimpleITK as sitk

    reader = _header(path)
    segments = _segments(reader, path)
    shape = three_axes(reader.GetSize(), path)
    layers = reader.GetNumberOfComponents()
    check_size((*shape, layers), path)
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise damaged(path, error) from error
    if array.dtype.kind not in "iu":
        raise InputError("the segments are not whole numbers", file=path, value=array.dtype)
    held = array.reshape(*shape[::-1], layers).transpose(2, 1, 0, 3)
    numbers = numbered(segments)
    affine = check_affine(affine_of(reader), path)
    if layers == 1:
        return Segmentation(held[..., 0], affine, {n: (each.value,) for n, each in numbers.items()})
    values = [{int(value) for value in np.unique(held[..., n])} | {0} for n in range(layers)]
    if math.prod(len(each) for each in values) >= 2**31:
        raise InputError("the segments overlap in too many ways", file=path, value=by(held.shape))
    labels = np.zeros(shape, np.int32)
    codes: dict[int, list[int]] = {n: [] for n in numbers}
    combined: list[tuple[int, ...]] = [()]
    for n in range(layers):
        order = sorted(values[n])
        labels *= len(order)
        labels += np.searchsorted(order, held[..., n]).astype(np.int32)
        combined = [(*before, value) for before in combined for value in order]
    for code in np.unique(labels):
        for number, segment in numbers.items():
            if combined[code][segment.layer] == segment.value:
                codes[number].append(int(code))
    return Segmentation(labels, affine, {number: tuple(each) for number, each in codes.items()})


def _header(path: Path) -> Any:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise damaged(path, error) from error
    return reader


def _segments(reader: Any, path: Path) -> tuple[Segment, ...]:
    keys = set(reader.GetMetaDataKeys())
    found = []
    for n in range(_MOST_SEGMENTS):
        if not {f"Segment{n}_Name", f"Segment{n}_ID"} & keys:
            break
        texts = {
            part: reader.GetMetaData(f"Segment{n}_{part}").strip() if f"Segment{n}_{part}" in keys else ""
            for part in ("Name", "ID", "LabelValue", "Layer")
        }
        try:
            # Files from before Slicer 4.11 contain neither: there each segment has its own layer.
            many = reader.GetNumberOfComponents() > 1
            value = int(texts["LabelValue"] or (1 if many else n + 1))
            layer = int(texts["Layer"] or (n if many else 0))
        except ValueError as error:
            raise InputError("a segment's value is not a number", file=path, value=str(texts)) from error
        if not 0 <= layer < reader.GetNumberOfComponents():
            remedy = "Save the segmentation again in 3D Slicer."
            raise InputError(
                "a segment is not in any layer of the file", file=path, value=layer, remedy=remedy
            )
        found.append(Segment(texts["Name"] or texts["ID"], value, layer))
    return tuple(found)
