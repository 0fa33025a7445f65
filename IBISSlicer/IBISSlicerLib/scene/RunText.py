"""The text node that stores a run in the scene, so that a saved scene restores it."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import slicer
from ibis_agent.errors import InputError
from ibis_agent.mask.structures import name_for
from ibis_agent.record.run_record import RunRecord

from .SubjectHierarchy import putBeside

ATTRIBUTE = "IBISSlicer.Run"  # "open", or "accepted" after the mask was added to a segmentation
_SCHEMA = "ibis-slicer-run/1"
_SHOWN = "IBISSlicer.Shown"  # the number of the displayed step


class KeptRun(NamedTuple):
    """The contents of a text node.

    :ivar record: the RunRecord.
    :ivar image: how the worker gets the slices, see ibis_agent.engine.question.cut_picture.
    :ivar toRas: (4, 4) voxel index → RAS mm.
    :ivar shown: number of the displayed step.
    :ivar given: the masks of GivenSegments.py, until the record contains them.
    """

    record: RunRecord
    image: dict
    toRas: np.ndarray
    shown: int
    given: dict


class RunText:
    """:ivar node: the vtkMRMLTextNode; it references the other nodes of the run."""

    def __init__(self, node) -> None:
        self.node = node
        self._written: int | None = None  # the state of the record that was written

    @classmethod
    def create(cls, volumeNode, question: str) -> RunText:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", f"IBIS: {name_for(question)}")
        node.SetForceCreateStorageNode(node.CreateStorageNodeAlways)
        node.SetAttribute(ATTRIBUTE, "open")
        node.SetNodeReferenceID("volume", volumeNode.GetID())
        putBeside(node, volumeNode)
        return cls(node)

    def read(self) -> KeptRun:
        """The stored run. Raises InputError if the text is not a run."""
        try:
            saved = json.loads(self.node.GetText() or "null")
            if saved["schema"] != _SCHEMA:
                raise ValueError(f"schema {saved['schema']}")
            toRas = np.array(saved["toRas"], dtype=float).reshape(4, 4)
            # Earlier versions store it only in the text.
            shown = int(self.node.GetAttribute(_SHOWN) or saved["shown"])
            run, image, given = saved["run"], dict(saved["image"]), dict(saved.get("given") or {})
            return KeptRun(RunRecord.from_json(run), image, toRas, shown, given)
        except (TypeError, KeyError, ValueError) as error:
            problem = f"the text node {self.node.GetName()} is not a run of IBISSlicer"
            raise InputError(problem, value=str(error)) from error

    def write(self, run: KeptRun) -> None:
        """Update the node, so that the scene can be saved at any moment.

        The record of a long run is large, so it is written only if it has changed, not when another step is displayed.
        """
        self.node.SetAttribute(_SHOWN, str(run.shown))
        if self._written == run.record.changes:
            return
        self._written = run.record.changes
        saved = {
            "schema": _SCHEMA,
            "run": run.record.to_json(),
            "image": run.image,
            "toRas": run.toRas.tolist(),
            "shown": run.shown,
            **({"given": run.given} if run.given else {}),
        }
        self.node.SetText(json.dumps(saved, ensure_ascii=True, separators=(",", ":")))


def runsInScene() -> list:
    """The text nodes with saved runs, oldest first."""
    nodes = slicer.util.getNodesByClass("vtkMRMLTextNode")
    return [node for node in nodes if node.GetAttribute(ATTRIBUTE)]
