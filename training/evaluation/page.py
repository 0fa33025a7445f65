"""An evaluation as one self-contained HTML file: the tables, and the worst answers as pictures.

It has no script, so that the policy's text, which it shows, can do no harm; the switches are made with CSS.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.actions import Box, Click
from ibis_agent.errors import IbisError
from ibis_agent.mask.masks import decode_rle
from jinja2 import Environment, FileSystemLoader

from training.evaluation.drawing import drawing
from training.evaluation.measure import Row, prompt_of
from training.evaluation.sources import Pictures
from training.evaluation.table import NOTE, absence_line, method_cells, structure_cells

_HERE = Path(__file__).parent


def page(result: Mapping[str, Any], rows: Iterable[Row], pictures: Pictures, worst: int = 24) -> str:
    """The HTML page. Pictures are read again; for a missing one the page shows the error.

    worst: number of answers to show, see choose_worst.
    """
    rows = list(rows)
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    only = f"style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    ious = [each["iou"] for row in rows for each in row.get("asked", ()) if each["present"]]
    templates = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    return templates.get_template("page.html").render(
        policy=f"default-src 'none'; {only}",
        style=style,
        measured=result.get("measured") or {},
        methods=method_cells(result),
        structures=structure_cells(result),
        absence=absence_line(result),
        note=NOTE,
        counts=np.histogram(ious, bins=10, range=(0, 1))[0].tolist() if ious else [],
        bad=result.get("bad") or [],
        cases=[_case(row, each, pictures) for row, each in choose_worst(rows, worst)],
    )


def choose_worst(rows: Iterable[Row], count: int) -> list[tuple[Row, Row]]:
    """(row, question) of the answers with the lowest IoU, taking structures in turn so that all are shown.

    A mask for an absent structure has IoU 0. Perfect answers are left out.
    """
    by_structure: dict[str, list[tuple[float, int, Row, Row]]] = {}
    for row in rows:
        for each in row.get("asked", ()):
            if each["iou"] < 1:
                entry = (each["iou"], row["index"], row, each)
                by_structure.setdefault(each["structure"], []).append(entry)
    for entries in by_structure.values():
        entries.sort(key=lambda entry: entry[:2])
    longest = max(map(len, by_structure.values()), default=0)
    turns = [entries[n] for n in range(longest) for entries in by_structure.values() if n < len(entries)]
    return [(row, each) for _, _, row, each in sorted(turns[:count], key=lambda entry: entry[:2])]


def _case(row: Row, asked: Row, pictures: Pictures) -> dict[str, Any]:
    steps = [{"thinking": step["thinking"], "does": _does(step)} for step in asked["steps"]]
    fact = "absent, but a mask was made"
    if asked["present"]:
        fact = f"IoU {asked['iou']:.3f}, DSC {asked['dsc']:.3f}"
    seen: Any
    try:
        shown = pictures.show(row["index"])
        picture = shown.picture
        mask = decode_rle(asked["mask_rle"], (picture.rgb.shape[0], picture.rgb.shape[1]))
        prompts = [each for each in map(prompt_of, asked["steps"]) if each is not None]
        seen = drawing(picture, mask, shown.truths.get(asked["structure"]), prompts)
    except IbisError as error:
        seen = str(error)
    title = f"{asked['structure']} – {row['name']}"
    return {**asked, "title": title, "fact": fact, "steps": steps, "seen": seen}


def _does(step: Row) -> str:
    prompt = prompt_of(step)
    if isinstance(prompt, Box):
        does = f"box ({prompt.x0:.3f}, {prompt.y0:.3f}, {prompt.x1:.3f}, {prompt.y1:.3f})"
    elif isinstance(prompt, Click):
        does = f"{'positive' if prompt.positive else 'negative'} ({prompt.x:.3f}, {prompt.y:.3f})"
    else:
        return "Terminate"
    return does if step["iou"] is None else f"{does} → IoU {step['iou']:.3f}"


def _shown(value: Any) -> Any:
    """Rounded numbers, and a question mark for what is not a character of HTML."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str) or hasattr(value, "__html__"):  # HTML already
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in value)
