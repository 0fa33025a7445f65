"""Segments given to a run when it is asked: one to start from, and those that are excluded from its mask.

They are resampled to the volume and stored with the run at that moment, so later changes of the segments have no
effect, and a scene saved before the first step contains them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from ibis_agent.mask.masks import decode_rle, encode_rle

from ..Errors import PlainError
from .Geometry import SlicePlace, shapeOf
from .OwnNodes import removeNode

Segment = tuple[Any, str]
"""A vtkMRMLSegmentationNode and the ID of a segment in it."""

_MOST_NAMES = 6


class GivenError(PlainError):
    """A segment that cannot be used; the message says which, why, and what to do."""


def givenSegments(
    volumeNode,
    place: SlicePlace,
    slices: tuple[int, int] | None,
    start: Segment | None,
    exclude: Sequence[Segment] = (),
) -> dict:
    """The masks on the slices of a run, as plain values for JSON: under "start" and "exclude", if given, a name and the
    run lengths of each slice.

    :param slices: first and last slice of a run over many; None for the slice `place` alone.
    :raises GivenError: if a segment is missing or empty, or if the start is not on these slices.
    """
    first, last = slices or (place.index, place.index)
    given: dict = {}
    out = _maskOf(volumeNode, exclude) if exclude else None
    if out is not None:
        given["exclude"] = {"name": nameOf(exclude), "planes": _planes(out, place.axis, first, last)}
    if start is not None:
        mask = _maskOf(volumeNode, [start])
        _checkStart(mask, out, volumeNode, start, place, (first, last))
        mask = mask if out is None else mask & ~out
        given["start"] = {"name": nameOf([start]), "planes": _planes(mask, place.axis, first, last)}
    return given


def writeGiven(given: dict, image: dict, folder: Path, session: str) -> dict:
    """Write the masks to files. Returns the fields for the request `ask`, see ibis_agent.engine.question.given_masks.

    :param image: the `image` of that request.
    """
    fields, axis = {}, int(image["axis"])
    shape = list(reversed(image["shape"]))  # (K, J, I)
    plane = tuple(count for n, count in enumerate(shape) if n != 2 - axis)
    if "range" not in image:
        shape[2 - axis] = 1  # as the file of a slice alone
    for key, each in given.items():
        voxels = np.zeros(shape, np.uint8)
        for index, runs in each["planes"].items():
            where = int(index) if "range" in image else 0
            np.moveaxis(voxels, 2 - axis, 0)[where] = decode_rle(runs, plane)
        path = folder / f"{session}-{key}.npy"
        np.save(path, voxels)
        fields[key] = {"file": str(path), "name": each["name"]}
    return fields


def nameOf(segments: Iterable[Segment]) -> str:
    """A name for display and for the record, such as "Organs: Liver, Spleen"."""
    parts = []
    for node in dict.fromkeys(node for node, _ in segments):
        names = [_segmentName(*each) for each in segments if each[0] is node]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        parts.append(f"{node.GetName()}: {', '.join(names[:_MOST_NAMES])}{more}")
    return "; ".join(parts)


def _segmentName(node, segmentId: str) -> str:
    segment = node.GetSegmentation().GetSegment(segmentId)
    return segment.GetName() if segment is not None else segmentId


def _maskOf(volumeNode, segments: Sequence[Segment]) -> np.ndarray:
    """(K, J, I) bool: the union of segments on the volume's voxels, resampled by Slicer."""
    mask = np.zeros(tuple(reversed(shapeOf(volumeNode))), bool)
    for node in dict.fromkeys(node for node, _ in segments):
        ids = [segmentId for each, segmentId in segments if each is node]
        for segmentId in ids:
            _check(node, segmentId)
        mask |= _exported(volumeNode, node, ids)
    return mask


def _exported(volumeNode, node, segmentIds: Sequence[str]) -> np.ndarray:
    names = vtk.vtkStringArray()
    for segmentId in segmentIds:
        names.InsertNextValue(segmentId)
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "IBIS labels")
    try:
        logic = slicer.modules.segmentations.logic()
        if not logic.ExportSegmentsToLabelmapNode(node, names, labels, volumeNode):
            raise GivenError(
                f"Failed to resample {nameOf([(node, each) for each in segmentIds])} to the geometry of "
                f"{volumeNode.GetName()}. Select another segment under Begin from."
            )
        return np.array(slicer.util.arrayFromVolume(labels) != 0)
    finally:
        display = labels.GetDisplayNode()
        if display is not None and display.GetColorNode() is not None:
            slicer.mrmlScene.RemoveNode(display.GetColorNode())
        removeNode(labels)


def _check(node, segmentId: str) -> None:
    """Raises GivenError if a segment is missing or empty."""
    if node is None or not slicer.mrmlScene.IsNodePresent(node):
        raise GivenError("The segmentation selected under Begin from was deleted. Select another one.")
    segment = node.GetSegmentation().GetSegment(segmentId)
    if segment is None:
        raise GivenError(
            f"{node.GetName()} no longer has the segment {segmentId}. Select another one under Begin from."
        )
    labelmap = segment.GetRepresentation("Binary labelmap")
    if labelmap is None:
        bounds = [1.0, -1.0] * 3
        segment.GetBounds(bounds)
        empty = bounds[0] > bounds[1]
    else:
        array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, segmentId)
        empty = array is None or not (array == segment.GetLabelValue()).any()
    if empty:
        raise GivenError(
            f"The segment {segment.GetName()} is empty. Draw it first, or select another one under Begin from."
        )


def _checkStart(
    mask: np.ndarray,
    out: np.ndarray | None,
    volumeNode,
    start: Segment,
    place: SlicePlace,
    slices: tuple[int, int],
) -> None:
    """Raises GivenError if the start is empty on the slices, or excluded completely."""
    name, across = _segmentName(*start), tuple(n for n in range(3) if n != 2 - place.axis)
    found = np.flatnonzero(mask.any(axis=across))
    if not found.size:
        raise GivenError(
            f"The segment {name} is outside {volumeNode.GetName()}. Select another segment under Begin from, or the "
            "volume that it was drawn on."
        )
    here = slice(slices[0], slices[1] + 1)
    if not ((found >= slices[0]) & (found <= slices[1])).any():
        where = (
            f"slice {slices[0] + 1}"
            if slices[0] == slices[1]
            else f"slices {slices[0] + 1} to {slices[1] + 1}"
        )
        remedy = "Scroll there" if slices[0] == slices[1] else "Change the range"
        raise GivenError(
            f"The segment {name} is not on {where}: it is on slices {found[0] + 1} to {found[-1] + 1}. {remedy}, or "
            "select another segment under Begin from."
        )
    if out is not None and not np.moveaxis(mask & ~out, 2 - place.axis, 0)[here].any():
        raise GivenError(f"All of the segment {name} is excluded. Exclude fewer segments under Begin from.")


def _planes(mask: np.ndarray, axis: int, first: int, last: int) -> dict[str, str]:
    planes = np.moveaxis(mask, 2 - axis, 0)
    return {str(n): encode_rle(planes[n]) for n in range(first, last + 1) if planes[n].any()}
