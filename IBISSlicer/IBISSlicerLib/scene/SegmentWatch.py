"""Report changes to the segments of one segmentation: added, removed, renamed or edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer


class SegmentWatch:
    """:param changed: called without arguments when the segments of the watched node have changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._node: Any = None
        self._tags: list[int] = []

    def watch(self, segmentationNode) -> None:
        """Watch this vtkMRMLSegmentationNode instead of the previous one; None watches nothing."""
        for tag in self._tags:
            self._node.RemoveObserver(tag)
        self._node, self._tags = segmentationNode, []
        if segmentationNode is not None:
            kinds = slicer.vtkSegmentation
            # Observe the node, which forwards the events of its segmentation, because the segmentation may be replaced.
            for event in (
                segmentationNode.SegmentationChangedEvent,
                kinds.SegmentAdded,
                kinds.SegmentRemoved,
                kinds.SegmentModified,
                kinds.SegmentsOrderModified,
            ):
                self._tags.append(segmentationNode.AddObserver(event, lambda caller, event: self._changed()))


def segmentsOf(segmentationNode) -> list[tuple[str, str]]:
    """(ID, name) of every segment, in the order of the node; empty for None."""
    if segmentationNode is None:
        return []
    segmentation = segmentationNode.GetSegmentation()
    return [(each, segmentation.GetSegment(each).GetName()) for each in segmentation.GetSegmentIDs()]
