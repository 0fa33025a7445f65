"""The results of a cohort: a CSV of measurements, and a page of thumbnails with the most doubtful results first.

The page has no script; every text of a scan is escaped, and only images inside the file are shown.
"""

from __future__ import annotations

import csv
import html
import io
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ibis_agent import files
from ibis_agent.mask.measurements import Measurements
from ibis_agent.record.review import resource, style_policy

_MEASURES = tuple(Measurements.__dataclass_fields__)
COLUMNS = (
    "name",
    "scan",
    "structure",
    "question",
    "answer",
    "status",
    "doubt",
    *_MEASURES,
    "seconds",
    "error",
)


def write_table(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the measurements as CSV: a row for each scan, or for each of its structures. Raises OutputError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    rows = [row for each in results for row in _rows(each)]
    for each in rows:
        row = {**each, **each.get("measurements", {})}
        if each["error"]:
            row = {
                **dict.fromkeys(COLUMNS, ""),
                **{key: each[key] for key in ("name", "scan", "question", "error")},
            }
        writer.writerow({key: _plain(row.get(key)) for key in COLUMNS})
    files.write_text(path, text.getvalue())


def _rows(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if not result.get("structures"):
        yield result
    for each in result.get("structures", ()):
        yield {**result, **each, "name": result["name"], "structure": each["name"]}


def write_cohort_page(path: Path, question: str, results: Sequence[Mapping[str, Any]], left: int = 0) -> None:
    """Write the page atomically. Raises OutputError.

    Args:
        results: each with name, scan, answer, status, doubt, measurements, thumbnail, error.
        left: number of unfinished scans.
    """
    done = sorted(
        (each for each in results if not each["error"]), key=lambda each: (-each["doubt"], each["name"])
    )
    failed = [each for each in results if each["error"]]
    counts = [
        f"{len(done)} done",
        *([f"{len(failed)} failed"] if failed else []),
        *([f"{left} not done yet"] if left else []),
    ]
    body = [
        f'<section class="asked"><h1 dir="auto">{html.escape(question)}</h1>'
        f'<p class="outcome"><span class="chip">{", ".join(counts)}</span>'
        "<span>most doubtful first</span></p></section>",
        '<ul class="cards">'
        + "".join(card(each, f"{each['name']}/{_page(each)}", each["doubt"]) for each in done)
        + "</ul>",
    ]
    if failed:
        lines = "".join(
            f"<dt>{html.escape(each['name'])}</dt><dd>{html.escape(each['error'])}</dd>" for each in failed
        )
        body.append(f'<details class="record" open><summary>Not done</summary><dl>{lines}</dl></details>')
    files.write_text(path, document(question, "IBIS cohort", body))


def document(title: str, brand: str, body: Sequence[str]) -> str:
    """A page without any script. title: plain text. body: markup."""
    style = resource("review_page.css")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(style_policy(style), quote=False)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="robots" content="noindex">\n<title>{html.escape(title[:80])} – {brand}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n"
        f'<header class="top"><p class="brand"><span class="glyph" aria-hidden="true"></span>{brand}</p>'
        '<p class="warning">Research use only. Not for patients.</p></header><main class="cohort">\n'
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _page(each: Mapping[str, Any]) -> str:
    return "index.html" if each.get("structures") else "review.html"


def card(each: Mapping[str, Any], page: str, doubt: float) -> str:
    """The markup of one result.

    each: with name, answer, thumbnail, and measurements or structures. page: the target of its link.
    """
    if each.get("structures"):
        sizes = [
            (row["name"], Measurements(**row["measurements"]).lines()[0][1]) for row in each["structures"]
        ]
        shown = [f"{name} {size}" for name, size in sizes]
    else:
        lines = [line for line in Measurements(**each["measurements"]).lines() if line[0] != "Parts"]
        shown = [value for _, value in lines[:3]]
    link, measures = urllib.parse.quote(page), " · ".join(map(html.escape, shown))
    picture = (
        f'<img src="data:image/png;base64,{html.escape(each["thumbnail"])}" alt="">'
        if each["thumbnail"]
        else ""
    )
    return (
        f'<li><a href="{link}">{picture}<strong dir="auto">{html.escape(each["name"])}</strong></a>'
        f'<span class="doubt">doubt {doubt:.2f}</span><p dir="auto">{html.escape(each["answer"])}</p>'
        f"<small>{measures}</small></li>"
    )


def _plain(value: Any) -> Any:
    """A cell. Text that a spreadsheet would interpret as a formula gets an apostrophe in front."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
