"""Measurements of a run's mask, for questions about size."""

from __future__ import annotations

import numpy as np

from ibis_agent.mask.measurements import Measurements, answer_with_size, asks_for_size, measure
from ibis_agent.run.state import RunState
from ibis_agent.scan.slices import Slices, Stack


def measured(run: RunState) -> Measurements:
    """The measurements of the present mask; in pixels if the scan has no pixel size."""
    return measures_of(run.slices, run.mask() if run.alone else run.volume())


def measures_of(slices: Slices, mask: np.ndarray) -> Measurements:
    """The measurements of an (H, W) mask of the first slice, or of an (I, J, K) mask in the scan's voxel order."""
    one = slices.geometry(slices.first)
    known = one.row_mm is not None and one.col_mm is not None
    if mask.ndim == 2:
        picture = slices.picture(slices.first)
        in_plane = (one.row_mm or 1.0, one.col_mm or 1.0) if known else None
        return measure(mask, in_plane, 0, picture.values, picture.ct)
    scan = slices.scan if isinstance(slices, Stack) else None
    spacing = np.linalg.norm(one.affine[:3, :3], axis=0).tolist() if known else None
    values = None if scan is None else scan.voxels
    return measure(mask, spacing, one.axis, values, scan is not None and scan.may_be_ct)


def answer(run: RunState) -> str | None:
    """The run's answer, with measurements if the question asks for a size ("How large is the spleen?")."""
    said = run.answer
    if said is None or not asks_for_size(run.question):
        return said
    return answer_with_size(run.question, said, measured(run))
