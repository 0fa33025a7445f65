"""The review page: one run as a single HTML file that needs nothing else, opened from disk in any browser.

Here: what of a trajectory's record the page shows, and how the file is put together so that nothing in the
record can act as markup or script. How it looks and moves is in review_page.html, .css and .js. No torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent import files
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.scan.geometry import PictureGeometry

_HERE = Path(__file__).parent
_PNG = b"\x89PNG\r\n\x1a\n"
_AXES = (("R", "L"), ("A", "P"), ("S", "I"))
_OUTCOMES = {"ended": "Ended", "paused": "Paused", "ready": "Unfinished"}


def review_page(record: Mapping[str, Any]) -> str:
    """The whole page for a trajectory's record: the JSON object of trajectory.json, ibis-trajectory/1.

    Raises InputError where the record is not one.
    """
    try:
        view = _view(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "this is not a trajectory of this program",
            value=f"{type(error).__name__}: {error}",
            remedy="Pass a trajectory.json that `ibis-agent run` wrote.",
        ) from error
    return fill_page("review_page.html", view, ["review_page.css"], "review_page.js")


def fill_page(template: str, view: Mapping[str, Any], styles: Sequence[str], script_name: str) -> str:
    """A page out of its template, styles and script (files of this package) and what it shows, "question" included."""
    style, script = "".join(map(_resource, styles)), _resource(script_name)
    # Only these two inline texts may act; nothing may be fetched from anywhere, not even from the disk.
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _fill(
        _resource(template),
        policy=html.escape(policy, quote=False),
        title=html.escape(f"{view['question'][:80]} – IBIS review"),
        style=style,
        data=_script_safe(view),
        script=script,
    )


def write_review(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page, atomically. Raises InputError, OutputError."""
    files.write_text(path, review_page(record))


def _view(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows, in its own words; masks as run lengths, areas in mm² (pixels for a photograph)."""
    picture = record["picture"]
    height, width = int(picture["height"]), int(picture["width"])
    geometry = PictureGeometry.from_json(picture["geometry"]) if picture.get("geometry") else None
    real = geometry is not None and geometry.row_mm is not None
    if geometry is not None and (geometry.height, geometry.width) != (height, width):
        raise ValueError("the picture and its geometry differ in size")
    pixel_area = geometry.pixel_area_mm2 if geometry is not None and geometry.pixel_area_mm2 else 1.0
    status = str(record.get("status") or "ready")
    return {
        "question": str(record["question"]),
        "answer": str(record.get("answer") or ""),
        "outcome": _OUTCOMES.get(status, status),
        "reason": str(record.get("reason") or ""),
        "note": str(record.get("note") or ""),
        "facts": _facts(record, geometry),
        "picture": {
            "png": _png(picture["png"]),
            "width": width,
            "height": height,
            "col_mm": geometry.col_mm if real and geometry else 1.0,
            "row_mm": geometry.row_mm if real and geometry else 1.0,
            "real_mm": real,
            "edges": _edges(geometry) if real and geometry else {},
        },
        "steps": [_step(step, (height, width), pixel_area) for step in record["steps"]],
    }


def _step(step: Mapping[str, Any], shape: tuple[int, int], pixel_area: float) -> dict[str, Any]:
    action = step["action"]
    mask = decode_rle(step["mask_rle"], shape)
    shown: dict[str, Any] = {
        "number": int(step["number"]),
        "by": "person" if step.get("by") == "person" else "policy",
        "thinking": str(step.get("thinking") or ""),
        "reply": str(step.get("reply") or ""),
        "unreadable": str(step.get("unreadable") or ""),
        "kind": "click" if action["kind"] == "click" else "terminate",
        "answer": str(action.get("answer") or ""),
        "runs": _runs(mask),
        "area": round(float(np.count_nonzero(mask)) * pixel_area, 2),
        "score": None if step.get("score") is None else round(float(step["score"]), 4),
        "seconds": {key: round(float(value), 4) for key, value in (step.get("seconds") or {}).items()},
    }
    if shown["kind"] == "click":
        shown |= {"x": float(action["x"]), "y": float(action["y"]), "positive": bool(action["positive"])}
    return shown


def _runs(mask: np.ndarray) -> list[int]:
    """Row-major run lengths, the first a run of zeros; the last run of zeros is left out."""
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [0, *edges.tolist(), flat.size]
    runs = [stop - start for start, stop in itertools.pairwise(bounds)]
    if flat[0]:
        runs.insert(0, 0)
    return runs[: len(runs) - len(runs) % 2]


def _edges(geometry: PictureGeometry) -> dict[str, str]:
    """The patient's direction at each side of the picture: R, L, A, P, S or I."""
    right = geometry.affine[:3, geometry.col_axis] * (-1 if geometry.flip_cols else 1)
    down = geometry.affine[:3, geometry.row_axis] * (-1 if geometry.flip_rows else 1)
    return {"right": _letter(right), "left": _letter(-right), "bottom": _letter(down), "top": _letter(-down)}


def _letter(direction: np.ndarray) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return _AXES[axis][0 if direction[axis] > 0 else 1]


def _facts(record: Mapping[str, Any], geometry: PictureGeometry | None) -> list[tuple[str, str]]:
    picture = record["picture"]
    facts = [("Scan", str(picture.get("source") or "")), ("Made", str(record.get("created") or ""))]
    if geometry is not None and geometry.plane != "picture":
        count = geometry.shape[geometry.axis]
        facts.append(("Slice", f"{geometry.plane}, index {geometry.index} of {count}"))
    window = picture.get("window")
    if isinstance(window, Sequence) and len(window) == 2:
        facts.append(("Window", f"{float(window[0]):g} to {float(window[1]):g}"))
    facts.append(("Orientation", str(picture.get("orientation") or "")))
    for role, identity in (record.get("models") or {}).items():
        facts.append((str(role).capitalize(), _identity(identity)))
    limits = record.get("limits") or {}
    facts += [(str(key).replace("_", " ").capitalize(), str(value)) for key, value in limits.items()]
    if record.get("reason"):
        facts.append(("Why it stopped", str(record["reason"])))
    facts.append(("Picture, SHA-256", str(picture.get("sha256") or "")))
    facts.append(("Format", str(record.get("schema") or "")))
    return [(term, value) for term, value in facts if value]


def _identity(identity: Any) -> str:
    if not isinstance(identity, Mapping):
        return str(identity or "none")
    rest = (f"{key} {value}" for key, value in identity.items() if key != "name" and value)
    return ", ".join([str(identity.get("name", "")), *rest])


def _png(text: Any) -> str:
    try:
        data = base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise ValueError("the picture is not base64") from error
    if not data.startswith(_PNG):
        raise ValueError("the picture is not a PNG")
    return base64.b64encode(data).decode("ascii")


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
