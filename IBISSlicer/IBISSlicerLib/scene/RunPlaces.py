"""Convert world coordinates to the slices of a run and to positions in their pictures, and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from ibis_agent.actions import Box
from ibis_agent.errors import InputError
from ibis_agent.record.run_record import RunRecord

Ras = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class RunPlaces:
    """
    :param record: the RunRecord.
    :param toRas: (4, 4) voxel index → RAS mm of the volume, before any transform.
    :param node: a vtkMRMLTransformableNode with the volume's transform.
    :param axis, index: the voxel axis perpendicular to the slices, and the slice of the question.
    """

    record: RunRecord
    toRas: np.ndarray
    node: Any
    axis: int
    index: int

    def clickFields(self, ras, positive: bool) -> dict:
        """The fields of the request `add` for the user's click at a point in world coordinates.

        :raises InputError: if the point is outside the slices or outside the picture.
        """
        index, x, y = self._placeOf(ras)
        return {"slice": index, "click": {"x": x, "y": y, "positive": bool(positive)}}

    def boxFields(self, corner, opposite) -> dict:
        """The fields of the request `add` for the user's box between two points in world coordinates.

        :raises InputError: if they are outside, or in different slices.
        """
        (index, *first), (last, *second) = self._placeOf(corner), self._placeOf(opposite)
        if index != last:
            value = f"{index + 1} and {last + 1}"
            raise InputError("both corners of a box must be in the same slice", value=value)
        (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(first, second))
        return {"slice": index, "click": dataclasses.asdict(Box(x0, y0, x1, y1))}

    def onPicture(self, index: int, ras) -> tuple[float, float]:
        """Normalised (x, y) in the picture of a slice. Raises InputError for a point outside."""
        # In the coordinates of the record, before any later transform.
        patient = (self.record.geometry.affine @ [*self._voxelOf(ras), 1.0])[:3]
        return self.record.geometry_of(index).from_patient(*patient)

    def worldOf(self, x: float, y: float) -> Ras:
        """The current world coordinates of a normalised picture coordinate."""
        return self._world(self.record.geometry.to_voxel(x, y))

    def centre(self) -> Ras:
        """The middle of the slice in world coordinates, to scroll a view to."""
        ijk = [(count - 1) / 2 for count in self.record.geometry.shape]
        ijk[self.axis] = self.index
        return self._world(ijk)

    def _voxelOf(self, ras) -> np.ndarray:
        local = [0.0, 0.0, 0.0]
        self.node.TransformPointFromWorld(ras, local)
        return np.linalg.solve(self.toRas, [*local, 1.0])[:3]

    def _placeOf(self, ras) -> tuple[int, float, float]:
        """(slice, x, y) of a point in world coordinates. Raises InputError outside the range or the picture."""
        first, last = self.record.range
        alone = self.record.scope == "slice"
        index = first if alone else int(np.floor(self._voxelOf(ras)[self.axis] + 0.5))
        if not first <= index <= last:
            remedy = f"The range is {first + 1} to {last + 1}."
            raise InputError("this slice is outside the range of the run", value=index + 1, remedy=remedy)
        return index, *self.onPicture(index, ras)

    def _world(self, ijk) -> Ras:
        world = [0.0, 0.0, 0.0]
        self.node.TransformPointToWorld((self.toRas @ [*ijk, 1.0])[:3], world)
        return world[0], world[1], world[2]
