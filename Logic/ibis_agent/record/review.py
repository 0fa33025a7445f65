"""The review page: one run as a single HTML file that needs nothing else, opened from disk in any browser.

Here: how the file is put together so that nothing in the record can act as markup or script. What of a record
it shows is in review_view; how it looks and moves is in review_page.html, .css and .js. No torch.
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
    """The whole page for a run's record, of a slice or of a volume: the JSON object of trajectory.json.

    live: of a page that is served while its run goes on (cli/live.py); that one may ask its own server.
    picture_of: the pictures by slice, of a record without PNGs.
    Raises InputError where the record is not one.
    """
    try:
        view = view_of(record, picture_of)
        title, scripts = f"{view['question'][:80]} – IBIS review", _SCRIPTS
        if live is not None:
            view, scripts = {**view, "live": dict(live)}, (*_SCRIPTS, "live_page.js")
        return page_of(view, "review_page.html", title=title, scripts=scripts, asks=live is not None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(
            "this is not a trajectory of this program",
            value=f"{type(error).__name__}: {error}",
            remedy="Pass a trajectory.json that `ibis-agent run` wrote.",
        ) from error


def write_review(
    path: str | os.PathLike[str],
    record: Mapping[str, Any],
    picture_of: Callable[[int], Picture] | None = None,
) -> None:
    """Write the page, whole or not at all; see review_page. Raises InputError, OutputError."""
    files.write_text(path, review_page(record, picture_of=picture_of))


def page_of(
    view: Mapping[str, Any], template: str, *, title: str, scripts: Sequence[str], asks: bool = False
) -> str:
    """A page in which only its own style and script may act, and which fetches nothing, not even from the disk.

    view: what it shows. template, scripts: files of this package. title: plain text. asks: it may ask the server it
    comes from. Raises ValueError for a view with numbers that JSON does not know.
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
    return (_HERE / name).read_text(encoding="utf-8")


def style_policy(style: str) -> str:
    """The content security policy that lets this style and pictures inside the file be, and nothing else."""
    return f"default-src 'none'; style-src '{_digest(style)}'; img-src data:; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _script_safe(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _fill(template: str, **parts: str) -> str:
    """Put each part in the place of its `{{name}}`, once; what a part contains is not looked at again."""
    filled: list[str] = []
    for piece in template.split("{{"):
        name, mark, rest = piece.partition("}}")
        filled.append(parts[name] + rest if mark and filled else piece)
    return "".join(filled)
