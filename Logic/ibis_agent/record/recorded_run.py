"""Convert a recorded run (trajectory.json) to a RunRecord, which can be reviewed step by step and continued.

A record of many slices contains the masks of all clicks and the final masks. A slice reached by propagation is
therefore shown with its final mask from the first action that reached it. No torch here.
"""

from __future__ import annotations

import dataclasses
import uuid

from ibis_agent.record.forms import NOTHING, Cut
from ibis_agent.record.pictures import picture_to_json
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.steps import Json, action_to_json, step_to_json
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import RunAction


def run_record_of(run: Trajectory, whole_scan: bool) -> RunRecord:
    """The steps of a recorded run, each with an ID for the worker.

    whole_scan: whether the scan is available. If not, only the recorded pictures are used: a single slice becomes a
    volume one voxel thick (`PictureGeometry.slab`), and a run over many is limited to `recorded_range`.
    """
    record, head = RunRecord(run.question, "slice" if run.alone else "volume"), run.head()
    if run.alone:
        geometry = run.picture.geometry
        picture = dataclasses.replace(run.picture, geometry=geometry if whole_scan else geometry.slab())
        head["picture"] |= picture_to_json(picture, run.source, run.orientation)
        steps = [step_to_json(step, geometry) for step in run.steps]
    else:
        if run.cut is None:
            picture = run.picture
            window = list(picture.window or (0.0, 255.0))
            cut = Cut(picture.geometry.axis, window, None, picture.frame)
            head["volume"] |= {**dataclasses.asdict(cut), "orientation": run.orientation}
        if not whole_scan:
            head["volume"]["first"], head["volume"]["last"] = recorded_range(run)
        steps = _actions(run)
    record.open(head)
    for step in steps:
        record.extend(record.after, {**step, "uid": uuid.uuid4().hex[:12]}, {"status": "ready"})
    record.settle(run.outcome())
    return record


def recorded_range(run: Trajectory) -> tuple[int, int]:
    """First and last slice of the contiguous recorded range around the key slice or the last action."""
    known = set(run.visited)
    first = run.key if run.key is not None else run.actions[-1].index if run.actions else min(known)
    last = first
    while first - 1 in known:
        first -= 1
    while last + 1 in known:
        last += 1
    return first, last


def _actions(run: Trajectory) -> list[Json]:
    """The actions of a volume with the slices that each changed (`touched`); the last one leads to the final state."""
    geometry = run.slices.geometry(run.slices.first)
    made, known = list[Json](), dict[int, Json | None]()
    for action in run.actions:
        told = action_to_json(action, geometry)
        touched: dict[int, Json | None] = dict(_touched(run, action, told["steps"]))
        known.update(touched)
        if len(made) + 1 == len(run.actions):
            final = {**dict.fromkeys(known), **run.rows}
            touched |= {n: row for n, row in final.items() if known.get(n) != row}
        made.append({**told, "touched": {str(n): row for n, row in sorted(touched.items())}})
    return made


def _touched(run: Trajectory, action: RunAction, steps: list[Json]) -> dict[int, Json]:
    if action.kind == "click" and steps:
        made = {key: steps[-1][key] for key in ("mask_rle", "area_px", "area_mm2", "score")}
        return {action.index: {**NOTHING, "slice": action.index, **made, "anchor": True}}
    reached = {
        n for way in action.ways for n in range(min(way.start, way.last), max(way.start, way.last) + 1)
    }
    return {n: dict(run.rows[n]) for n in reached - {way.start for way in action.ways} if n in run.rows}
