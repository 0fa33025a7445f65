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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ibis_agent import files
from ibis_agent.errors import InputError
from ibis_agent.record.review_view import view_of

_HERE = Path(__file__).parent
_SCRIPTS = ("review_drawing.js", "review_page.js")


def review_page(record: Mapping[str, Any]) -> str:
    """The whole page for a run's record, of a slice or of a volume: the JSON object of trajectory.json.

    Raises InputError where the record is not one.
    """
    try:
        view = view_of(record)
        data = _script_safe(view)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(
            "this is not a trajectory of this program",
            value=f"{type(error).__name__}: {error}",
            remedy="Pass a trajectory.json that `ibis-agent run` wrote.",
        ) from error
    return sealed_page(
        _resource("review_page.html"),
        title=f"{view['question'][:80]} – IBIS review",
        style=_resource("review_page.css"),
        script="".join(map(_resource, _SCRIPTS)),
        data=data,
    )


def write_review(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write the page, whole or not at all. Raises InputError, OutputError."""
    files.write_text(path, review_page(record))


def sealed_page(template: str, *, title: str, style: str, script: str, data: str) -> str:
    """A page in which only this style and this script may act, and which fetches nothing, not even from the disk.

    title: plain text. data: JSON that is safe inside a script element, see `_script_safe`.
    """
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _fill(
        template,
        policy=html.escape(policy, quote=False),
        title=html.escape(title),
        style=style,
        data=data,
        script=script,
    )


def _resource(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


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
