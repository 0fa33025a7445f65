"""Watch for changes to the scene while a run is open: closing the scene, or deleting nodes of the run."""

from __future__ import annotations

from collections.abc import Callable

import slicer


class SceneWatch:
    """
    :param onClosing: called before the scene closes, while its nodes are still there.
    :param onNodeRemoved: called after a node was deleted, but not while the scene closes.
    """

    def __init__(self, onClosing: Callable[[], None], onNodeRemoved: Callable[[], None]) -> None:
        self._onClosing, self._onNodeRemoved = onClosing, onNodeRemoved
        scene = slicer.mrmlScene
        self._tags = [
            scene.AddObserver(scene.StartCloseEvent, lambda caller, event: self._onClosing()),
            scene.AddObserver(scene.NodeRemovedEvent, self._onRemoved),
        ]

    def stop(self) -> None:
        for tag in self._tags:
            slicer.mrmlScene.RemoveObserver(tag)
        self._tags.clear()

    def _onRemoved(self, caller, event) -> None:
        if not caller.IsClosing():
            self._onNodeRemoved()
