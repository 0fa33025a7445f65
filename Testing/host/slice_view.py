"""A slice view: Slicer's slice logic, displayable managers and interactor style in an offscreen window.

No Qt in here. What is ours is only the render window and the image actor (in Slicer they come from CTK).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk
from vtkmodules.util.numpy_support import vtk_to_numpy

MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
)


class SliceView:
    """One view onto the scene. `on_request` is called whenever something wants a new picture."""

    def __init__(self, mrml: Any, name: str, orientation: str, colour: tuple[float, float, float]) -> None:
        self.name = name
        self.on_request: Callable[[], None] = lambda: None
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetSize(400, 400)
        self.window.SetMultiSamples(0)
        self.window.SetNumberOfLayers(2)
        self.window.SetAlphaBitPlanes(1)
        self.renderer = self._add_renderer(0)
        self.overlay = self._add_renderer(1)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        # The image must be in the renderer before the managers add their actors, or the segments hide it.
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._image = vtk.vtkActor2D()
        self._image.SetMapper(self._mapper)
        self._image.GetProperty().SetDisplayLocationToBackground()
        self._image.SetVisibility(False)
        self.renderer.AddViewProp(self._image)
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()
        self.managers.SetRenderer(self.renderer)
        self.managers.Initialize(_factory(mrml.logic), self.renderer)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(mrml.logic)
        mrml.logic.GetSliceLogics().AddItem(self.logic)
        self.style = slicer.vtkMRMLSliceViewInteractorStyle()
        self.style.SetSliceLogic(self.logic)
        self.style.SetDisplayableManagers(self.managers)
        self.logic.SetMRMLScene(mrml.scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(orientation)
        self.node.SetLayoutLabel(name[0])
        self.node.SetLayoutColor(*colour)
        self.composite = self.logic.GetSliceCompositeNode()
        self.managers.SetMRMLDisplayableNode(self.node)
        self.interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self.style.SetInteractor(self.interactor)
        self.logic.AddObserver("ModifiedEvent", self._on_slice_changed)
        self.managers.AddObserver(vtk.vtkCommand.UpdateEvent, lambda *_: self.on_request())
        self.resize(400, 400)

    def _add_renderer(self, layer: int) -> Any:
        renderer = vtk.vtkRenderer()
        renderer.GetActiveCamera().ParallelProjectionOn()
        renderer.SetLayer(layer)
        self.window.AddRenderer(renderer)
        return renderer

    def _on_slice_changed(self, *_: Any) -> None:
        picture = self.logic.GetImageDataConnection()
        self._mapper.SetInputConnection(picture)
        self._image.SetVisibility(picture is not None)
        self.on_request()

    def resize(self, width: int, height: int) -> None:
        """Size in pixels; the field of view follows as in Slicer."""
        self.window.SetSize(width, height)
        self.interactor.UpdateSize(width, height)
        self.logic.ResizeSliceNode(width, height)

    def fit(self) -> None:
        """Zoom so that the background fills the view, on a slice that the volume has."""
        self.logic.FitSliceToBackground()
        self.logic.SnapSliceOffsetToIJK()

    def picture(self) -> np.ndarray:
        """Render; (H, W, 3) uint8, first row on top."""
        self._on_slice_changed()
        self.window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.SetInputBufferTypeToRGB()
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        return np.ascontiguousarray(
            vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1]
        )

    def to_pixel(self, ras: tuple[float, float, float]) -> tuple[int, int]:
        """Patient position (mm) → pixel, x right and y down. The slice must pass through the position."""
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), inverse)
        x, y, depth, _ = inverse.MultiplyPoint((*ras, 1.0))
        width, height = self.window.GetSize()
        if abs(depth) > 0.5 or not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"{ras} is not in the {self.name} view: pixel ({x:.1f}, {y:.1f}), {depth:.1f} slices off"
            )
        return round(x), height - 1 - round(y)

    def event(self, name: str, x: int, y: int, control: bool = False, shift: bool = False) -> None:
        """A mouse event at pixel x, y (y down), handed to Slicer's interactor style."""
        height = self.window.GetSize()[1]
        self.interactor.SetEventInformation(x, height - 1 - y, int(control), int(shift), chr(0), 0, None)
        self.interactor.InvokeEvent(name)


def _factory(application_logic: Any) -> Any:
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    factory.SetMRMLApplicationLogic(application_logic)
    for name in MANAGERS:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    return factory
