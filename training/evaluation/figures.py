"""From rows to figures: means over questions and structures.

F1 is that of detection: a mask with IoU ≥ 0.5 is a true positive, any other mask a false positive, any other structure
a false negative. This is our interpretation: the paper does not define its F1. A false "not there" has IoU 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from training.evaluation.measure import CLICKS, Row

FOUND = 0.5
_OF_A_STRUCTURE = ("iou", "dsc", "clicks", "first_click_hit", "absent_recall", "false_absence")


def figures(rows: Iterable[Row]) -> dict[str, Any]:
    """All figures of an evaluation as JSON values; undefined ones are left out.

    "agent", "oracle" (simulated clicks on the segmenter alone), "box", "methods" (the same measures for each way of
    prompting), "per_structure", and "bad" (what could not be evaluated, and why).
    """
    rows = list(rows)
    asked = [each for row in rows for each in row.get("asked", ())]
    prompted = [each for row in rows for each in row.get("prompted", ())]
    embedding = _mean([row["embed_seconds"] for row in rows if "embed_seconds" in row]) or 0.0
    result: dict[str, Any] = {"agent": agent_figures(asked, embedding) if asked else {}}
    if prompted:
        result["oracle"] = {"iou_at_1": _after(prompted, 1), "iou_at_5": _after(prompted, CLICKS)}
        result["box"] = {"iou": _mean([each["box"]["iou"] for each in prompted])}
    result["methods"] = _methods(result["agent"], prompted, embedding)
    result["per_structure"] = {
        name: _structure(
            [each for each in asked if each["structure"] == name],
            [each for each in prompted if each["structure"] == name],
            embedding,
        )
        for name in dict.fromkeys(each["structure"] for each in (*prompted, *asked))
    }
    result["bad"] = [{"name": row["name"], "problem": row["problem"]} for row in rows if "problem" in row]
    return result


def agent_figures(asked: Sequence[Row], embedding: float = 0.0) -> dict[str, float]:
    """The agent's figures. embedding: seconds to embed a picture, added to the time of each question."""
    present = [each for each in asked if each["present"]]
    absent = [each for each in asked if not each["present"]]
    false = sum(each["clicks"] > 0 and each["iou"] < FOUND for each in asked)
    known = {
        "iou": _mean([each["iou"] for each in present]),
        "dsc": _mean([each["dsc"] for each in present]),
        "f1": _f1([each["iou"] for each in present], false),
        "clicks": _mean([each["clicks"] for each in present]),
        "first_click_hit": _mean([each["hit"] for each in present]),
        "absent_recall": _mean([each["said_absent"] for each in absent]),
        "false_absence": _mean([each["said_absent"] for each in present]),
        "unreadable": _mean([each["unreadable"] for each in asked]),
        "seconds": _mean([each["seconds"] + embedding for each in asked]),
        "questions": len(asked),
    }
    return {name: value for name, value in known.items() if value is not None}


def _methods(agent: Row, prompted: Sequence[Row], embedding: float) -> dict[str, Any]:
    """Way of prompting → IoU, DSC, F1, clicks and seconds: the rows of the table."""
    methods = {}
    if "iou" in agent:
        methods["agent"] = {name: agent[name] for name in ("iou", "dsc", "f1", "clicks", "seconds")}
    if not prompted:
        return methods
    for clicks, name in ((1, "one oracle click"), (CLICKS, "five oracle clicks")):
        found = [_at(each, clicks) for each in prompted]
        made = _mean([min(clicks, len(each["clicks"])) for each in prompted])
        methods[name] = {**_overlap(found, embedding), "clicks": made}
    methods["box"] = _overlap([each["box"] for each in prompted], embedding)
    return methods


def _overlap(found: Sequence[Row], embedding: float) -> dict[str, Any]:
    ious = [each["iou"] for each in found]
    return {
        "iou": _mean(ious),
        "dsc": _mean([each["dsc"] for each in found]),
        "f1": _f1(ious, sum(each < FOUND for each in ious)),
        "seconds": _mean([each["seconds"] + embedding for each in found]),
    }


def _structure(asked: Sequence[Row], prompted: Sequence[Row], embedding: float) -> dict[str, Any]:
    known: dict[str, Any] = {"pictures": len(prompted)}
    if prompted:
        known["oracle_iou_at_1"] = _after(prompted, 1)
        known["oracle_iou_at_5"] = _after(prompted, CLICKS)
        known["box_iou"] = _mean([each["box"]["iou"] for each in prompted])
    agent = agent_figures(asked, embedding)
    known |= {name: agent[name] for name in _OF_A_STRUCTURE if name in agent}
    if asked:
        known["questions"] = len(asked)
    return known


def _at(each: Row, clicks: int) -> Row:
    """The result after `clicks` simulated clicks, or after the last one if there are fewer."""
    return dict(each["clicks"][min(clicks, len(each["clicks"])) - 1])


def _after(prompted: Sequence[Row], clicks: int) -> float:
    return float(np.mean([_at(each, clicks)["iou"] for each in prompted]))


def _f1(ious: Sequence[float], false: int) -> float:
    finds = sum(each >= FOUND for each in ious)
    return 2 * finds / max(1, 2 * finds + false + len(ious) - finds)


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None
