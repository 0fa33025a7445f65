"""The data of the review page for a run's record: plain values for a JSON text.

Slices and volumes have the same form: slices (a run on one slice has one), and steps, each on one of them. The steps of
a volume come from its actions. Masks are run lengths, areas are in mm² (pixels for a photograph).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ibis_agent.actions import Box
from ibis_agent.fields import Fields
from ibis_agent.mask.masks import decode_rle
from ibis_agent.mask.measurements import Measurements, answer_with_size, measure
from ibis_agent.mask.packed import PackedMasks
from ibis_agent.record.recorded_slices import recorded_slices
from ibis_agent.record.review_pictures import ROOM, fitted, grey_if_it_is, read_png, runs_of, to_base64
from ibis_agent.record.steps import given_from_json
from ibis_agent.scan.geometry import PictureGeometry, slice_geometry
from ibis_agent.scan.picture import Picture

_AXES = (("R", "L"), ("A", "P"), ("S", "I"))
_OUTCOMES = {"ended": "Ended", "paused": "Paused", "ready": "Unfinished"}

Json = Mapping[str, Any]


def view_of(record: Json, picture_of: Callable[[int], Picture] | None = None) -> dict[str, Any]:
    """The data for a record of a slice (with "picture") or of a volume (with "slices" and "actions").

    picture_of: returns the picture of a slice, if the record has no PNGs.
    Raises ValueError, KeyError, TypeError and similar errors if it is not a record.
    """
    volume = "slices" in record
    found = recorded_slices(record)
    one = found[0].geometry
    where = {each.geometry.index: place for place, each in enumerate(found)}
    steps = list(_volume_steps(record, where, one) if volume else _slice_steps(record, one))
    masks = PackedMasks((each.geometry.index, each.mask) for each in found)

    def pixels() -> Iterator[tuple[int, np.ndarray]]:
        for each in found:
            index = each.geometry.index
            if picture_of is None:
                yield index, read_png(each.picture["png"], one.height, one.width)
            else:
                yield index, grey_if_it_is(picture_of(index).rgb)

    worked = {found[step["slice"]].geometry.index for step in steps}
    runs = {index: runs_of(mask) for index, mask in masks.items()}
    shown, cuts = _pictures_and_cuts(pixels(), masks, runs, worked, one)
    standing = _standing(record, volume)
    key = (record.get("volume") or {}).get("key") if volume else one.index
    largest = max(masks, key=lambda index: int(masks[index].sum()))
    status = str(record.get("status") or "ready")
    measured = _measured(record, masks, one)
    each = one.pixel_area_mm2 or 1.0
    begun = given_from_json(Fields(dict(record)), one).start
    return {
        "question": str(record["question"]),
        "answer": answer_with_size(str(record["question"]), str(record.get("answer") or ""), measured),
        "outcome": _OUTCOMES.get(status, status),
        "reason": str(record.get("reason") or ""),
        "caveats": [str(each) for each in record.get("caveats") or []],
        "note": str(record.get("note") or ""),
        "facts": _facts(record, one),
        "volume": volume,
        "ml": _ml(record.get("volume") or {}),
        "key": where.get(key, where[largest]) if key is not None else where[largest],
        "picture": {
            "width": one.width,
            "height": one.height,
            "col_mm": one.col_mm or 1.0,
            "row_mm": one.row_mm or 1.0,
            "real_mm": one.row_mm is not None,
            "edges": edges_of(one) if one.row_mm is not None else {},
            "frame": _frame(record),
        },
        "slices": [
            {
                "index": index,
                "png": shown[index].png,
                "reduced": shown[index].reduced,
                "runs": runs[index],
                "area": round(float(masks[index].sum()) * each, 2),
                "score": _number(found[place].row.get("score")),
                "anchor": bool(found[place].row.get("anchor")),
                "begun": runs_of(begun[index]) if index in begun else [],
                "begun_area": round(float(begun[index].sum()) * each, 2) if index in begun else 0,
                "marks": standing.get(index, []),
            }
            for index, place in where.items()
        ],
        "steps": steps,
        "cuts": cuts,
        "measures": measured.lines(),
    }


def _slice_steps(record: Json, geometry: PictureGeometry) -> Iterator[dict[str, Any]]:
    marks: list[dict[str, Any]] = []
    for place, step in enumerate(record["steps"]):
        made = _step(step, geometry, marks)
        marks = made["marks"]
        yield {**made, "slice": 0, "before": place, "words": ""}


def _volume_steps(
    record: Json, where: Mapping[int, int], geometry: PictureGeometry
) -> Iterator[dict[str, Any]]:
    """Every step of every action, and the actions without steps, such as propagation."""
    position = 0
    for number, action in enumerate(record["actions"], 1):
        index, kind, steps = int(action["slice"]), str(action["kind"]), action["steps"]
        common = {"slice": where[index], "words": str(action.get("words") or "")}
        if not steps:
            position += 1
            yield {
                **dict.fromkeys(("thinking", "reply", "unreadable", "answer"), ""),
                **dict.fromkeys(("runs", "area", "score")),
                "number": number,
                "kind": kind,
                "by": _author(action),
                "seconds": {"total": _number(action.get("seconds")) or 0.0},
                "marks": [],
                "before": 0,
                **common,
            }
            continue
        marks: list[dict[str, Any]] = []
        clicks = action.get("clicks") or []
        # The clicks of the slice before this action; its own clicks are added with its steps.
        own = sum(step["action"]["kind"] == "click" for step in steps)
        if kind in ("click", "done"):
            marks = [_mark(click, n) for n, click in enumerate(clicks[: max(0, len(clicks) - own)], 1)]
        before = 0
        for step in steps:
            made = _step(step, geometry, marks, number=len(marks) + 1)
            marks, position = made["marks"], position + 1
            yield {**made, **common, "before": before}
            before = position


def _step(
    step: Json, geometry: PictureGeometry, marks: Sequence[Json], number: int | None = None
) -> dict[str, Any]:
    """number: of its mark in the picture; None uses the step's number."""
    action, mask = step["action"], decode_rle(step["mask_rle"], (geometry.height, geometry.width))
    number = int(step["number"]) if number is None else number
    made: dict[str, Any] = {
        "number": number,
        "by": _author(step),
        "thinking": str(step.get("thinking") or ""),
        "reply": str(step.get("reply") or ""),
        "unreadable": str(step.get("unreadable") or ""),
        "kind": "click" if action["kind"] in ("click", "box") else "terminate",
        "answer": str(action.get("answer") or ""),
        "runs": runs_of(mask),
        "area": round(float(np.count_nonzero(mask)) * (geometry.pixel_area_mm2 or 1.0), 2),
        "score": _number(step.get("score")),
        "seconds": {key: round(float(value), 4) for key, value in (step.get("seconds") or {}).items()},
        "marks": list(marks),
    }
    if made["kind"] == "click":
        made["marks"].append({**_mark(action, number), "by": made["by"]})
        made |= {key: value for key, value in _mark(action, number).items() if key != "number"}
    return made


def _standing(record: Json, volume: bool) -> dict[int, list[dict[str, Any]]]:
    """The final clicks of each slice."""
    if not volume:
        return {}
    last = {int(each["slice"]): each["clicks"] for each in record["actions"] if each["kind"] == "click"}
    return {index: [_mark(click, n) for n, click in enumerate(clicks, 1)] for index, clicks in last.items()}


def _mark(click: Json, number: int) -> dict[str, Any]:
    if "x0" in click:
        box = [float(click[key]) for key in ("x0", "y0", "x1", "y1")]
        middle = Box(*box).middle
        return {"x": middle.x, "y": middle.y, "box": box, "positive": True, "number": number}
    return {
        "x": float(click["x"]),
        "y": float(click["y"]),
        "positive": bool(click["positive"]),
        "number": number,
    }


def _pictures_and_cuts(
    pictures: Iterable[tuple[int, np.ndarray]],
    masks: Mapping[int, np.ndarray],
    runs: Mapping[int, list[int]],
    worked: set[int],
    one: PictureGeometry,
) -> tuple[dict[int, Any], list[dict[str, Any]]]:
    """The slices' pictures, reduced to fit, and the two cuts across them through the middle of the mask."""
    rows, cols = (sum(mask.sum(axis=axis, dtype=np.int64) for mask in masks.values()) for axis in (1, 0))
    row, col = (
        int(np.argmax(each)) if np.any(each) else len(each) // 2
        for each in (np.asarray(rows), np.asarray(cols))
    )
    lines: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def pass_through() -> Iterator[tuple[int, np.ndarray]]:
        for index, pixels in pictures:
            lines[index] = pixels[row].copy(), pixels[:, col].copy()
            yield index, pixels

    # Base64 adds a third to a picture and nothing to a mask.
    room = max(ROOM - 3 * sum(len(str(each)) for each in runs.values()) // 4, ROOM // 4)
    shown = fitted(pass_through(), worked, {index for index, each in runs.items() if each}, room)
    if len(shown) < 2:
        return shown, []
    across_rows = {index: mask[row] for index, mask in masks.items()}
    across_cols = {index: mask[:, col] for index, mask in masks.items()}
    cuts = [
        _cut({index: line[0] for index, line in lines.items()}, across_rows, one, one.col_axis, row),
        _cut({index: line[1] for index, line in lines.items()}, across_cols, one, one.row_axis, col),
    ]
    return shown, sorted(cuts, key=lambda cut: str(cut["plane"]))


def _cut(
    lines: Mapping[int, np.ndarray],
    masks: Mapping[int, np.ndarray],
    one: PictureGeometry,
    along: int,
    place: int,
) -> dict[str, Any]:
    """A picture across all slices, from one row or one column of each. Slices that were not visited are black.

    along: the voxel axis along the lines. place: the row or column.
    """
    low, high = min(lines), max(lines)
    colour = any(line.ndim == 2 for line in lines.values())
    length = len(next(iter(lines.values())))
    pixels = np.zeros((high - low + 1, length, 3) if colour else (high - low + 1, length), np.uint8)
    mask = np.zeros((high - low + 1, length), bool)
    for index, line in lines.items():
        pixels[index - low] = line[:, None] if colour and line.ndim == 1 else line
        mask[index - low] = masks[index]
    across = one.row_axis if along == one.col_axis else one.col_axis
    flipped, backwards = (
        (one.flip_cols, one.flip_rows) if along == one.col_axis else (one.flip_rows, one.flip_cols)
    )
    if flipped:  # into the order of the file's voxels
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    index = one.shape[across] - 1 - place if backwards else place
    geometry = slice_geometry(one.shape, one.affine, "xyz"[across], index)
    down = geometry.row_axis == one.axis
    if not down:
        pixels, mask = pixels.swapaxes(0, 1), mask.T
    turn = (
        slice(None, None, -1 if geometry.flip_rows else 1),
        slice(None, None, -1 if geometry.flip_cols else 1),
    )
    pixels, mask = pixels[turn], mask[turn]
    return {
        "plane": geometry.plane,
        "png": to_base64(pixels),
        "width": mask.shape[1],
        "height": mask.shape[0],
        "col_mm": geometry.col_mm or 1.0,
        "row_mm": geometry.row_mm or 1.0,
        "edges": edges_of(geometry),
        "runs": runs_of(mask),
        "first": low,
        "down": down,
        "backwards": geometry.flip_rows if down else geometry.flip_cols,
    }


def _author(each: Json) -> str:
    return "person" if each.get("by") == "person" else "policy"


def _number(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def edges_of(geometry: PictureGeometry) -> dict[str, str]:
    """The patient's direction at each side of the picture: R, L, A, P, S or I."""
    right = geometry.affine[:3, geometry.col_axis] * (-1 if geometry.flip_cols else 1)
    down = geometry.affine[:3, geometry.row_axis] * (-1 if geometry.flip_rows else 1)
    return {"right": _letter(right), "left": _letter(-right), "bottom": _letter(down), "top": _letter(-down)}


def _letter(direction: np.ndarray) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return _AXES[axis][0 if direction[axis] > 0 else 1]


def _measured(record: Json, masks: Mapping[int, np.ndarray], one: PictureGeometry) -> Measurements:
    """The recorded measurements; otherwise those of the masks, without grey values."""
    if record.get("measurements"):
        return Measurements(**record["measurements"])
    in_plane = None if one.row_mm is None or one.col_mm is None else (one.row_mm, one.col_mm)
    if "slices" not in record:
        return measure(masks[one.index], in_plane)
    low, high = min(masks), max(masks)
    stack = np.zeros((high - low + 1, one.height, one.width), bool)
    for index, mask in masks.items():
        stack[index - low] = mask
    gap = float(np.linalg.norm(one.affine[:3, one.axis]))
    return measure(stack, in_plane and (gap, *in_plane), first=low)


def _frame(record: Json) -> list[int] | None:
    """[left, top, width, height] in pixels of the part that the models saw; None for all of it."""
    picture = record["slices"][0]["picture"] if "slices" in record else record["picture"]
    seen = picture.get("frame")
    if not seen:
        return None
    left, top = int(seen["left"]), int(seen["top"])
    return [left, top, int(seen["right"]) - left, int(seen["bottom"]) - top]


def _ml(volume: Mapping[str, Any]) -> float | None:
    """The object's volume; None for a slice, or if the voxel size is unknown."""
    return None if volume.get("ml") is None else round(float(volume["ml"]), 2)


def _facts(record: Json, one: PictureGeometry) -> list[tuple[str, str]]:
    """The record's other facts as (term, text); missing ones are omitted."""
    volume = record.get("volume") or {}
    picture = record["slices"][0]["picture"] if volume else record["picture"]
    facts = [
        ("Scan", str(volume.get("source") or picture.get("source") or "")),
        ("Created", str(record.get("created") or "")),
    ]
    if seen := _frame(record):
        facts.append(("Seen by the models", f"{seen[2]} × {seen[3]} of {one.width} × {one.height} pixels"))
    for term, what in (("Started from", "start"), ("Excluded", "excluded")):
        facts.append((term, str((record.get(what) or {}).get("name") or "")))
    if volume:
        span = f"{volume['first']} to {volume['last']} of {volume['count']}"
        facts.append(("Slices", f"{one.plane}, {span}, {len(record['slices'])} visited"))
        if volume.get("ml") is not None:
            facts.append(("Slice spacing", f"{float(volume.get('gap_mm') or 0):g} mm"))
            facts.append(("Volume", f"{float(volume['ml']):.2f} mL"))
    elif one.plane != "picture":
        facts.append(("Slice", f"{one.plane}, index {one.index} of {one.shape[one.axis]}"))
    window = picture.get("window")
    if isinstance(window, Sequence) and len(window) == 2:
        facts.append(("Window", f"{float(window[0]):g} to {float(window[1]):g}"))
    facts.append(("Orientation", str(picture.get("orientation") or "")))
    for role, identity in (record.get("models") or {}).items():
        facts.append((str(role).capitalize(), _identity(identity)))
    facts += [(_term(key), _words(value)) for key, value in (record.get("limits") or {}).items()]
    if record.get("reason"):
        facts.append(("Why it stopped", str(record["reason"])))
    if not volume:
        facts.append(("Picture, SHA-256", str(picture.get("sha256") or "")))
    facts.append(("Format", str(record.get("schema") or "")))
    return [(term, value) for term, value in facts if value]


def _identity(identity: Any) -> str:
    if not isinstance(identity, Mapping):
        return str(identity or "none")
    rest = (
        f"{key} {value}" for key, value in identity.items() if key not in ("name", "settings_files") and value
    )
    return ", ".join([str(identity.get("name", "")), *rest])


def _term(key: Any) -> str:
    return str(key).replace("_", " ").capitalize()


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_words(each)}" for key, each in value.items())
    return str(value)
