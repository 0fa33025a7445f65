"""The rows of a RunRecord for display in a panel: one for every step, and its clicks. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from ibis_agent.actions import Click, Prompt
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.steps import Json, click_from_json


@dataclass(frozen=True)
class PlacedClick:
    """A current click.

    Attributes:
        step: the number of the step that made it.
        index: the slice.
        which: its number among the slice's clicks, from 1.
    """

    step: int
    index: int
    which: int
    click: Click


def clicks_of(record: RunRecord, number: int | None = None) -> list[PlacedClick]:
    """All current clicks after `number` steps, None for after all; boxes are omitted."""
    made: dict[int, list[tuple[int, Prompt]]] = {}
    for step in record.steps[:number]:
        if record.scope == "volume":
            if step["kind"] != "click":
                continue
            index = int(step["slice"])
            stands, before = record.clicks_on(index, step["number"]), made.get(index, [])
        else:
            click = click_from_json(step["action"]) if step["action"]["kind"] == "click" else None
            if not isinstance(click, Click):
                continue
            index = record.geometry.index
            before = made.get(index, [])
            stands = [*(each for _, each in before), click]
        same = 0
        while same < min(len(before), len(stands)) and before[same][1] == stands[same]:
            same += 1
        made[index] = [*before[:same], *((step["number"], each) for each in stands[same:])]
    return [
        PlacedClick(step, index, which, click)
        for index, clicks in made.items()
        for which, (step, click) in enumerate(clicks, 1)
        if isinstance(click, Click)  # a box is numbered, but has no mark
    ]


def rows_of(record: RunRecord) -> list[Json]:
    """The steps; for a volume, the actions in the same form, with areas and mL of the whole volume."""
    if record.scope == "slice":
        return record.steps
    rows, known = list[Json](), dict[str, Json]()
    for step in record.steps:
        known |= step["touched"]
        present = [each for each in known.values() if each is not None]
        area = sum(float(each["area_mm2"] or each["area_px"]) for each in present)
        thoughts = [each["thinking"] for each in step["steps"] if each["thinking"]]
        told = {key: step[key] for key in ("number", "by", "kind", "words")}
        told |= {
            "slice": int(step["slice"]),
            "thinking": "\n\n".join(thoughts),
            "action": step["steps"][-1]["action"] if step["steps"] else {"kind": step["kind"]},
            "area_px": sum(int(each["area_px"]) for each in present),
            "area_mm2": area,
            "ml": area * float(record.head["volume"]["gap_mm"]) / 1000,
            "seconds": {"total": step["seconds"]},
        }
        rows.append(told)
    return rows
