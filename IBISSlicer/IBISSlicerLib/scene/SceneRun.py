"""One question's run in the scene: its record in a text node, its mask and its marks.

The record (ibis_agent.record.run_record) is the source of truth; this file displays it and stores it in the scene, so
that a saved scene restores it. The worker is not used here. The volume may be deleted at any time: what is needed of it
is stored with the run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import slicer
from ibis_agent.errors import InputError
from ibis_agent.record.review import write_review
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.run_rows import clicks_of, rows_of
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.picture import Picture, cut

from .ClickMarks import POSITIVE_COLOUR, ClickMarks, Mark
from .FrameMark import FrameMark
from .Geometry import (
    GeometryError,
    SlicePlace,
    ijkToRas,
    ijkToWorld,
    isColour,
    scanOf,
    shapeOf,
    shownWindow,
    showSliceInViews,
)
from .GivenSegments import writeGiven
from .MaskDisplay import MaskDisplay
from .Modality import modalityFields, modalityWords
from .OwnNodes import keepOutOfFiles, removeNode
from .RunPlaces import RunPlaces
from .RunText import ATTRIBUTE, KeptRun, RunText
from .SubjectHierarchy import giveItem


class SceneRun:
    """A run over one or more slices, and its nodes.

    :ivar record: the RunRecord.
    :ivar shown: number of the displayed step, 0 before the first.
    """

    def __init__(self, text: RunText, kept: KeptRun) -> None:
        """See `create` and `open`."""
        self.record = kept.record
        self._text = text
        self.shown = 0
        self._visible = True
        self.mask: MaskDisplay | None = None
        self.marks: ClickMarks | None = None
        self.frameMark = FrameMark()
        self.boxMark = FrameMark("IBIS box", POSITIVE_COLOUR, thickness=3)
        self._image = kept.image  # how the worker gets the slice; see ibis_agent.engine.question.cut_picture
        self._toRas, self._given = kept.toRas, kept.given
        self._displayed: dict[int, str] = {}  # run lengths of the masks in the labelmap, by slice
        self._rows: tuple[list, list[dict]] = ([], [])

    @classmethod
    def create(
        cls,
        volumeNode,
        place: SlicePlace,
        question: str,
        window: tuple[float, float] | None,
        slices: tuple[int, int] | None = None,
        record: RunRecord | None = None,
        given: dict | None = None,
    ) -> SceneRun:
        """A new run, before asking the worker.

        :param window: grey values shown as black and white; None uses the policy's default or, if it has
            none, the volume's display.
        :param slices: first and last slice of a run over many; None for a run about the slice `place` only.
        :param record: of a recorded run; None for a new one.
        :param given: the masks to start from and to exclude, see GivenSegments.py.
        :raises GeometryError: for a volume that cannot be used.
        """
        image = {
            "shape": list(shapeOf(volumeNode)),
            "affine": ijkToWorld(volumeNode).tolist(),
            "axis": place.axis,
            "index": place.index,
            "window": list(window) if window else None,
            "shown": shownWindow(volumeNode),
            "name": volumeNode.GetName(),
            "colour": isColour(volumeNode),
            **(modalityFields(volumeNode) if record is None else {}),
        }
        if slices is not None:
            image["range"] = list(slices)
        record = record or RunRecord(question, "slice" if slices is None else "volume")
        kept = KeptRun(record, image, ijkToRas(volumeNode), 0, given or {})
        run = cls(RunText.create(volumeNode, question), kept)
        run._createNodes(volumeNode)
        run.save()
        return run

    @classmethod
    def open(cls, textNode) -> SceneRun:
        """The run saved in a text node, with its nodes, which are created if missing.

        :raises InputError: if the text is not a run.
        """
        text = RunText(textNode)
        kept = text.read()
        run = cls(text, kept)
        segmentation = textNode.GetNodeReference("segmentation")
        marks = {role: textNode.GetNodeReference(role) for role in ClickMarks.ROLES}
        if segmentation is not None and all(marks.values()):
            giveItem(segmentation)  # not in scenes of earlier versions
            run.mask, run.marks = MaskDisplay(segmentation, kept.toRas), ClickMarks(marks)
            run.mask.clear()  # a scene saved during propagation contains slices that belong to no step
        else:
            for node in (segmentation, *marks.values()):
                removeNode(node)
            run._createNodes(run.volumeNode)
        run.show(min(kept.shown, len(run.record.steps)))
        return run

    @classmethod
    def toLookAt(cls, textNode) -> SceneRun:
        """The run saved in a text node, without its mask and marks. Raises InputError."""
        text = RunText(textNode)
        return cls(text, text.read())

    @property
    def textNode(self):
        """The vtkMRMLTextNode that stores the run and references its other nodes."""
        return self._text.node

    @property
    def isOpened(self) -> bool:
        """Whether the worker has received the slices; before that there is nothing to click on."""
        return bool(self.record.head)

    @property
    def scope(self) -> str:
        return self.record.scope

    @property
    def _alone(self) -> bool:
        return self.scope == "slice"

    @property
    def shownSlice(self) -> int:
        """The slice of the displayed step; before the first, the slice of the question."""
        steps, asked = self.record.steps[: self.shown], int(self._image["index"])
        return int(steps[-1].get("slice", asked)) if steps else asked

    def rows(self) -> list[dict]:
        """The steps for display in the panels, see ibis_agent.record.run_rows."""
        if self._rows[0] != self.record.after:
            self._rows = self.record.after, rows_of(self.record)
        return self._rows[1]

    @property
    def givenNames(self) -> tuple[str, str]:
        """The names of the start and of the excluded segments; empty if not given."""
        head = self.record.head
        start = head.get("start") or self._given.get("start") or {}
        out = head.get("excluded") or self._given.get("exclude") or {}
        return str(start.get("name", "")), str(out.get("name", ""))

    @property
    def begun(self) -> dict | None:
        """The size of the mask before the first step, with the keys of `rows`; None if there was none."""
        known = list(self.record.slices(0).values()) if self.isOpened else []
        if known and not self._alone:
            return {"ml": self.record.volume_ml(0)}
        return known[0] if known else None

    @property
    def places(self) -> RunPlaces:
        """Conversion of world coordinates."""
        return RunPlaces(self.record, self._toRas, self.mask.node, self.place.axis, self.place.index)

    def moveFields(self, number: int, ras) -> dict:
        """The fields of the request `add` for moving the click of step `number`. Raises InputError.

        For a single slice, all later steps are removed; in a volume, the later clicks on the same slice.
        """
        mark = self.marks.dragged
        for each in clicks_of(self.record, self.shown):
            if each.step == number and (mark is None or mark.number != number or mark.which == each.which):
                x, y = self.places.onPicture(each.index, ras)
                fields = {"slice": each.index, "click": {"x": x, "y": y, "positive": each.click.positive}}
                if self._alone:
                    return {**fields, "after": self.record.after[: number - 1]}
                return {**fields, "replace": each.which}
        raise InputError(f"step {number} is not a click")

    def writeReview(self, path: str) -> None:
        """Write the review page. Raises InputError if there is nothing to review yet, OutputError."""
        if not self.isOpened:
            raise InputError("there is nothing to review yet")
        write_review(path, self.record.trajectory(None if self._alone else self._pictures()))

    def _pictures(self) -> Callable[[int], Picture]:
        """The pictures of a volume, which are not in its record."""
        if self.volumeNode is None:
            raise InputError("the review page needs the volume, and it is no longer in the scene")
        volume, scan = self.record.head["volume"], scanOf(self.volumeNode, np.array(self._image["affine"]))
        plane, window = "xyz"[self.place.axis], tuple(volume["window"])
        return lambda index: cut(scan, plane, index, window, Orientation(volume["orientation"]))

    @property
    def volumeNode(self):
        """The volume of the question, or None if it was deleted."""
        return self.textNode.GetNodeReference("volume")

    @property
    def place(self) -> SlicePlace:
        axis = int(self._image["axis"])
        return SlicePlace(axis, int(self._image["index"]), int(self._image["shape"][axis]))

    @property
    def modality(self) -> tuple[str, str]:
        """The modality used for the run, and how it was determined, see modalityWords."""
        word, how = modalityWords(self._image)
        if "modality" not in self._image:  # a recorded run, whose scan was read from files
            how = " ".join([*map(str, self.record.head.get("picture", {}).get("notes") or []), how])
        return word, how

    def opened(self, head: dict) -> None:
        """The worker has cut the slices: add its description of them to the record."""
        self._given = {}
        self.record.open(head)
        if "start" in self.record.head:
            self.show(self.shown)
        self.save()

    def describe(self, folder: Path) -> dict:
        """The fields of the worker's request `ask` to open this run.

        Writes the required part of the volume into the worker's folder: nothing if the picture is in the record,
        otherwise the slice or all slices.

        :raises GeometryError: if the volume is needed but was deleted.
        """
        record, volumeNode = self.record, self.volumeNode
        fields: dict = {"question": record.question, "scope": record.scope}
        if self.isOpened:
            fields.update(head=record.head, known=record.known())
            if self._alone:
                return fields
        if volumeNode is None:
            raise GeometryError(
                "The volume of this run is no longer in the scene. "
                + (
                    "The mask can still be accepted."
                    if self.isOpened
                    else "Discard the run and ask about another volume."
                )
            )
        voxels = slicer.util.arrayFromVolume(volumeNode)  # (K, J, I)
        if self._alone:
            axis, index = int(self._image["axis"]), int(self._image["index"])
            where = [slice(None)] * 3
            where[2 - axis] = slice(index, index + 1)
            voxels = voxels[tuple(where)]
        path = folder / f"{record.session}.npy"
        np.save(path, voxels)
        given = writeGiven(self._given, self._image, folder, record.session)
        return {**fields, "image": {**self._image, "file": str(path)}, **given}

    def show(self, number: int) -> None:
        """Show the masks and the marks as they were after step `number` (0: before the first)."""
        self.shown = number
        if not self.isOpened:
            return
        record = self.record
        with slicer.util.RenderBlocker():
            known = record.slices(number)
            for index in {*known, *self._displayed}:
                self.showSlice(index, known.get(index))
            marks = [
                Mark(each.step, record.geometry_of(each.index).to_voxel(each.click.x, each.click.y),
                     each.click.positive, each.which)
                for each in clicks_of(record, number)
            ]  # fmt: skip
            self.marks.show(marks, number, self._toRas, record.geometry_of(self.shownSlice))
            self._showFrame()

    def showSlice(self, index: int, known: dict | None) -> None:
        """Update the displayed mask of a slice, also during propagation. An unchanged mask is not written again."""
        runs = None if known is None else str(known["mask_rle"])
        if self._displayed.get(index) == runs:
            return
        if not self._displayed:
            self.mask.reserve(self.record.geometry, *self.record.range)
        self.mask.show(self.record.decode(known), self.record.geometry_of(index))
        self._displayed[index] = runs
        if runs is None:
            del self._displayed[index]

    def _showFrame(self) -> None:
        record, transformID = self.record, self.mask.node.GetTransformNodeID()
        self.frameMark.show(record.frame, record.geometry, record.range, self._toRas, transformID)
        boxes = [row for row in self.rows()[: self.shown] if row["action"]["kind"] == "box"]
        last = boxes[-1] if boxes else {}
        self._drawBox(last.get("action"), int(last.get("slice", record.geometry.index)))

    def aimBox(self, corner, opposite) -> None:
        """Draw the box that the user is placing, or nothing if it is not valid; `show` removes it."""
        try:
            fields = self.places.boxFields(corner, opposite)
            self._drawBox(fields["click"], fields["slice"])
        except InputError:
            self._drawBox(None, self.record.geometry.index)

    def _drawBox(self, edges: dict | None, index: int) -> None:
        geometry, box = self.record.geometry, None
        if edges is not None:
            across = {"left": edges["x0"] * geometry.width, "right": edges["x1"] * geometry.width}
            down = {"top": edges["y0"] * geometry.height, "bottom": edges["y1"] * geometry.height}
            box = SimpleNamespace(**across, **down)
        self.boxMark.show(box, geometry, (index, index), self._toRas, self.mask.node.GetTransformNodeID())

    def isAnotherThanShown(self, number: int) -> bool:
        """Whether showing step `number` would change the views."""
        return number != self.shown or not self._visible

    def setVisible(self, visible: bool) -> None:
        """Show or hide mask and marks in the views."""
        self._visible = visible
        for part in (self.mask, self.marks, self.frameMark, self.boxMark):
            part.setVisible(visible)

    def showLast(self) -> None:
        self.show(len(self.record.steps))

    def reveal(self) -> None:
        """Scroll the views along this axis, in every layout, to the slice of the shown step."""
        if self.volumeNode is not None:
            ijk = [count // 2 for count in self._image["shape"]]
            ijk[self.place.axis] = self.shownSlice
            showSliceInViews(self.volumeNode, self.place.axis, ijk)

    def save(self) -> None:
        """Update the text node."""
        self._text.write(KeptRun(self.record, self._image, self._toRas, self.shown, self._given))

    def finish(self) -> None:
        """The mask was accepted: the record stays in the scene. Mask and marks are hidden, can be shown until
        `remove`, and are no longer saved with scenes.
        """
        self.textNode.SetAttribute(ATTRIBUTE, "accepted")
        for role in ("segmentation", *ClickMarks.ROLES):
            self.textNode.SetNodeReferenceID(role, None)
        self.save()
        self.marks.setMovable(False)
        for node in (self.mask.node, *self.marks.nodes.values()):
            keepOutOfFiles(node)
        self.setVisible(False)

    def remove(self, record: bool) -> None:
        """Remove mask and marks from the scene, and also the record if `record` is true."""
        self.marks.remove()
        self.frameMark.remove()
        self.boxMark.remove()
        self.mask.remove()
        if record:
            removeNode(self.textNode)

    def forget(self) -> None:
        """Release the nodes: the scene is being closed, or another owner takes over."""
        self.marks.letGo()
        self.frameMark.remove()
        self.boxMark.remove()

    def isInScene(self) -> bool:
        """Whether the nodes of the run still exist."""
        nodes = [self.textNode, self.mask.node, *self.marks.nodes.values()]
        return all(slicer.mrmlScene.IsNodePresent(node) for node in nodes)

    def _createNodes(self, volumeNode) -> None:
        if volumeNode is None:
            raise InputError("the volume and the mask of this run are no longer in the scene")
        self.mask = MaskDisplay.create(volumeNode, self.record.question)
        self.marks = ClickMarks.create(volumeNode)
        self.textNode.SetNodeReferenceID("segmentation", self.mask.node.GetID())
        for role in ClickMarks.ROLES:
            self.textNode.SetNodeReferenceID(role, self.marks.nodes[role].GetID())
