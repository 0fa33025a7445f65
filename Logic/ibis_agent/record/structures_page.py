"""The page of a run for several structures: a card for each, all in their colours, and the overlaps."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ibis_agent import files
from ibis_agent.record.cohort_page import card, document


def write_structures_page(
    path: Path,
    source: str,
    structures: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    left: Sequence[str] = (),
) -> None:
    """Write the page atomically. Raises OutputError.

    Args:
        source: the scan's name.
        structures: each with name, folder, answer, doubt, colour (0-255 RGB), measurements, thumbnail.
        notes: sentences.
        left: names of the unfinished structures.
    """
    counts = f"{len(structures)} structures" + (f", {len(left)} not done yet" if left else "")
    cards = "".join(card(each, f"{each['folder']}/review.html", each["doubt"]) for each in structures)
    body = [
        f'<section class="asked"><h1 dir="auto">{html.escape(source)}</h1>'
        f'<p class="outcome"><span class="chip">{counts}</span></p>'
        f"<p>{' &#160; '.join(map(_legend, structures))}</p></section>",
        f'<ul class="cards">{cards}</ul>',
    ]
    told = [*notes, *(f"{each}: not done yet." for each in left)]
    if told:
        lines = "".join(f"<p>{html.escape(each)}</p>" for each in told)
        body.append(f'<section class="record">{lines}</section>')
    files.write_text(path, document(source, "IBIS structures", body))


def _legend(each: Mapping[str, Any]) -> str:
    colour = "#" + "".join(f"{int(part):02x}" for part in each["colour"])
    return (
        f'<svg width="11" height="11" aria-hidden="true"><rect width="11" height="11" fill="{colour}"/></svg> '
        f"{html.escape(each['name'])}"
    )
