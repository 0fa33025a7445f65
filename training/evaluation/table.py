"""Figures as tables: Markdown in the published form (percent, IoU / DSC / F1), and plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cells = Sequence[Sequence[str]]
NOTE = (
    "IoU and DSC are means over the structures asked for. F1 is that of detection (a mask with IoU ≥ 0.5 is a true "
    "positive); this is our interpretation, as the paper does not define its F1. Oracle clicks and the box are made "
    "from the truth and show what the segmenter does with perfect prompts; a segmenter that was not trained with "
    "boxes does badly with them. Seconds include embedding the picture."
)
_METHODS = {"agent": "the agent"}


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of an evaluation in Markdown."""
    parts = [
        _measured(result),
        _md(method_cells(result)),
        NOTE,
        "### Per structure",
        _md(structure_cells(result)),
    ]
    absence = absence_line(result)
    if absence:
        parts.insert(3, absence)
    bad = result.get("bad") or []
    if bad:
        parts.append(f"### Not evaluated: {len(bad)}")
        parts.append("\n".join(f"- {_escaped(each['name'])}: {_escaped(each['problem'])}" for each in bad))
    return "\n\n".join(part for part in parts if part) + "\n"


def text(result: Mapping[str, Any]) -> str:
    """The tables of an evaluation as plain text for a terminal."""
    parts = [_plain(method_cells(result)), _plain(structure_cells(result)), absence_line(result)]
    bad = result.get("bad") or []
    if bad:
        parts.append(f"not evaluated: {len(bad)}, such as {bad[0]['name']}: {bad[0]['problem']}")
    return "\n\n".join(part for part in parts if part)


def method_cells(result: Mapping[str, Any]) -> Cells:
    """Header and rows: the results of each way of prompting."""
    rows = [["", "IoU", "DSC", "F1", "clicks", "seconds"]]
    for name, each in result["methods"].items():
        rows.append(
            [
                _METHODS.get(name, name),
                *(_percent(each.get(key)) for key in ("iou", "dsc", "f1")),
                _number(each.get("clicks"), 2),
                _number(each.get("seconds"), 2),
            ]
        )
    return rows


def structure_cells(result: Mapping[str, Any]) -> Cells:
    """Header and rows: the agent, and the segmenter with perfect prompts, for each structure."""
    keys = ("iou", "dsc", "first_click_hit")
    oracle = ("oracle_iou_at_1", "oracle_iou_at_5", "box_iou")
    head = ["", "shown", "IoU", "DSC", "first click inside", "clicks", "absent found", "false absence"]
    rows = [[*head, "1 oracle click", "5", "box"]]
    for name, each in result["per_structure"].items():
        rows.append(
            [
                name,
                str(each["pictures"]),
                *(_percent(each.get(key)) for key in keys),
                _number(each.get("clicks"), 2),
                *(_percent(each.get(key)) for key in ("absent_recall", "false_absence", *oracle)),
            ]
        )
    return rows


def absence_line(result: Mapping[str, Any]) -> str:
    """First clicks, absences and unreadable replies in one line; empty without an agent."""
    agent = result.get("agent") or {}
    words = {
        "first_click_hit": "first click inside",
        "absent_recall": "absent structures answered as absent",
        "false_absence": "false absences",
        "unreadable": "unreadable replies",
    }
    said = [f"{word} {_percent(agent[key])} %" for key, word in words.items() if key in agent]
    return f"{', '.join(said)}; {agent['questions']} questions." if said else ""


def _measured(result: Mapping[str, Any]) -> str:
    measured = result.get("measured") or {}
    policy, segmenter = (measured.get(role) or {} for role in ("policy", "segmenter"))
    said = [str(measured.get("pictures", ""))]
    said += [f"policy {policy['name']} ({policy['sha256'][:8]})"] if policy else []
    said += [f"segmenter {segmenter['name']} ({segmenter['sha256'][:8]})"] if segmenter else []
    return _escaped("; ".join(said))


def _md(cells: Cells) -> str:
    if len(cells) < 2:
        return ""
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in cells]
    lines.insert(1, "| --- |" + " ---: |" * (len(cells[0]) - 1))
    return "\n".join(lines)


def _plain(cells: Cells) -> str:
    if len(cells) < 2:
        return ""
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if not n else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _escaped(cell: str) -> str:
    """Escape a name from a file, so that it cannot end a cell or start markup."""
    flat = " ".join(str(cell).split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
