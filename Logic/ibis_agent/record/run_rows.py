"""What a panel shows of a RunRecord: a row for every step, and where its clicks are. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from ibis_agent.actions import Click, Prompt
from ibis_agent.record.run_record import RunRecord
from ibis_agent.record.steps import Json, click_from_json


@dataclass(frozen=True)
class PlacedClick:
    """A click that counts.

    Attributes:
        step: the number of the step that made it.
        index: the slice.
        which: which of the slice's clicks it is, from 1.
    """

    step: int
    index: int
    which: int
    click: Click


def clicks_of(record: RunRecord, number: int | None = None) -> list[PlacedClick]:
    """All clicks that count after `number` steps, None after all; boxes are left out."""
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
        if isinstance(click, Click)  # a box counts, but has no mark of its own
    ]


def rows_of(record: RunRecord) -> list[Json]:
    """The steps; the actions of a volume in the same form, areas and mL being those of the whole volume."""
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
