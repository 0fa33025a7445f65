"""An evaluation as one self-contained HTML file: the tables, and the worst answers as pictures.

It has no script, so that the policy's text, which it shows, can do no harm; the switches are made with CSS.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.errors import IbisError
from ibis_agent.mask.masks import decode_rle

from training.evaluation.drawing import drawing
from training.evaluation.measure import Row
from training.evaluation.sources import Pictures
from training.evaluation.table import NOTE, Cells, absence_line, method_cells, structure_cells

_STYLE = Path(__file__).with_name("page.css")


def page(result: Mapping[str, Any], rows: Iterable[Row], pictures: Pictures, worst: int = 24) -> str:
    """The HTML page. Pictures are read again; for a missing one the page shows the error.

    worst: number of answers to show, see choose_worst.
    """
    rows = list(rows)
    style = _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    measured = result.get("measured") or {}
    chosen = choose_worst(rows, worst)
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_safe(measured.get('pictures', ''))} – IBIS evaluation</title><style>{style}</style></head>",
        f"<body><main><h1>Evaluation: {_safe(measured.get('pictures', ''))}</h1>",
        f'<p class="soft">{_safe(_models(measured))}</p>',
        '<p class="warning">Research use only</p>',
        "<h2>Results</h2>",
        _table(method_cells(result)),
        f'<p class="soft">{_safe(absence_line(result))}</p><p class="soft">{_safe(NOTE)}</p>',
        "<h2>Per structure</h2>",
        _table(structure_cells(result)),
        _spread([each["iou"] for row in rows for each in row.get("asked", ()) if each["present"]]),
        _bad(result.get("bad") or []),
    ]
    if chosen:
        parts.append(
            f'<h2>The worst {len(chosen)} answers</h2><div class="tools">'
            '<label><input type="checkbox" id="show-mask" checked> mask</label>'
            '<label><input type="checkbox" id="show-truth" checked> outline of the truth</label>'
            '<label><input type="checkbox" id="show-clicks" checked> clicks</label>'
            '<span class="key">cyan: the mask; yellow: the truth; 1+ and 2−: clicks in order; '
            "dashed: a box</span></div>"
            '<div class="cases">'
        )
        parts += [_case(row, each, pictures) for row, each in chosen]
        parts.append("</div>")
    return "".join([*parts, "</main></body></html>\n"])


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


def _case(row: Row, asked: Row, pictures: Pictures) -> str:
    title = f"{asked['structure']} – {row['name']}"
    try:
        shown = pictures.show(row["index"])
        picture = shown.picture
        mask = decode_rle(asked["mask_rle"], (picture.rgb.shape[0], picture.rgb.shape[1]))
        clicks = [tuple(step["click"]) for step in asked["steps"] if step["click"] is not None]
        seen = drawing(picture, mask, shown.truths.get(asked["structure"]), clicks, _safe(title))
    except IbisError as error:
        seen = f'<p class="words soft">{_safe(error)}</p>'
    if asked["present"]:
        fact = f"IoU {asked['iou']:.3f}, DSC {asked['dsc']:.3f}"
    else:
        fact = "absent, but a mask was made"
    steps = "".join(f"<li>{_step(step)}</li>" for step in asked["steps"])
    end = f"<strong>{_safe(asked['answer'])}</strong>" if asked["answer"] else _safe(asked["reason"])
    return (
        f'<article>{seen}<div class="words"><h3>{_safe(title)}</h3>'
        f'<p class="does">{fact}, {asked["clicks"]} clicks, {asked["seconds"]:.2f} s</p>'
        f'<p dir="auto">“{_safe(asked["question"])}”</p><ol>{steps}</ol>'
        f'<p class="answer" dir="auto">{end}</p></div></article>'
    )


def _step(step: Row) -> str:
    if step["click"] is None:
        does = "Terminate"
    else:
        *places, last = step["click"]
        kind = "box" if len(places) == 3 else "positive" if last else "negative"
        places = [*places, last] if kind == "box" else places
        does = f"{kind} ({', '.join(f'{place:.3f}' for place in places)})"
        does += "" if step["iou"] is None else f" → IoU {step['iou']:.3f}"
    return f'{_safe(step["thinking"])} <span class="does">{does}</span>'


def _table(cells: Cells) -> str:
    if len(cells) < 2:
        return ""
    head, *body = (
        "<tr>" + "".join(f"<{kind}>{_safe(cell)}</{kind}>" for cell in row) + "</tr>"
        for kind, row in zip(("th", *["td"] * (len(cells) - 1)), cells, strict=True)
    )
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def _spread(ious: list[float]) -> str:
    """A histogram of IoU in ten bins, as SVG."""
    if not ious:
        return ""
    counts = np.histogram(ious, bins=10, range=(0, 1))[0].tolist()
    tallest = max(counts)
    bars = "".join(
        f'<rect x="{64 * n + 4}" y="{100 - 80 * count / tallest:.1f}" width="56" '
        f'height="{80 * count / tallest:.1f}"/><text x="{64 * n + 32}" y="{95 - 80 * count / tallest:.1f}">'
        f'{count}</text><text x="{64 * n + 32}" y="114">{n / 10:.1f}–{(n + 1) / 10:.1f}</text>'
        for n, count in enumerate(counts)
    )
    label = ", ".join(f"{count} from {n / 10:.1f}" for n, count in enumerate(counts))
    return (
        f"<h2>IoU of {len(ious)} answers</h2>"
        f'<svg class="spread" viewBox="0 0 640 120" role="img" aria-label="{label}">{bars}</svg>'
    )


def _bad(bad: list[Mapping[str, str]]) -> str:
    if not bad:
        return ""
    items = "".join(f"<li>{_safe(each['name'])}: {_safe(each['problem'])}</li>" for each in bad)
    return f"<h2>Not evaluated: {len(bad)}</h2><ul>{items}</ul>"


def _models(measured: Mapping[str, Any]) -> str:
    said = [
        f"{role} {(measured.get(role) or {}).get('name')} ({(measured.get(role) or {}).get('sha256', '')[:12]})"
        for role in ("policy", "segmenter")
        if measured.get(role)
    ]
    return "; ".join(said)


def _safe(text: object) -> str:
    """Escaped for text and attributes; characters that HTML does not allow become question marks."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in str(text))
    return html.escape(plain, quote=True)
