"""The review page of a volume run: slices to scroll through, the area in each, and what was done, in one file.

Built as the page of a single slice is (see review): nothing in the record can act as markup or script, and
nothing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ibis_agent import files
from ibis_agent.record import review
from ibis_agent.record.volume_record import VolumeTrajectory


def volume_review_page(record: Mapping[str, Any]) -> str:
    """The whole page for the record of a volume run. Raises InputError where the record is not one."""
    recorded = VolumeTrajectory.from_json(dict(record))
    styles = ["review_page.css", "volume_page.css"]
    return review.fill_page("volume_page.html", _view(record, recorded), styles, "volume_page.js")


def write_volume_review(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page, atomically. Raises InputError, OutputError."""
    files.write_text(path, volume_review_page(record))


def _view(record: Mapping[str, Any], recorded: VolumeTrajectory) -> dict[str, Any]:
    """What the page shows, in its own words; masks as run lengths, areas in mm²."""
    actions = recorded.volume_actions()
    clicks: dict[int, Any] = {}
    for action in actions:
        if action.kind == "click":
            clicks[action.index] = action.clicks
    rows = {int(row["picture"]["geometry"]["index"]): row for row in record["slices"]}
    slices = []
    for index in sorted(recorded.masks):
        geometry, row, mask = recorded.pictures[index].geometry, rows[index], recorded.masks[index]
        score = row.get("score")
        slices.append(
            {
                "slice": index,
                "png": row["picture"]["png"],
                "width": geometry.width,
                "height": geometry.height,
                "row_mm": geometry.row_mm or 1.0,
                "col_mm": geometry.col_mm or 1.0,
                "runs": review._runs(mask),
                "area": round(float(mask.sum()) * (geometry.pixel_area_mm2 or 1.0), 2),
                "score": None if score is None else round(float(score), 4),
                "anchor": bool(row.get("anchor")),
                "clicks": [{"x": c.x, "y": c.y, "positive": c.positive} for c in clicks.get(index, ())],
            }
        )
    volume = record["volume"]
    status = str(record.get("status") or "ready")
    return {
        "question": recorded.question,
        "answer": recorded.answer,
        "outcome": review._OUTCOMES.get(status, status),
        "reason": str(record.get("reason") or ""),
        "note": str(record.get("note") or ""),
        "key": volume.get("key"),
        "ml": float(volume.get("ml") or 0.0),
        "largest": max(float(str(each["area"])) for each in slices),
        "slices": slices,
        "actions": [
            {
                "number": action.number,
                "slice": action.index,
                "by": action.by,
                "words": action.words,
                "thinking": " ".join(step.thinking for step in action.steps if step.thinking),
            }
            for action in actions
        ],
        "facts": _facts(record),
    }


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    volume = record["volume"]
    facts = [
        ("Made", str(record.get("created") or "")),
        ("Scan", str(volume.get("source") or "")),
        ("Slices", f"{volume['first']} to {volume['last']} of {volume['count']}"),
        ("Slice to slice", f"{float(volume.get('gap_mm') or 0):g} mm"),
        ("Volume", f"{float(volume.get('ml') or 0):.2f} mL"),
    ]
    for role, identity in (record.get("models") or {}).items():
        facts.append((str(role).capitalize(), review._identity(identity)))
    facts.append(("Format", str(record.get("schema") or "")))
    return [(term, value) for term, value in facts if value]
