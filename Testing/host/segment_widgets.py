"""Stand-ins for the widgets that show or choose segments."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from .mrml_widgets import publish, qMRMLNodeComboBox, qMRMLWidget

Property = QtCore.Property

SEGMENTATION_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified")


@publish
class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """A segmentation node and one of its segments; choosing several is not imitated."""

    currentNodeChanged = QtCore.Signal(object)
    currentSegmentChanged = QtCore.Signal(str)
    cpp_signals = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentSegmentChanged(QString)": "currentSegmentChanged",
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._none = False
        self._nodes = qMRMLNodeComboBox(self)
        self._nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._segments = QtWidgets.QComboBox(self)
        self._watched: list[tuple[Any, int]] = []
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._nodes)
        column.addWidget(self._segments)
        self._nodes.currentNodeChanged.connect(self._on_node)
        self._segments.currentIndexChanged.connect(lambda _: self.currentSegmentChanged.emit(self._segment()))
        self.destroyed.connect(lambda *_, watched=self._watched: _unwatch(watched))

    def _on_scene(self) -> None:
        self._nodes.setMRMLScene(self._scene)

    def _on_node(self, node: Any) -> None:
        _unwatch(self._watched)
        if node is not None:
            segmentation = node.GetSegmentation()
            for event in SEGMENTATION_EVENTS:
                code = getattr(slicer.vtkSegmentation, event)
                self._watched.append((segmentation, segmentation.AddObserver(code, self._fill)))
        self._fill()
        self.currentNodeChanged.emit(node)

    def _fill(self, *_: Any) -> None:
        before = self._segment()
        blocked = self._segments.blockSignals(True)
        self._segments.clear()
        if self._none:
            self._segments.addItem("None", "")
        for segment_id in self.segmentIDs():
            segment = self.currentNode().GetSegmentation().GetSegment(segment_id)
            self._segments.addItem(segment.GetName(), segment_id)
        index = self._segments.findData(before)
        self._segments.setCurrentIndex(
            index if index >= 0 else min(self._segments.count - 1, int(self._none))
        )
        self._segments.blockSignals(blocked)
        if self._segment() != before:
            self.currentSegmentChanged.emit(self._segment())

    def _segment(self) -> str:
        return self._segments.currentData or ""

    def currentNode(self) -> Any:
        return self._nodes.currentNode()

    def currentNodeID(self) -> str:
        return self._nodes.currentNodeID

    def currentSegmentID(self) -> str:
        return self._segment()

    def segmentIDs(self) -> tuple[str, ...]:
        node = self.currentNode()
        return tuple(node.GetSegmentation().GetSegmentIDs()) if node is not None else ()

    def setCurrentNode(self, node: Any) -> None:
        self._nodes.setCurrentNode(node)

    def setCurrentNodeID(self, node_id: str) -> None:
        self._nodes.setCurrentNodeID(node_id)

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._segments.setCurrentIndex(self._segments.findData(segment_id or ""))

    def setNoneEnabled(self, enabled: bool) -> None:
        self._none = enabled
        self._nodes.noneEnabled = enabled
        self._fill()

    def setEditEnabled(self, enabled: bool) -> None:
        self._nodes.editEnabled = enabled

    def setSegmentationNodeSelectorVisible(self, visible: bool) -> None:
        self._nodes.setVisible(visible)

    noneEnabled = Property(bool, lambda self: self._none, setNoneEnabled)
    editEnabled = Property(bool, lambda self: self._nodes.editEnabled, setEditEnabled)
    segmentationNodeSelectorVisible = Property(
        bool, lambda self: not self._nodes.isHidden(), setSegmentationNodeSelectorVisible
    )


def _unwatch(watched: list[tuple[Any, int]]) -> None:
    for segmentation, tag in watched:
        segmentation.RemoveObserver(tag)
    watched.clear()


@publish
class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):
    """Makes and removes the closed surfaces of a segmentation. There is no 3D view to show them in."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        QtWidgets.QPushButton.setText(self, "Show 3D")
        QtWidgets.QPushButton.setCheckable(self, True)
        self.toggled.connect(self._on_toggled)
        self._update()

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node
        self._update()

    def _update(self) -> None:
        filled = self._node is not None and self._node.GetSegmentation().GetNumberOfSegments() > 0
        QtWidgets.QPushButton.setEnabled(self, filled)
        blocked = QtCore.QObject.blockSignals(self, True)
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        shown = filled and self._node.GetSegmentation().ContainsRepresentation(surface)
        QtWidgets.QPushButton.setChecked(self, shown)
        QtCore.QObject.blockSignals(self, blocked)

    def _on_toggled(self, shown: bool) -> None:
        if self._node is None:
            return
        if shown:
            self._node.CreateClosedSurfaceRepresentation()
        else:
            self._node.RemoveClosedSurfaceRepresentation()
