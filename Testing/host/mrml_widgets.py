"""Stand-ins for the qMRML and qSlicer widgets that a scripted module's panel uses.

They hold the real scene and nodes; names, properties and signals follow Slicer's headers. They are ordinary
Qt inside and do not look like Slicer's.
"""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from .ui_files import standin

Property = QtCore.Property

SCENE_EVENTS = (
    "NodeAddedEvent",
    "NodeRemovedEvent",
    "EndCloseEvent",
    "EndImportEvent",
    "EndBatchProcessEvent",
)


def publish(cls: Any) -> Any:
    """Class decorator: `slicer.<name>`, and usable in .ui files."""
    setattr(slicer, cls.__name__, cls)
    return standin(cls)


class _HasScene:
    """mrmlScene(), setMRMLScene() and the signal, as every qMRML widget has them."""

    _scene: Any = None
    _observed: Any = None

    def _observe(self: Any, thing: Any, event: Any, callback: Any) -> None:
        """Observe until the widget is destroyed: VTK must not call into a dead one."""
        if self._observed is None:
            observed: list[tuple[Any, int]] = []
            self._observed = observed
            self.destroyed.connect(lambda *_: [one.RemoveObserver(tag) for one, tag in observed])
        self._observed.append((thing, thing.AddObserver(event, callback)))

    def _forget(self) -> None:
        """Stop observing everything."""
        for thing, tag in self._observed or ():
            thing.RemoveObserver(tag)
        if self._observed:
            self._observed.clear()

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        self._scene = scene
        self._on_scene()
        if hasattr(self, "mrmlSceneChanged"):
            self.mrmlSceneChanged.emit(scene)

    def _on_scene(self) -> None:
        pass


@publish
class qMRMLWidget(_HasScene, QtWidgets.QWidget):
    """A container that hands the scene on through its signal: the .ui file must connect it."""

    mrmlSceneChanged = QtCore.Signal(object)
    cpp_signals = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}


@publish
class qSlicerWidget(_HasScene, QtWidgets.QWidget):
    """Base of Slicer's own widgets."""

    mrmlSceneChanged = QtCore.Signal(object)
    cpp_signals = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}


def _flag(name: str, default: Any, kind: Any = bool) -> Any:
    """A property that is only kept (and may change the list)."""

    def write(self: Any, value: Any) -> None:
        self._kept[name] = list(value) if isinstance(value, (list, tuple)) else value
        self._refresh()

    return Property(kind, lambda self: self._kept.get(name, default), write)


@publish
class qMRMLNodeComboBox(_HasScene, QtWidgets.QWidget):
    """Lists the scene's nodes of the given types; the menu to create, rename and delete is not imitated."""

    currentNodeChanged = QtCore.Signal(object)
    currentNodeIDChanged = QtCore.Signal(str)
    nodeActivated = QtCore.Signal(object)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    _validNodeChanged = QtCore.Signal(bool)
    cpp_signals = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "_validNodeChanged",
        "currentNodeIDChanged(QString)": "currentNodeIDChanged",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
        "nodeAdded(vtkMRMLNode*)": "nodeAdded",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._kept: dict[str, Any] = {}
        self._attributes: list[tuple[str, str, Any]] = []
        self._ids: list[str] = []
        self._current = ""
        self._busy = False
        self._box = QtWidgets.QComboBox(self)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._box)
        self._box.currentIndexChanged.connect(self._on_index)
        self._box.activated.connect(lambda _: self.nodeActivated.emit(self.currentNode()))
        QtWidgets.QWidget.setEnabled(self, False)

    nodeTypes = _flag("nodeTypes", [], "QStringList")
    hideChildNodeTypes = _flag("hideChildNodeTypes", [], "QStringList")
    noneEnabled = _flag("noneEnabled", False)
    noneDisplay = _flag("noneDisplay", "None", str)
    addEnabled = _flag("addEnabled", True)
    removeEnabled = _flag("removeEnabled", True)
    editEnabled = _flag("editEnabled", False)
    renameEnabled = _flag("renameEnabled", False)
    showHidden = _flag("showHidden", False)
    showChildNodeTypes = _flag("showChildNodeTypes", True)
    selectNodeUponCreation = _flag("selectNodeUponCreation", True)
    baseName = _flag("baseName", "", str)

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        self._attributes.append((node_type, name, value))
        self._refresh()

    def _on_scene(self) -> None:
        self._forget()
        if self._scene is not None:
            for event in SCENE_EVENTS:
                self._observe(self._scene, getattr(slicer.vtkMRMLScene, event), self._on_scene_event)
        QtWidgets.QWidget.setEnabled(self, self._scene is not None)
        self._refresh()

    def _on_scene_event(self, *_: Any) -> None:
        if not self._scene.IsBatchProcessing():
            self._refresh()

    def _accepts(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self._kept.get("showHidden", False):
            return False
        if any(node.IsA(name) for name in self._kept.get("hideChildNodeTypes", ())):
            return False
        for node_type, name, value in self._attributes:
            if node.IsA(node_type) and (
                node.GetAttribute(name) is None
                or (value is not None and node.GetAttribute(name) != str(value))
            ):
                return False
        types = self._kept.get("nodeTypes", ())
        if self._kept.get("showChildNodeTypes", True):
            return any(node.IsA(name) for name in types)
        return node.GetClassName() in types

    def _refresh(self) -> None:
        if self._scene is None:
            return
        nodes = [self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes())]
        nodes = [node for node in nodes if self._accepts(node)]
        none = [""] if self._kept.get("noneEnabled", False) else []
        self._busy = True
        self._box.clear()
        self._ids = none + [node.GetID() for node in nodes]
        self._box.addItems(
            [self._kept.get("noneDisplay", "None")] * len(none) + [n.GetName() or "" for n in nodes]
        )
        self._busy = False
        if self._current in self._ids:
            index = self._ids.index(self._current)
        elif none or not self._ids:
            index = 0 if none else -1
        else:
            index = len(self._ids) - 1 if self._current else 0
        self._box.setCurrentIndex(index)
        self._on_index(index)

    def _on_index(self, index: int) -> None:
        if self._busy:
            return
        current = self._ids[index] if 0 <= index < len(self._ids) else ""
        if current == self._current:
            return
        self._current = current
        node = self.currentNode()
        self.currentNodeChanged.emit(node)
        self._validNodeChanged.emit(node is not None)
        self.currentNodeIDChanged.emit(current)

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._current) if self._scene is not None and self._current else None

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def setCurrentNodeID(self, node_id: str | None) -> None:
        wanted = node_id or ""
        self._box.setCurrentIndex(self._ids.index(wanted) if wanted in self._ids else -1)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNodeID([i for i in self._ids if i][index])

    def nodeCount(self) -> int:
        return len([node_id for node_id in self._ids if node_id])

    def nodeFromIndex(self, index: int) -> Any:
        return self._scene.GetNodeByID([node_id for node_id in self._ids if node_id][index])

    def addNode(self, node_type: str | None = None) -> Any:
        """What *Create new …* in the menu does."""
        node_type = node_type or self._kept["nodeTypes"][0]
        node = self._scene.AddNewNodeByClass(node_type, self._kept.get("baseName", ""))
        if self._kept.get("selectNodeUponCreation", True):
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        if self.currentNode() is not None:
            self._scene.RemoveNode(self.currentNode())

    currentNodeID = Property(str, lambda self: self._current, setCurrentNodeID)


@publish
class qSlicerMarkupsPlaceWidget(qSlicerWidget):
    """The place button: it drives Slicer's real selection and interaction nodes."""

    ShowPlaceMultipleMarkupsOption, HidePlaceMultipleMarkupsOption = 0, 1
    ForcePlaceSingleMarkup, ForcePlaceMultipleMarkups = 2, 3
    activeMarkupsPlaceModeChanged = QtCore.Signal(bool)
    activeMarkupsFiducialPlaceModeChanged = QtCore.Signal(bool)
    cpp_signals = {
        "activeMarkupsPlaceModeChanged(bool)": "activeMarkupsPlaceModeChanged",
        "activeMarkupsFiducialPlaceModeChanged(bool)": "activeMarkupsFiducialPlaceModeChanged",
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._multiple = 0
        self._signaled = False
        self._place = QtWidgets.QToolButton(self)
        self._place.setText("✛")
        self._place.setCheckable(True)
        self._place.toggled.connect(self._on_button)
        self._delete = QtWidgets.QToolButton(self)
        self._delete.setText("✕")
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._place)
        row.addWidget(self._delete)
        self._delete.clicked.connect(self.deleteLastPoint)

    def _on_scene(self) -> None:
        self._forget()
        if self._scene is None:
            return
        for node in (self.interactionNode(), self.selectionNode()):
            self._observe(node, "ModifiedEvent", self._update)
        mode_changed = slicer.vtkMRMLInteractionNode.InteractionModeChangedEvent
        self._observe(self.interactionNode(), mode_changed, self._update)

    def placeButton(self) -> Any:
        return self._place

    def deleteButton(self) -> Any:
        return self._delete

    def interactionNode(self) -> Any:
        return slicer.app.applicationLogic().GetInteractionNode()

    def selectionNode(self) -> Any:
        return slicer.app.applicationLogic().GetSelectionNode()

    def currentNode(self) -> Any:
        return self._node

    currentMarkupsNode = currentNode

    def setCurrentNode(self, node: Any) -> None:
        self._node = node
        self._update()

    def _is_active(self) -> bool:
        if self._scene is None or self._node is None or self._node.GetScene() is None:
            return False
        selection = self.selectionNode()
        return (
            slicer.modules.markups.logic().GetActiveListID() == self._node.GetID()
            and selection.GetActivePlaceNodeClassName() == self._node.GetClassName()
        )

    def _is_placing(self) -> bool:
        interaction = self.interactionNode()
        return self._is_active() and interaction.GetCurrentInteractionMode() == interaction.Place

    def setPlaceModeEnabled(self, enable: bool) -> None:
        interaction = self.interactionNode()
        if self._scene is None or self._node is None:
            if enable:
                raise RuntimeError("qSlicerMarkupsPlaceWidget: place mode needs a scene and a current node")
            return
        if not enable:
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)
            return
        if not self._is_active():
            slicer.modules.markups.logic().SetActiveList(self._node)
        if self._multiple == self.ForcePlaceSingleMarkup:
            interaction.SetPlaceModePersistence(0)
        elif self._multiple == self.ForcePlaceMultipleMarkups:
            interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)

    def setCurrentNodeActive(self, active: bool) -> None:
        slicer.modules.markups.logic().SetActiveList(self._node if active else None)

    def setPlaceModePersistency(self, persistent: bool) -> None:
        self.interactionNode().SetPlaceModePersistence(int(persistent))

    def deleteLastPoint(self) -> None:
        if self._node is not None and self._node.GetNumberOfControlPoints():
            self._node.RemoveNthControlPoint(self._node.GetNumberOfControlPoints() - 1)

    def deleteAllPoints(self) -> None:
        if self._node is not None:
            self._node.RemoveAllControlPoints()

    def _on_button(self, pressed: bool) -> None:
        self.setPlaceModeEnabled(pressed)
        self._update()

    def _update(self, *_: Any) -> None:
        placing = self._is_placing()
        blocked = self._place.blockSignals(True)
        self._place.setEnabled(self._node is not None)
        self._place.setChecked(placing)
        self._place.blockSignals(blocked)
        if placing != self._signaled:
            self._signaled = placing
            self.activeMarkupsFiducialPlaceModeChanged.emit(placing)
            self.activeMarkupsPlaceModeChanged.emit(placing)

    def setPlaceMultipleMarkups(self, option: int) -> None:
        self._multiple = option

    def setButtonsVisible(self, visible: bool) -> None:
        self._delete.setVisible(visible)
        self._place.setVisible(visible)

    placeModeEnabled = Property(bool, _is_placing, setPlaceModeEnabled)
    currentNodeActive = Property(bool, _is_active, setCurrentNodeActive)
    placeModePersistency = Property(
        bool, lambda self: bool(self.interactionNode().GetPlaceModePersistence()), setPlaceModePersistency
    )
    placeMultipleMarkups = Property(int, lambda self: self._multiple, setPlaceMultipleMarkups)
    buttonsVisible = Property(bool, lambda self: not self._place.isHidden(), setButtonsVisible)
    deleteAllControlPointsOptionVisible = Property(bool, lambda self: True, lambda self, v: None)
