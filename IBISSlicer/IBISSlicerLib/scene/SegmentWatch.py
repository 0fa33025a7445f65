"""Report changes to the segments of one segmentation: added, removed, renamed or edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SegmentWatch:
    """:param changed: called without arguments when the segments of the watched node have changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._tags: list[tuple[Any, int]] = []

    def watch(self, segmentationNode) -> None:
        """Watch this vtkMRMLSegmentationNode instead of the previous one; None watches nothing."""
        for segmentation, tag in self._tags:
            segmentation.RemoveObserver(tag)
        self._tags.clear()
        if segmentationNode is not None:
            segmentation = segmentationNode.GetSegmentation()
            for event in (
                segmentation.SegmentAdded,
                segmentation.SegmentRemoved,
                segmentation.SegmentModified,
            ):
                tag = segmentation.AddObserver(event, lambda caller, event: self._changed())
                self._tags.append((segmentation, tag))


def segmentsOf(segmentationNode) -> list[tuple[str, str]]:
    """(ID, name) of every segment, in the order of the node; empty for None."""
    if segmentationNode is None:
        return []
    segmentation = segmentationNode.GetSegmentation()
    return [(each, segmentation.GetSegment(each).GetName()) for each in segmentation.GetSegmentIDs()]
