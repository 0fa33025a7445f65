"""Slice views, volumes and world coordinates in terms of voxels: the interface between MRML and
ibis_agent.scan.geometry.

Everything goes through the node's own IJK-to-RAS matrix and transform, never through the file: Slicer flips the K
axis of left-handed files when it reads them.
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
    """A view or volume that cannot be used for a question; the message says why and what to do."""


class ObliqueViewError(GeometryError):
    """The view is oblique: it shows no single slice of the volume."""


@dataclass(frozen=True)
class SlicePlace:
    """A slice of a volume: the voxel axis (0 i, 1 j, 2 k) perpendicular to it, and its index along that axis."""

    axis: int
    index: int
    count: int


def arrayFromMatrix(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """(4, 4) float64."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtkMatrix(array: np.ndarray) -> vtk.vtkMatrix4x4:
    """A (4, 4) array as a vtkMatrix4x4."""
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

    :raises GeometryError: if the volume has a nonlinear transform.
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
    """Whether a volume is a photograph or another RGB picture.

    :raises GeometryError: if its voxels are neither grey values nor RGB colours.
    """
    image = volumeNode.GetImageData()
    count = image.GetNumberOfScalarComponents() if image else 1
    if count > 1 and (count not in (3, 4) or image.GetScalarType() != vtk.VTK_UNSIGNED_CHAR):
        raise GeometryError(
            f"The voxels of {volumeNode.GetName()} have {count} components. Use a grayscale volume or an RGB picture."
        )
    return count > 1


def shownWindow(volumeNode) -> tuple[float, float] | None:
    """The displayed window as (minimum, maximum) in grey values, or None if the volume has no display node."""
    display = volumeNode.GetScalarVolumeDisplayNode()
    if display is None or display.GetWindow() <= 0:
        return None
    return display.GetLevel() - display.GetWindow() / 2, display.GetLevel() + display.GetWindow() / 2


def sliceOfView(sliceNode, volumeNode) -> SlicePlace:
    """The slice of the volume nearest to the displayed one.

    :raises ObliqueViewError: if the view is oblique to the volume's voxel axes.
    :raises GeometryError: if the view is outside the volume.
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
    """A slice by voxel axis and index; None means the middle one."""
    count = shapeOf(volumeNode)[axis]
    index = count // 2 if index is None else index
    if not 0 <= index < count:
        raise GeometryError(
            f"{volumeNode.GetName()} has slices 0 to {count - 1} along this axis, not {index}."
        )
    return SlicePlace(axis, index, count)


def worldFromIjk(volumeNode, ijk) -> np.ndarray:
    """(3,) RAS mm of a voxel centre in world coordinates."""
    return (ijkToWorld(volumeNode) @ [*ijk, 1.0])[:3]


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
    """The volume as an ibis_agent scan, sharing the node's memory. affine: None uses its world coordinates."""
    voxels, name = slicer.util.arrayFromVolume(volumeNode).transpose(), volumeNode.GetName()
    return Scan(voxels, ijkToWorld(volumeNode) if affine is None else affine, "volume", Path(name), name, "")


def alignView(sliceNode, volumeNode) -> None:
    """Rotate an oblique view to the nearest plane of the volume's voxels."""
    sliceNode.RotateToVolumePlane(volumeNode)
