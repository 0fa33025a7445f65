"""Create a run from a question about a volume: its slices, window and modality."""

from __future__ import annotations

from collections.abc import Sequence

from ibis_agent.policy.prompts import check_question

from ..Errors import PlainError
from .Geometry import isColour, sliceOfPlane, sliceOfView
from .GivenSegments import Segment, givenSegments
from .Modality import takeAs
from .SceneRun import SceneRun

COLOUR_SLICES_ONLY = "A whole volume needs grayscale voxels. Ask about a single slice of a color picture."


def newRun(
    volumeNode,
    question: str,
    *,
    sliceNode=None,
    axis: int = 2,
    index: int | None = None,
    window: tuple[float, float] | None = None,
    scope: str = "slice",
    slices: tuple[int, int] | None = None,
    modality: str | None = None,
    start: Segment | None = None,
    exclude: Sequence[Segment] = (),
) -> SceneRun:
    """A run about one slice or a volume, with its nodes in the scene. Nothing is loaded or computed yet.

    :param volumeNode: a vtkMRMLScalarVolumeNode.
    :param sliceNode: the slice view that shows the slice (a vtkMRMLSliceNode); otherwise `axis` and `index` are used.
    :param axis: the voxel axis (0 i, 1 j, 2 k) perpendicular to the slice, and `index` on it; None means the middle.
    :param window: (minimum, maximum) grey values; None uses the default of the policy or the volume's display.
    :param scope: "volume" asks about all slices along the axis, or from the first to the last of `slices`.
    :param modality: the modality of the volume from now on, such as "MR"; None uses its DICOM headers, the previous
            choice, or its grey values.
    :param start: (vtkMRMLSegmentationNode, segment ID) of the mask that the agent starts from and corrects.
    :param exclude: (vtkMRMLSegmentationNode, segment ID) of segments that the mask must not enter.
    :raises PlainError, IbisError: if it cannot be asked.
    """
    if volumeNode is None:
        raise PlainError("Select a volume first.")
    question = check_question(question)
    if modality is not None:
        takeAs(volumeNode, modality)
    place = sliceOfView(sliceNode, volumeNode) if sliceNode else sliceOfPlane(volumeNode, axis, index)
    if scope == "volume" and isColour(volumeNode):
        raise PlainError(COLOUR_SLICES_ONLY)
    reach = (slices or (0, place.count - 1)) if scope == "volume" else None
    given = givenSegments(volumeNode, place, reach, start, exclude)
    return SceneRun.create(volumeNode, place, question, window, reach, given=given)
