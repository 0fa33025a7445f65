"""The folded box below the question: a segment to begin from, and segments that the mask never enters."""

from __future__ import annotations

import qt

from ..Agent import Agent
from ..scene.GivenSegments import Segment
from ..scene.SegmentWatch import SegmentWatch, segmentsOf

_MOST_SHOWN = 12  # segments; a longer list is scrolled


class BeginPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    """

    def __init__(self, ui, agent: Agent) -> None:
        self.ui, self.agent, self._filling = ui, agent, False
        self._startWatch, self._excludeWatch = SegmentWatch(self._fillStart), SegmentWatch(self._fillExclude)
        self._menu = qt.QMenu(ui.excludeSegmentsButton)
        self._list = qt.QListWidget()
        self._list.connect("itemChanged(QListWidgetItem*)", lambda item: self._showChosen())
        for text, ticked in (("All others", True), ("None", False)):
            action = qt.QAction(text, self._menu)
            action.connect("triggered()", lambda ticked=ticked: self._tickAll(ticked))
            self._menu.addAction(action)
        self._listAction = qt.QWidgetAction(self._menu)
        self._listAction.setDefaultWidget(self._list)
        self._menu.addAction(self._listAction)
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
        return [
            (node, each.data(qt.Qt.UserRole)) for each in self._items() if each.checkState() == qt.Qt.Checked
        ]

    def _items(self) -> list:
        return [self._list.item(row) for row in range(self._list.count)]

    def _onStartNode(self, node) -> None:
        self._startWatch.watch(node)
        self._fillStart()

    def _onExcludeNode(self, node) -> None:
        self._excludeWatch.watch(node)
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
        node = self.ui.excludeNodeSelector.currentNode()
        ticked = {segmentId for _, segmentId in self.exclude}
        self._filling = True
        self._list.clear()
        for segmentId, name in segmentsOf(node):
            item = qt.QListWidgetItem(name)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if segmentId in ticked else qt.Qt.Unchecked)
            item.setData(qt.Qt.UserRole, segmentId)
            self._list.addItem(item)
        if self._list.count:
            shown = min(self._list.count, _MOST_SHOWN)
            self._list.setFixedHeight(shown * self._list.sizeHintForRow(0) + 2 * self._list.frameWidth)
        self._filling = False
        self._showChosen()

    def _tickAll(self, ticked: bool) -> None:
        """Tick every segment but the one to begin from, or no segment."""
        start, node = self.start, self.ui.excludeNodeSelector.currentNode()
        self._filling = True
        for item in self._items():
            wanted = ticked and (node, item.data(qt.Qt.UserRole)) != start
            item.setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)
        self._filling = False
        self._showChosen()

    def _onRunChanged(self) -> None:
        # The accepted mask has begun from it: the next question is about something else.
        if self.agent.current is None and self.agent.accepted is not None:
            self.ui.startSegmentSelector.setCurrentIndex(0)
        self._showChosen()

    def _showChosen(self) -> None:
        """Say in the title what is chosen, which the box does not show while it is folded."""
        if self._filling:
            return
        ui, asking, excluded = self.ui, self.agent.current is None, len(self.exclude)
        for widget in (ui.startNodeSelector, ui.startSegmentSelector, ui.excludeNodeSelector):
            widget.setEnabled(asking)
        ui.excludeSegmentsButton.setEnabled(asking and self._list.count > 0)
        count = self._list.count
        ui.excludeSegmentsButton.setText(f"{excluded} of {count}" if excluded else "None")
        told = [ui.startSegmentSelector.currentText] if self.start else []
        if excluded:
            told.append(f"{excluded} segment{'s' if excluded > 1 else ''} excluded")
        ui.beginBox.setTitle(f"Begin from: {', '.join(told)}" if told else "Begin from a segment")
