"""Begin from: the segment to start from, and excluded segments. Hidden until its button is pressed."""

from __future__ import annotations

import qt
from ibis_agent.mask.structures import called, name_for

from ..Agent import Agent
from ..Errors import PlainError
from ..scene.GivenSegments import Segment
from ..scene.SegmentWatch import SegmentWatch, segmentsOf
from .TickList import TickList

_TIP = "Start from a segment of the scene, and exclude other segments from the mask"


class BeginPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    """

    def __init__(self, ui, agent: Agent) -> None:
        self.ui, self.agent = ui, agent
        self._accepted: object = None  # the accepted run for which the start was reset
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
        ui.beginButton.connect("toggled(bool)", lambda on: self._showChosen())
        ui.questionSection.connect("contentsCollapsed(bool)", lambda folded: self._showChosen())
        agent.changed.connect(self._onRunChanged)
        self._onStartNode(ui.startNodeSelector.currentNode())
        self._onExcludeNode(ui.excludeNodeSelector.currentNode())

    def cleanup(self) -> None:
        self._startWatch.watch(None)
        self._excludeWatch.watch(None)

    @property
    def start(self) -> Segment | None:
        """The segment to start from; None if none is selected or the button is not pressed."""
        segmentId = self.ui.beginButton.checked and self.ui.startSegmentSelector.currentData
        return (self.ui.startNodeSelector.currentNode(), segmentId) if segmentId else None

    def starts(self, questions: list[str]) -> list[Segment | None]:
        """The segment that each question starts from: the selected one; with several structures, the segment of the
        same segmentation that has the structure's name.

        :raises PlainError: if there is no such segment.
        """
        if self.start is None or len(questions) == 1:
            return [self.start] * len(questions)
        node, found = self.start[0], list[Segment | None]()
        ids = {name: segmentId for segmentId, name in reversed(segmentsOf(node))}
        for structure in map(name_for, questions):
            name = called(structure, list(ids))
            if not name:
                raise PlainError(
                    f"{node.GetName()} has no segment {structure} to begin from. Ask about {structure} by itself, or "
                    "select None as the start."
                )
            found.append((node, ids[name]))
        return found

    @property
    def exclude(self) -> list[Segment]:
        """The ticked segments; none if the button is not pressed."""
        node = self.ui.excludeNodeSelector.currentNode()
        return [(node, segmentId) for segmentId in self.list.ticked] if self.ui.beginButton.checked else []

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
        """Tick every segment except the one to start from, or none."""
        node = self.ui.excludeNodeSelector.currentNode()
        self.list.tickOnly([each for each in self.list.keys if ticked and (node, each) != self.start])

    def _onRunChanged(self) -> None:
        accepted = self.agent.accepted
        if accepted is not None and accepted is not self._accepted:  # the next question has another start
            self.ui.startSegmentSelector.setCurrentIndex(0)
        self._accepted = accepted
        self._showChosen()

    def _showChosen(self) -> None:
        """Show the box while its button is pressed; the button's tooltip shows the segments given to the open run."""
        ui, run, count = self.ui, self.agent.current, len(self.list.keys)
        ui.beginBox.setVisible(ui.beginButton.checked and not ui.questionSection.collapsed)
        for widget in (ui.beginButton, ui.startNodeSelector, ui.startSegmentSelector, ui.excludeNodeSelector):
            widget.setEnabled(run is None)
        ui.excludeSegmentsButton.setEnabled(run is None and count > 0)
        ui.excludeSegmentsButton.setText(
            f"{len(self.list.ticked)} of {count}" if self.list.ticked else "None"
        )
        start, out = run.givenNames if run is not None else ("", "")
        told = [f"Started from {start}."] if start else []
        told += [f"Excluded: {out}."] if out else []
        ui.beginButton.setToolTip(" ".join(told) or _TIP)
