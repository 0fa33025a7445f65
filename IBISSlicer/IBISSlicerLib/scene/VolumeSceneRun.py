"""A question's run about a whole volume in the scene: its mask in every slice, its marks, and its record.

As SceneRun, whose nodes and saving it shares. What is shown changes slice by slice: only slices that are known
otherwise than before are written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from ibis_agent.record.review import write_review
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.picture import cut
from ibis_agent.scan.scan import Scan

from ..Errors import PlainError
from .ClickMarks import Mark
from .Geometry import GeometryError, showSlice, sliceOfView
from .SceneRun import SceneRun


class VolumeSceneRun(SceneRun):
    """A run about a volume, or a range of its slices, across one voxel axis."""

    scope = "volume"

    def __init__(self, record, textNode, image: dict, toRas: np.ndarray) -> None:
        super().__init__(record, textNode, image, toRas)
        self._displayed: dict[int, str] = {}  # run lengths of the masks that are in the labelmap, by slice
        self._rows: tuple[list, list[dict]] = ([], [])

    @property
    def shownSlice(self) -> int:
        """The slice of the shown action; before the first, the one that was asked in."""
        steps = self.record.steps
        asked = int(self._image["index"])
        return int(steps[self.shown - 1]["slice"]) if 0 < self.shown <= len(steps) else asked

    def describe(self, folder: Path) -> dict:
        """See SceneRun. The whole volume is written into the folder, also to go on with a run."""
        record, volumeNode = self.record, self.volumeNode
        if volumeNode is None:
            raise GeometryError(
                "The volume of this run is no longer in the scene. The mask can still be accepted."
            )
        path = folder / f"{record.session}.npy"
        np.save(path, slicer.util.arrayFromVolume(volumeNode))
        image = {**self._image, "file": str(path)}
        fields = {"question": record.question, "scope": "volume", "image": image}
        if self.isOpened:
            fields.update(head=record.head, known=record.known())
        return fields

    def show(self, number: int) -> None:
        """Show the masks of all slices, and the marks, as they were after action `number`."""
        self.shown = number
        if not self.isOpened:
            return
        record = self.record
        with slicer.util.RenderBlocker():
            known = record.slices(number)
            for index in {*known, *self._displayed}:
                self._put(index, known.get(index))
            marks = [
                Mark(step, record.geometry_of(index).to_voxel(click.x, click.y), click.positive, which)
                for step, index, which, click in self._clicks(number)
            ]
            self.marks.show(marks, number, self._toRas, record.geometry_of(self.shownSlice))
            self._showFrame()

    def showSlice(self, index: int, known: dict) -> None:
        """Show what has just become known of a slice, while the mask grows."""
        self._put(index, known)

    def reveal(self) -> None:
        """Scroll all views that show this axis to the slice of the shown action."""
        index = self.shownSlice
        volumeNode = self.volumeNode
        if volumeNode is None:
            return
        axis = self.place.axis
        ijk = [count // 2 for count in self._image["shape"]]
        ijk[axis] = index
        for sliceNode in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            try:
                place = sliceOfView(sliceNode, volumeNode)
            except PlainError:
                continue
            if place.axis == axis and place.index != index:
                showSlice(sliceNode, volumeNode, ijk)

    def rows(self) -> list[dict]:
        """The actions as the panels show them: as steps of a slice, areas and mL being those of the volume."""
        steps = self.record.steps
        if self._rows[0] == [step["uid"] for step in steps]:
            return self._rows[1]
        rows, known = [], {}
        gap = float(self.record.head["volume"]["gap_mm"]) if steps else 0.0
        for step in steps:
            for index, each in step["touched"].items():
                known[index] = each
            present = [each for each in known.values() if each is not None]
            area = sum(float(each["area_mm2"]) for each in present)
            thoughts = [each["thinking"] for each in step["steps"] if each["thinking"]]
            rows.append(
                {
                    "number": step["number"],
                    "by": step["by"],
                    "kind": step["kind"],
                    "slice": int(step["slice"]),
                    "words": step["words"],
                    "thinking": "\n\n".join(thoughts),
                    "action": step["steps"][-1]["action"] if step["steps"] else {"kind": step["kind"]},
                    "area_px": sum(int(each["area_px"]) for each in present),
                    "area_mm2": area,
                    "ml": area * gap / 1000,
                    "seconds": {"total": step["seconds"]},
                }
            )
        self._rows = [step["uid"] for step in steps], rows
        return rows

    def clickFields(self, ras, positive: bool) -> dict:
        index, x, y = self._placeOf(ras)
        return {"slice": index, "click": {"x": x, "y": y, "positive": bool(positive)}}

    def moveFields(self, number: int, ras) -> dict:
        mark = self.marks.dragged
        for step, index, which, click in self._clicks(self.shown):
            if step == number and (mark is None or mark.number != number or mark.which == which):
                x, y = self.record.geometry_of(index).from_patient(*self._patientOf(ras))
                moved = {"x": x, "y": y, "positive": click.positive}
                return {"slice": index, "click": moved, "replace": which}
        raise InputError(f"step {number} is not a click")

    def clickAt(self, ras) -> tuple[float, float]:
        return self._placeOf(ras)[1:]

    def writeReview(self, path: str) -> None:
        if not self.isOpened:
            raise InputError("there is nothing to review yet")
        volumeNode = self.volumeNode
        if volumeNode is None:
            raise InputError("the review page needs the volume, and it is no longer in the scene")
        voxels = slicer.util.arrayFromVolume(volumeNode).transpose()
        name = str(self._image["name"])
        scan = Scan(voxels, np.array(self._image["affine"]), "volume", Path(name), name, "")
        volume = self.record.head["volume"]
        axis, orientation = "xyz"[self.place.axis], Orientation(volume["orientation"])
        window = tuple(volume["window"])
        record = self.record.trajectory(lambda index: cut(scan, axis, index, window, orientation))
        write_review(path, record)

    def _put(self, index: int, known: dict | None) -> None:
        """Write the mask of one slice into the labelmap, where it is not there already."""
        runs = None if known is None else str(known["mask_rle"])
        if self._displayed.get(index) == runs:
            return
        if not self._displayed:
            self.mask.reserve(self.record.geometry, *self.record.range)
        self.mask.show(self.record.decode(known), self.record.geometry_of(index))
        self._displayed[index] = runs
        if runs is None:
            del self._displayed[index]

    def _clicks(self, number: int) -> list[tuple[int, int, int, Click]]:
        """(action number, slice, which of the slice's clicks from 1, click) of all that count."""
        made: dict[int, list[tuple[int, Click]]] = {}
        for action in self.record.steps[:number]:
            if action["kind"] == "click":
                index = int(action["slice"])
                clicks, before = self.record.clicks_on(index, action["number"]), made.get(index, [])
                same = 0
                while same < min(len(before), len(clicks)) and before[same][1] == clicks[same]:
                    same += 1
                made[index] = [*before[:same], *((action["number"], click) for click in clicks[same:])]
        return [
            (step, index, which, click)
            for index, clicks in made.items()
            for which, (step, click) in enumerate(clicks, 1)
        ]

    def _patientOf(self, ras) -> tuple[float, float, float]:
        return tuple((self.record.geometry.affine @ [*self._voxelOf(ras), 1.0])[:3])

    def _voxelOf(self, ras) -> np.ndarray:
        local = [0.0, 0.0, 0.0]
        self.mask.node.TransformPointFromWorld(ras, local)
        return np.linalg.solve(self._toRas, [*local, 1.0])[:3]

    def _placeOf(self, ras) -> tuple[int, float, float]:
        """(slice, x, y) of a point in the world. Raises InputError outside the range or the picture."""
        index = int(np.floor(self._voxelOf(ras)[self.place.axis] + 0.5))
        first, last = self.record.range
        if not first <= index <= last:
            remedy = f"The range is {first + 1} to {last + 1}."
            raise InputError("this slice is outside the range of the run", value=index + 1, remedy=remedy)
        return index, *self.record.geometry_of(index).from_patient(*self._patientOf(ras))
