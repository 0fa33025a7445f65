"""The Result section: the answer, where the mask goes, accept, discard, export."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from ibis_agent.mask.structures import name_for

from ..Agent import Agent
from ..Errors import telling
from ..scene.Export import canExportDicom
from ..scene.RunText import ATTRIBUTE, runsInScene
from ..scene.SegmentWatch import SegmentWatch, segmentsOf
from .Texts import plain

_NEW_SEGMENT = "New segment"


class ResultPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    :param say: shows a line to the user.
    :param measured: returns the size of the mask for a run over a volume.
    """

    def __init__(self, ui, agent: Agent, say, measured) -> None:
        self.ui, self.agent, self._say, self._measured = ui, agent, say, measured
        self._watch = SegmentWatch(self._fillSegments)
        self._run: Any = None
        self._menu = qt.QMenu(ui.exportButton)
        ui.exportButton.setMenu(self._menu)
        self._menu.connect("aboutToShow()", self._fillMenu)
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onSegmentationChanged)
        ui.segmentSelector.connect("currentIndexChanged(int)", self.update)
        ui.acceptButton.connect("clicked()", lambda: self.onAccept())
        ui.discardButton.connect("clicked()", self.onDiscard)
        agent.changed.connect(self.update)
        agent.worker.changed.connect(self.update)
        self._fillSegments()

    def cleanup(self) -> None:
        self._watch.watch(None)

    def update(self, *_: object) -> None:
        ui, run = self.ui, self.agent.current
        record = run.record if run else None
        if run is not None and run is not self._run:
            self._aim(run)
        self._run = run
        steps = self.agent.steps
        answer = (record.answer or "") if record else ""
        told = " — ".join(filter(None, (f"Answer: {answer}" if answer else "", self._measured())))
        ui.answerLabel.setText(told)
        ui.answerLabel.setToolTip(plain(told) if told else "")
        ui.nameEdit.setPlaceholderText(name_for(record.question, answer) if record else "")
        ui.nameEdit.setEnabled(not ui.segmentSelector.currentData)
        shown = run.shown if run else 0
        earlier = 0 < shown < len(steps)
        ui.acceptButton.setText(f"Accept step {shown}" if earlier else "Accept")
        obstacle = "" if shown > 0 and steps[shown - 1]["area_px"] > 0 else "There is no mask to accept yet"
        if run is not None and run.scope == "volume" and self.agent.isWorking:
            obstacle = "The mask is still changing. Stop the agent first, or wait."
        ui.acceptButton.setEnabled(not obstacle)
        ui.acceptButton.setToolTip(obstacle or "Add the displayed mask to the segmentation")
        ui.discardButton.setEnabled(run is not None)
        ui.exportButton.setEnabled(self.agent.hasMask or bool(run and steps) or bool(_accepted()))

    def onAccept(self, further: bool = False) -> None:
        """Accept. further: as a new segment with its own name, regardless of the selection: one of several
        structures."""
        ui = self.ui
        with telling(self._say):
            target = ui.segmentationSelector.currentNode()
            segmentId = self.agent.accept(
                target,
                "" if further else ui.segmentSelector.currentData or "",
                "" if further else ui.nameEdit.text.strip(),
                ui.show3DCheckBox.checked,
            )
            node, measured = self.agent.results.segmentation, self.agent.measured
            if not further:
                ui.nameEdit.setText("")
            ui.segmentationSelector.setCurrentNode(node)
            ui.segmentSelector.setCurrentIndex(0)  # the next answer becomes another segment
            name = node.GetSegmentation().GetSegment(segmentId).GetName()
            size = f" {measured.sentence()}" if measured else ""
            self._say(f"Added segment {name} to {node.GetName()}.{size}")
            if not further:  # the next question can be typed right away, replacing this one
                ui.questionEdit.selectAll()
                ui.questionEdit.setFocus()

    def onDiscard(self) -> None:
        if len(self.agent.steps) > 1 and not slicer.util.confirmOkCancelDisplay(
            "Discard this run with its steps and mask?", "IBISSlicer"
        ):
            return
        with telling(self._say):
            self.agent.discard()
            self._say("Run discarded.")

    def _aim(self, run) -> None:
        """A run about another volume must not go into the segmentation of the previous volume."""
        node = self.ui.segmentationSelector.currentNode()
        if node is None or node is not self.agent.results.segmentation:
            return
        volume = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
        if volume is not None and run.volumeNode is not None and volume is not run.volumeNode:
            self.ui.segmentationSelector.setCurrentNode(None)

    def _onSegmentationChanged(self, node) -> None:
        self._watch.watch(node)
        self.ui.segmentSelector.clear()  # IDs repeat from node to node: another Segment_1 was not chosen
        self._fillSegments()

    def _fillSegments(self) -> None:
        selector, node = self.ui.segmentSelector, self.ui.segmentationSelector.currentNode()
        chosen = selector.currentData
        blocked = selector.blockSignals(True)
        selector.clear()
        selector.addItem(_NEW_SEGMENT, "")
        for segmentId, name in segmentsOf(node):
            selector.addItem(f"Add to {name}", segmentId)
        selector.setCurrentIndex(max(selector.findData(chosen), 0) if chosen else 0)
        selector.blockSignals(blocked)
        self.update()

    def _fillMenu(self) -> None:
        self._menu.clear()
        masked = self.agent.hasMask
        kept = masked and self.agent.current is None  # DICOM SEG is made from the accepted segmentation
        reviewable = self.agent.current is not None and bool(self.agent.steps)
        self._add("Mask as segmentation (.seg.nrrd) …", masked, lambda: self._export(".seg.nrrd"))
        self._add("Mask as NIfTI (.nii.gz) …", masked, lambda: self._export(".nii.gz"))
        self._add("Segmentation as DICOM SEG …", kept and canExportDicom(), self._exportDicom)
        self._menu.addSeparator()
        self._add("Review page of this run (.html) …", reviewable, lambda: self._review(None))
        for node in _accepted()[-5:]:
            self._add(f"Review page of {node.GetName()} …", True, lambda node=node: self._review(node))

    def _add(self, text: str, possible: bool, act) -> None:
        action = qt.QAction(text, self._menu)
        action.setEnabled(possible)
        action.connect("triggered()", act)
        self._menu.addAction(action)

    def _fileName(self, title: str, suffix: str) -> str:
        return qt.QFileDialog.getSaveFileName(self.ui.exportButton, title, f"mask{suffix}", f"*{suffix}")

    def _export(self, suffix: str) -> None:
        path = self._fileName("Export mask", suffix)
        if path:
            path = path if path.lower().endswith(suffix) else path + suffix
            with telling(self._say):
                self._say(f"Saved {self.agent.export(path)}")

    def _exportDicom(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(self.ui.exportButton, "Folder for DICOM SEG")
        if folder:
            with telling(self._say):
                self.agent.exportDicom(folder)
                self._say(f"Saved DICOM SEG in {folder}")

    def _review(self, textNode) -> None:
        path = qt.QFileDialog.getSaveFileName(self.ui.exportButton, "Review page", "review.html", "*.html")
        if path:
            with telling(self._say):
                self.agent.writeReview(path, textNode)
                self._say(f"Saved {path}")


def _accepted() -> list:
    """The text nodes of accepted runs in the scene, oldest first."""
    return [node for node in runsInScene() if node.GetAttribute(ATTRIBUTE) == "accepted"]
