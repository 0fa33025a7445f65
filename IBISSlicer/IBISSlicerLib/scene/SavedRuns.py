"""Open runs that are saved in a scene's text nodes, and write their review pages."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ibis_agent.errors import InputError

from .RunText import ATTRIBUTE, runsInScene
from .SceneRun import SceneRun


def openLastRun(isFree: Callable[[object], bool]) -> SceneRun | None:
    """The run that was open when the scene was saved, if there is one whose text node `isFree`."""
    for node in reversed(runsInScene()):
        if node.GetAttribute(ATTRIBUTE) == "open" and isFree(node):
            try:
                return SceneRun.open(node)
            except InputError:
                logging.exception("IBISSlicer: a saved run could not be opened")
    return None


def writeSavedReview(textNode, path: str) -> None:
    """Write the review page of a run saved in the scene. Raises InputError, OutputError."""
    SceneRun.toLookAt(textNode).writeReview(path)
