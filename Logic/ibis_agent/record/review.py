"""The review page: one run as a single self-contained HTML file, opened from disk in any browser.

This module assembles the file so that nothing in the record can act as markup or script. The data for the page comes
from review_view; layout and behaviour are in review_page.html, .css and .js. No torch.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ibis_agent import files
from ibis_agent.errors import InputError
from ibis_agent.record.review_view import view_of
from ibis_agent.scan.picture import Picture

_HERE = Path(__file__).parent
_SCRIPTS: tuple[str, ...] = ("review_drawing.js", "review_page.js")


def review_page(
    record: Mapping[str, Any],
    live: Mapping[str, Any] | None = None,
    picture_of: Callable[[int], Picture] | None = None,
) -> str:
    """The page for the record of a run on a slice or a volume.

    Args:
        record: the JSON object of trajectory.json.
        live: the state of the server of a live page (see cli/live.py); the page may then contact this server.
        picture_of: returns the picture of a slice, if the record has no PNGs.

    Raises InputError if it is not a record.
    """
    try:
        view = view_of(record, picture_of)
        title, scripts = f"{view['question'][:80]} – IBIS review", _SCRIPTS
        if live is not None:
            view, scripts = {**view, "live": dict(live)}, (*_SCRIPTS, "live_page.js")
        return page_of(view, "review_page.html", title=title, scripts=scripts, asks=live is not None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(
            "this is not a trajectory written by this program",
            value=f"{type(error).__name__}: {error}",
            remedy="Pass a trajectory.json written by `ibis-agent run`.",
        ) from error


def write_review(
    path: str | os.PathLike[str],
    record: Mapping[str, Any],
    picture_of: Callable[[int], Picture] | None = None,
) -> None:
    """Write the page atomically; see `review_page`. Raises InputError, OutputError."""
    files.write_text(path, review_page(record, picture_of=picture_of))


def page_of(
    view: Mapping[str, Any], template: str, *, title: str, scripts: Sequence[str], asks: bool = False
) -> str:
    """A page that runs only its own style and script and loads nothing, not even from the disk.

    Args:
        view: its data.
        template, scripts: names of files in this package.
        title: plain text.
        asks: whether it may contact its own server.

    Raises ValueError for numbers that are not valid in JSON.
    """
    style, script = resource("review_page.css"), "".join(map(resource, scripts))
    policy = f"{style_policy(style)}; script-src '{_digest(script)}'" + (
        "; connect-src 'self'" if asks else ""
    )
    return _fill(
        resource(template),
        policy=html.escape(policy, quote=False),
        title=html.escape(title),
        style=style,
        data=_script_safe(view),
        script=script,
    )


def resource(name: str) -> str:
    """The text of a file in this package."""
    return (_HERE / name).read_text(encoding="utf-8")


def style_policy(style: str) -> str:
    """The content security policy that allows only this style and images inside the file."""
    return f"default-src 'none'; style-src '{_digest(style)}'; img-src data:; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _script_safe(value: Any) -> str:
    """JSON that cannot end its script element or start a comment in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _fill(template: str, **parts: str) -> str:
    """Replace each `{{name}}` by its part, once; placeholders inside parts are not replaced."""
    filled: list[str] = []
    for piece in template.split("{{"):
        name, mark, rest = piece.partition("}}")
        filled.append(parts[name] + rest if mark and filled else piece)
    return "".join(filled)
