"""The folded box below the question: a segment to begin from, and segments that the mask never enters."""

from __future__ import annotations

import qt

from ..Agent import Agent
from ..scene.GivenSegments import Segment
from ..scene.SegmentWatch import SegmentWatch, segmentsOf
from .TickList import TickList

_LONGEST = 48  # letters of the title, which may not widen the panel


class BeginPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    """

    def __init__(self, ui, agent: Agent) -> None:
        self.ui, self.agent = ui, agent
        self._accepted: object = None  # the run whose start is no longer chosen
        self._startWatch, self._excludeWatch = SegmentWatch(self._fillStart), SegmentWatch(self._fillExclude)
        self._menu = qt.QMenu(ui.excludeSegmentsButton)
        for text, ticked in (("All others", True), ("None", False)):
            action = qt.QAction(text, self._menu)
            action.connect("triggered()", lambda ticked=ticked: self._tickAll(ticked))
            self._menu.addAction(action)
        self.list = TickList(self._menu, self._showChosen)
        ui.excludeSegmentsButton.setMenu(self._menu)
        ui.startNodeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onStartNode)
        ui.startSegmentSelector.connect("currentIndexChanged(int)", lambda row: self._showChosen())
        ui.excludeNodeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onExcludeNode)
        agent.changed.connect(self._onRunChanged)
        self._onStartNode(ui.startNodeSelector.currentNode())
        self._onExcludeNode(ui.excludeNodeSelector.currentNode())

    def cleanup(self) -> None:
        self._startWatch.watch(None)
        self._excludeWatch.watch(None)

    @property
    def start(self) -> Segment | None:
        """The segment to begin from; None where none is chosen."""
        segmentId = self.ui.startSegmentSelector.currentData
        return (self.ui.startNodeSelector.currentNode(), segmentId) if segmentId else None

    @property
    def exclude(self) -> list[Segment]:
        """The segments that are ticked."""
        node = self.ui.excludeNodeSelector.currentNode()
        return [(node, segmentId) for segmentId in self.list.ticked]

    def _onStartNode(self, node) -> None:
        self._startWatch.watch(node)
        self.ui.startSegmentSelector.clear()  # IDs repeat from node to node: another Segment_1 was not chosen
        self._fillStart()

    def _onExcludeNode(self, node) -> None:
        self._excludeWatch.watch(node)
        self.list.fill((), ())
        self._fillExclude()

    def _fillStart(self) -> None:
        selector = self.ui.startSegmentSelector
        chosen = selector.currentData
        blocked = selector.blockSignals(True)
        selector.clear()
        selector.addItem("None", "")
        for segmentId, name in segmentsOf(self.ui.startNodeSelector.currentNode()):
            selector.addItem(name, segmentId)
        selector.setCurrentIndex(max(selector.findData(chosen), 0) if chosen else 0)
        selector.blockSignals(blocked)
        self._showChosen()

    def _fillExclude(self) -> None:
        self.list.fill(segmentsOf(self.ui.excludeNodeSelector.currentNode()), self.list.ticked)
        self._showChosen()

    def _tickAll(self, ticked: bool) -> None:
        """Tick every segment but the one to begin from, or no segment."""
        node = self.ui.excludeNodeSelector.currentNode()
        self.list.tickOnly([each for each in self.list.keys if ticked and (node, each) != self.start])

    def _onRunChanged(self) -> None:
        accepted = self.agent.accepted
        if (
            accepted is not None and accepted is not self._accepted
        ):  # the next question is about something else
            self.ui.startSegmentSelector.setCurrentIndex(0)
        self._accepted = accepted
        self._showChosen()

    def _showChosen(self) -> None:
        """Say in the title what is chosen, or what the open run was asked with: the box is folded most of the time."""
        ui, run = self.ui, self.agent.current
        for widget in (ui.startNodeSelector, ui.startSegmentSelector, ui.excludeNodeSelector):
            widget.setEnabled(run is None)
        count, excluded = len(self.list.keys), len(self.exclude)
        ui.excludeSegmentsButton.setEnabled(run is None and count > 0)
        ui.excludeSegmentsButton.setText(f"{excluded} of {count}" if excluded else "None")
        if run is not None:
            start, out = run.givenNames
        else:
            start = ui.startSegmentSelector.currentText if self.start else ""
            out = f"{excluded} segment{'s' if excluded > 1 else ''}" if excluded else ""
        told = ", ".join(filter(None, (start, f"{out} excluded" if out else "")))
        short = f"{told[:_LONGEST]}…" if len(told) > _LONGEST else told
        ui.beginBox.setTitle(f"Begin from: {short}" if told else "Begin from a segment")
        ui.beginBox.setToolTip(told)
