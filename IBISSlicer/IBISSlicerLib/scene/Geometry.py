"""Slice views, volumes and world coordinates in terms of voxels: the border between MRML and
ibis_agent.scan.geometry.

Everything goes through the node's own IJK-to-RAS matrix and transform, never through the file: Slicer turns
the K axis of left-handed files around when it reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer
import vtk
from ibis_agent.scan.scan import Scan

from ..Errors import PlainError

_ALIGNED = 0.999  # cosine between a view's normal and a voxel axis above which they count as parallel


class GeometryError(PlainError):
    """A view or volume that a question cannot be asked about; the text says why and what to do."""


class ObliqueViewError(GeometryError):
    """The view shows a plane that no single slice of the volume lies in."""


@dataclass(frozen=True)
class SlicePlace:
    """A slice of a volume: the voxel axis (0 i, 1 j, 2 k) that it is across and its index there."""

    axis: int
    index: int
    count: int


def arrayFromMatrix(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """(4, 4) float64."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtkMatrix(array: np.ndarray) -> vtk.vtkMatrix4x4:
    """A (4, 4) array as VTK has it."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, dtype=float).ravel().tolist())
    return matrix


def ijkToRas(volumeNode) -> np.ndarray:
    """(4, 4) voxel index → RAS mm in the volume's own coordinates, before its parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return arrayFromMatrix(matrix)


def ijkToWorld(volumeNode) -> np.ndarray:
    """(4, 4) voxel index → RAS mm in the world.

    :raises GeometryError: if the volume has a transform that is not linear.
    """
    transformNode = volumeNode.GetParentTransformNode()
    if transformNode is None:
        return ijkToRas(volumeNode)
    if not transformNode.IsTransformToWorldLinear():
        raise GeometryError(
            f"{volumeNode.GetName()} is under the nonlinear transform {transformNode.GetName()}. "
            "Harden the transform in the Transforms module, or remove the volume from it."
        )
    matrix = vtk.vtkMatrix4x4()
    transformNode.GetMatrixTransformToWorld(matrix)
    return arrayFromMatrix(matrix) @ ijkToRas(volumeNode)


def shapeOf(volumeNode) -> tuple[int, int, int]:
    """Voxels along (i, j, k)."""
    image = volumeNode.GetImageData()
    if image is None:
        raise GeometryError(f"{volumeNode.GetName()} has no image data.")
    return image.GetDimensions()


def isColour(volumeNode) -> bool:
    """Whether a volume is a photograph, or another picture in red, green and blue.

    :raises GeometryError: if its voxels are neither grey values nor such colours.
    """
    image = volumeNode.GetImageData()
    count = image.GetNumberOfScalarComponents() if image else 1
    if count > 1 and (count not in (3, 4) or image.GetScalarType() != vtk.VTK_UNSIGNED_CHAR):
        raise GeometryError(
            f"The voxels of {volumeNode.GetName()} have {count} components. Use a grayscale volume or an RGB picture."
        )
    return count > 1


def shownWindow(volumeNode) -> tuple[float, float] | None:
    """(minimum, maximum) in grey values that the volume is shown with, or None where nothing says it."""
    display = volumeNode.GetScalarVolumeDisplayNode()
    if display is None or display.GetWindow() <= 0:
        return None
    return display.GetLevel() - display.GetWindow() / 2, display.GetLevel() + display.GetWindow() / 2


def sliceOfView(sliceNode, volumeNode) -> SlicePlace:
    """The slice of the volume that lies nearest to what a slice view shows.

    :raises ObliqueViewError: if the view is tilted against the volume's voxels.
    :raises GeometryError: if the view shows a place outside the volume.
    """
    isColour(volumeNode)
    toWorld = ijkToWorld(volumeNode)
    sliceToWorld = arrayFromMatrix(sliceNode.GetSliceToRAS())
    directions = toWorld[:3, :3] / np.linalg.norm(toWorld[:3, :3], axis=0)
    cosines = np.abs(directions.T @ sliceToWorld[:3, 2])
    axis = int(np.argmax(cosines))
    if cosines[axis] < _ALIGNED:
        raise ObliqueViewError(
            f"The {sliceNode.GetName()} view is oblique to the slices of {volumeNode.GetName()}. Press Align view."
        )
    count = shapeOf(volumeNode)[axis]
    exact = float(np.linalg.solve(toWorld, sliceToWorld[:, 3])[axis])
    index = int(np.floor(exact + 0.5))
    if not -0.51 <= exact <= count - 0.49:
        raise GeometryError(
            f"The {sliceNode.GetName()} view is outside {volumeNode.GetName()}. Scroll to a slice of the volume."
        )
    return SlicePlace(axis, min(max(index, 0), count - 1), count)


def sliceOfPlane(volumeNode, axis: int, index: int | None) -> SlicePlace:
    """A slice by voxel axis and index; None is the middle one."""
    count = shapeOf(volumeNode)[axis]
    index = count // 2 if index is None else index
    if not 0 <= index < count:
        raise GeometryError(
            f"{volumeNode.GetName()} has slices 0 to {count - 1} along this axis, not {index}."
        )
    return SlicePlace(axis, index, count)


def worldFromIjk(volumeNode, ijk) -> np.ndarray:
    """(3,) RAS mm in the world of a voxel centre."""
    return (ijkToWorld(volumeNode) @ [*ijk, 1.0])[:3]


def ijkFromWorld(volumeNode, ras) -> np.ndarray:
    """(3,) float voxel index of a point in the world."""
    return np.linalg.solve(ijkToWorld(volumeNode), [*ras, 1.0])[:3]


def showSlice(sliceNode, volumeNode, ijk) -> None:
    """Scroll a view so that it shows the slice of this voxel."""
    sliceNode.JumpSliceByOffsetting(*worldFromIjk(volumeNode, ijk))


def showSliceInViews(volumeNode, axis: int, ijk) -> None:
    """Scroll all views that show slices across this voxel axis, and another one, to the slice of this voxel."""
    for sliceNode in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        try:
            place = sliceOfView(sliceNode, volumeNode)
        except PlainError:
            continue
        if place.axis == axis and place.index != ijk[axis]:
            showSlice(sliceNode, volumeNode, ijk)


def scanOf(volumeNode, affine: np.ndarray | None = None) -> Scan:
    """The volume as a scan of ibis_agent, on the node's own memory. affine: None takes where it lies in the world."""
    voxels, name = slicer.util.arrayFromVolume(volumeNode).transpose(), volumeNode.GetName()
    return Scan(voxels, ijkToWorld(volumeNode) if affine is None else affine, "volume", Path(name), name, "")


def alignView(sliceNode, volumeNode) -> None:
    """Turn a tilted view to the nearest plane of the volume's voxels."""
    sliceNode.RotateToVolumePlane(volumeNode)
