"""The Qt side of the slice views: qMRMLSliceView, qMRMLSliceWidget and the layout manager.

The picture is rendered offscreen by `slice_view` and painted; the mouse goes from Qt to Slicer's real
interactor style. Three slice views are drawn whatever the layout, and no 3D view; a layout decides, as in Slicer,
which slice nodes are mapped, and those that it adds have nodes and no view.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from .refuse import NotSimulatedError, Refusing
from .slice_view import SliceView

VIEWS = (
    ("Red", "Axial", (0.952, 0.290, 0.200)),
    ("Yellow", "Sagittal", (0.929, 0.835, 0.298)),
    ("Green", "Coronal", (0.431, 0.690, 0.294)),
)

#: layout → names of its slice views. Nodes stay when a layout hides them.
LAYOUTS = {
    slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView: ("Red", "Yellow", "Green"),
    slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView: ("Red",),
    slicer.vtkMRMLLayoutNode.SlicerLayoutThreeByThreeSliceView: (
        "Red", "Yellow", "Green", *(f"Slice{number}" for number in range(4, 10)),
    ),
}  # fmt: skip

_PRESS = {
    QtCore.Qt.MouseButton.LeftButton: "LeftButton",
    QtCore.Qt.MouseButton.RightButton: "RightButton",
    QtCore.Qt.MouseButton.MiddleButton: "MiddleButton",
}


class qMRMLSliceView(QtWidgets.QWidget):
    """Paints one slice view and forwards the mouse."""

    cpp_class = True

    def __init__(self, view: SliceView, parent: Any = None) -> None:
        super().__init__(parent)
        self._view = view
        self._paused = 0
        #: whether to draw whenever Slicer would; otherwise only when somebody looks, which saves tests minutes
        self._always = True
        view.on_request = self.scheduleRender
        QtWidgets.QWidget.setMouseTracking(self, True)
        QtWidgets.QWidget.setMinimumSize(self, 160, 140)
        QtWidgets.QWidget.setFocusPolicy(self, QtCore.Qt.FocusPolicy.StrongFocus)

    def resizeEvent(self, event: Any) -> None:
        size = event.size()
        self._view.resize(max(size.width(), 1), max(size.height(), 1))
        self._view.logic.FitSliceToBackground()

    def paintEvent(self, event: Any) -> None:
        if not self._always:
            return
        picture = self._view.picture()
        height, width, _ = picture.shape
        image = QtGui.QImage(picture.data, width, height, 3 * width, QtGui.QImage.Format.Format_RGB888)
        painter = QtGui.QPainter(self)
        painter.drawImage(0, 0, image)
        painter.end()

    def _forward(self, event: Any, name: str) -> None:
        position, keys = event.position(), event.modifiers()
        self._view.event(
            name,
            int(position.x()),
            int(position.y()),
            bool(keys & QtCore.Qt.KeyboardModifier.ControlModifier),
            bool(keys & QtCore.Qt.KeyboardModifier.ShiftModifier),
        )

    def mousePressEvent(self, event: Any) -> None:
        self._forward(event, _PRESS[event.button()] + "PressEvent")

    def mouseReleaseEvent(self, event: Any) -> None:
        self._forward(event, _PRESS[event.button()] + "ReleaseEvent")

    def mouseMoveEvent(self, event: Any) -> None:
        self._forward(event, "MouseMoveEvent")

    def enterEvent(self, event: Any) -> None:
        self._forward(event, "EnterEvent")

    def wheelEvent(self, event: Any) -> None:
        forward = event.angleDelta().y() > 0
        self._forward(event, "MouseWheelForwardEvent" if forward else "MouseWheelBackwardEvent")

    def scheduleRender(self) -> None:
        if self._always and not self._paused:
            QtWidgets.QWidget.update(self)

    def forceRender(self) -> None:
        if self._always:
            QtWidgets.QWidget.repaint(self)
        else:
            self._view.picture()

    def mrmlSliceNode(self) -> Any:
        return self._view.node

    def renderWindow(self) -> Any:
        return self._view.window

    def interactor(self) -> Any:
        return self._view.interactor

    def sliceViewInteractorStyle(self) -> Any:
        return self._view.style

    def displayableManagerByClassName(self, name: str) -> Any:
        return self._view.managers.GetDisplayableManagerByClassName(name)

    def convertDeviceToXYZ(self, xy: Any) -> tuple[float, ...]:
        """Window position (y up, as VTK has it) → XYZ of the slice."""
        xyz = [0.0, 0.0, 0.0]
        slicer.vtkMRMLAbstractSliceViewDisplayableManager.ConvertDeviceToXYZ(
            self._view.interactor, self._view.node, xy[0], xy[1], xyz
        )
        return tuple(xyz)

    def convertXYZToRAS(self, xyz: Any) -> tuple[float, ...]:
        return tuple(self._view.node.GetXYToRAS().MultiplyPoint((*xyz, 1.0))[:3])

    def convertRASToXYZ(self, ras: Any) -> tuple[float, ...]:
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._view.node.GetXYToRAS(), inverse)
        return tuple(inverse.MultiplyPoint((*ras, 1.0))[:3])


class qMRMLSliceWidget(QtWidgets.QWidget):
    """A slice view under a thin bar with its letter and offset."""

    cpp_class = True

    def __init__(self, view: SliceView, parent: Any = None) -> None:
        super().__init__(parent)
        self._core = view
        colour = QtGui.QColor.fromRgbF(*view.node.GetLayoutColor()).name()
        self._bar = QtWidgets.QLabel(self)
        self._bar.setStyleSheet(f"background: {colour}; color: black; padding: 2px 6px; font-weight: bold;")
        self._view = qMRMLSliceView(view, self)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._bar)
        column.addWidget(self._view, 1)
        view.node.AddObserver("ModifiedEvent", self._show_offset)
        self._show_offset()

    def _show_offset(self, *_: Any) -> None:
        node = self._core.node
        axis = {"Sagittal": 0, "Coronal": 1, "Axial": 2}.get(node.GetOrientation())
        where = "" if axis is None else f"{'RAS'[axis]}: {node.GetSliceToRAS().GetElement(axis, 3):.1f} mm"
        self._bar.setText(f"{node.GetLayoutLabel()}    {node.GetOrientation()}    {where}")

    def sliceView(self) -> Any:
        return self._view

    def sliceLogic(self) -> Any:
        return self._core.logic

    def mrmlSliceNode(self) -> Any:
        return self._core.node

    def mrmlSliceCompositeNode(self) -> Any:
        return self._core.composite

    def fitSliceToBackground(self) -> None:
        self._core.logic.FitSliceToBackground()


class LayoutManager(Refusing):
    """`slicer.app.layoutManager()`."""

    def __init__(self, widgets: dict[str, qMRMLSliceWidget]) -> None:
        self._widgets = widgets
        self.reset()
        for event in (slicer.vtkMRMLScene.EndImportEvent, slicer.vtkMRMLScene.EndCloseEvent):
            self._scene().AddObserver(
                event, lambda *_: self.setLayout(self._layout)
            )  # as the layout logic does

    def reset(self) -> None:
        """The layout after start-up, without the nodes that others have added."""
        for node in self._nodes():
            if node.GetName() not in self._widgets:
                self._scene().RemoveNode(node)
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def setLayout(self, layout: int) -> None:
        if layout not in LAYOUTS:
            raise NotSimulatedError(f"Layout {layout}")
        self._layout = layout
        nodes = {node.GetName(): node for node in self._nodes()}
        for name in LAYOUTS[layout]:
            if name not in nodes:
                nodes[name] = slicer.vtkMRMLSliceNode()
                nodes[name].SetName(name)
                nodes[name].SetLayoutName(name)
                nodes[name].SetOrientation("Axial")
                self._scene().AddNode(nodes[name])
        for name, node in nodes.items():
            node.SetMappedInLayout(name in LAYOUTS[layout])

    def _nodes(self) -> list[Any]:
        scene = self._scene()
        every = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
        return [node for node in every if node.IsA("vtkMRMLSliceNode")]

    def _scene(self) -> Any:
        return next(iter(self._widgets.values())).mrmlSliceNode().GetScene()

    layout = property(lambda self: self._layout, lambda self, layout: self.setLayout(layout))

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._widgets)

    def sliceWidget(self, name: str) -> Any:
        return self._widgets.get(name)

    def mrmlSliceLogics(self) -> Any:
        return slicer.app.applicationLogic().GetSliceLogics()

    def resetSliceViews(self) -> None:
        for widget in self._widgets.values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There is no 3D view to reset."""

    threeDViewCount = 0

    def threeDWidget(self, index: int) -> Any:
        raise NotSimulatedError("A 3D view")
