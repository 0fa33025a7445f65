"""Runs that a scene keeps in its text nodes: told apart by their scope, and opened."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from ibis_agent.errors import InputError
from ibis_agent.record.run_record import SCOPES

from .SceneRun import ATTRIBUTE, SceneRun, runsInScene
from .VolumeSceneRun import VolumeSceneRun


def classOf(textNode) -> type[SceneRun]:
    """The kind of run that a text node keeps."""
    try:
        schema = json.loads(textNode.GetText() or "null")["run"]["schema"]
    except (TypeError, KeyError, ValueError):
        return SceneRun
    return VolumeSceneRun if SCOPES.get(schema) == VolumeSceneRun.scope else SceneRun


def openLastRun(isFree: Callable[[object], bool]) -> SceneRun | None:
    """The run that was going on when the scene was saved, if there is one whose text node `isFree`."""
    for node in reversed(runsInScene()):
        if node.GetAttribute(ATTRIBUTE) == "open" and isFree(node):
            try:
                return classOf(node).open(node)
            except InputError:
                logging.exception("IBISSlicer: a saved run could not be opened")
    return None


def writeSavedReview(textNode, path: str) -> None:
    """Write the review page of a run that the scene keeps. Raises InputError, OutputError."""
    classOf(textNode).toLookAt(textNode).writeReview(path)
