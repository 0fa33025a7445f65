"""Measurements of accepted segments, as a table node in the scene: a row per segment, units in the column names.

Each segmentation references its own table. The measuring itself is in ibis_agent.mask.measurements.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote, unquote

import numpy as np
import slicer
import vtk
from ibis_agent.mask.measurements import Measurements, measure

from .Geometry import ijkToWorld, isColour
from .Modality import mayBeCt
from .SubjectHierarchy import putBeside

_ROLE = "IBISSlicer.Measures"  # role of the reference from the segmentation to its table
_ROWS = "IBISSlicer.Segments"  # attribute of the table: the segments' IDs, in the order of the rows
_UNKNOWN = "-"  # the ID of a row that was added by someone else
_NAME = "Segment"
# Name of the column, its unit, and its description.
_COLUMNS = (
    ("Volume (mL)", "mL", "Volume of the segment; empty for a single slice"),
    ("Largest area (mm\u00b2)", "mm\u00b2", "Area in the slice with the largest area"),
    ("Longest diameter (mm)", "mm", "Longest in-plane diameter, within one component"),
    ("Perpendicular (mm)", "mm", "Longest diameter perpendicular to it in the same slice"),
    ("Longest in 3D (mm)", "mm", "Longest diameter in 3D, within one component"),
    ("Mean", "", "Mean of the grey values inside"),
    ("Standard deviation", "", "Sample standard deviation of the grey values inside"),
    ("Parts", "", "Connected components"),
    ("Slice", "", "Slice with the longest diameter, counted as in the slice views"),
)


def measureSegment(segmentationNode, segmentId: str, volumeNode, axis: int, oneSlice: bool) -> Measurements:
    """Measure a segment on its volume's grid. Slices are counted from 1, as in the slice views.

    :param axis: the voxel axis perpendicular to the slices.
    :param oneSlice: the segment is the answer about one slice: if it covers only one slice, it gets no volume.
    :raises GeometryError: for a volume under a nonlinear transform.
    """
    mask = (
        slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, segmentId, volumeNode).transpose() != 0
    )
    voxels = None if isColour(volumeNode) else slicer.util.arrayFromVolume(volumeNode).transpose()
    ct = mayBeCt(volumeNode)
    spacing = np.linalg.norm(ijkToWorld(volumeNode)[:3, :3], axis=0)
    held = np.flatnonzero(mask.any(axis=tuple(each for each in range(3) if each != axis)))
    if not oneSlice or len(held) != 1:
        return measure(mask, spacing.tolist(), axis, voxels, ct, first=1)
    plane, index = None if voxels is None else voxels.take(held[0], axis), int(held[0])
    measured = measure(mask.take(index, axis), np.delete(spacing, axis).tolist(), 0, plane, ct)
    return replace(measured, area_slice=index + 1, diameter_slice=index + 1)


def writeRow(segmentationNode, segmentId: str, measured: Measurements, volumeNode):
    """Add a segment's measurements to the segmentation's table, which is created if missing. Returns the table node."""
    node = segmentationNode.GetNodeReference(_ROLE)
    if node is None:
        node = _create(segmentationNode, volumeNode, measured.value_unit)
    table = node.GetTable()
    rows = [unquote(each) for each in (node.GetAttribute(_ROWS) or "").split(",") if each]
    if len(rows) != table.GetNumberOfRows():  # the user has changed the table: append below
        rows = [_UNKNOWN] * table.GetNumberOfRows()
    if segmentId not in rows:
        rows.append(segmentId)
        node.AddEmptyRow()
    values = (
        measured.volume_ml, measured.area, measured.longest, measured.perpendicular, measured.longest_3d,
        measured.mean, measured.deviation, measured.parts, measured.diameter_slice,
    )  # fmt: skip
    row = rows.index(segmentId)
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    table.SetValue(row, 0, vtk.vtkVariant(segment.GetName()))
    for column, value in enumerate(values, 1):
        table.SetValue(row, column, vtk.vtkVariant(float("nan") if value is None else round(value, 3)))
    # A scene file does not preserve line ends and quotes in attributes.
    node.SetAttribute(_ROWS, ",".join(quote(each, safe="") for each in rows))
    table.Modified()
    node.Modified()
    return node


def _create(segmentationNode, volumeNode, valueUnit: str):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"{segmentationNode.GetName()} measures")
    node.SetUseColumnTitleAsColumnHeader(True)
    names = vtk.vtkStringArray()
    names.SetName(_NAME)
    node.AddColumn(names)
    for title, unit, meaning in _COLUMNS:
        if title in ("Mean", "Standard deviation") and valueUnit:
            title, unit = f"{title} ({valueUnit})", valueUnit
        column = vtk.vtkDoubleArray()
        column.SetName(title)
        node.AddColumn(column)
        node.SetColumnTitle(title, title)
        node.SetColumnDescription(title, meaning)
        if unit:
            node.SetColumnUnitLabel(title, unit)
    node.SetColumnTitle(_NAME, _NAME)
    segmentationNode.SetNodeReferenceID(_ROLE, node.GetID())
    putBeside(node, volumeNode)
    return node
