"""Convert steps, actions and slices to the plain values of a record and back, checked field by field. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ibis_agent.actions import Action, Box, Click, Prompt, Terminate
from ibis_agent.fields import Fields
from ibis_agent.mask.masks import area, decode_rle, encode_rle
from ibis_agent.run.action import KINDS, RunAction, Way
from ibis_agent.run.episode import Author, Limits, Step
from ibis_agent.run.given import Given, Masks, given
from ibis_agent.run.settings import FOLLOWS, Settings
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.segmenter.contract import Found

Json = dict[str, Any]


def click_to_json(click: Prompt) -> Json:
    """A click, or a box, which has four edges instead of x and y."""
    if isinstance(click, Box):
        return dataclasses.asdict(click)
    assert isinstance(click, Click)
    return {"x": click.x, "y": click.y, "positive": click.positive}


def click_from_json(values: Mapping[str, Any] | Fields) -> Prompt:
    """A click or a box from a record or a request. Raises InputError naming the field and its value."""
    fields = values if isinstance(values, Fields) else Fields(dict(values), path="click")
    if "x0" in fields.values:
        edges = [fields.number(key) or 0.0 for key in ("x0", "y0", "x1", "y1")]
        return fields.checked(lambda: Box(*edges))
    x, y, positive = fields.number("x"), fields.number("y"), fields.flag("positive")
    return fields.checked(lambda: Click(x or 0.0, y or 0.0, positive))


def _action_to_json(action: Action) -> Json:
    if isinstance(action, Prompt):
        kind = "box" if isinstance(action, Box) else "click"
        return {"kind": kind, **click_to_json(action)}
    return {"kind": "terminate", "answer": action.answer}


def _action_from_json(fields: Fields) -> Action:
    if fields.choice("kind", ("click", "box", "terminate")) == "terminate":
        return Terminate(fields.text("answer"))
    return click_from_json(fields)


def step_to_json(step: Step, geometry: PictureGeometry) -> Json:
    """One step in the form of the record; logits are omitted."""
    pixels, each = area(step.mask), geometry.pixel_area_mm2
    values = {
        "number": step.number,
        "by": step.by,
        "thinking": step.thinking,
        "reply": step.reply,
        "action": _action_to_json(step.action),
        "mask_rle": encode_rle(step.mask),
        "score": None if step.score is None else float(step.score),
        "area_px": pixels,
        "area_mm2": None if each is None else pixels * each,
        "seconds": {key: float(value) for key, value in step.seconds.items()},
    }
    return {**values, "unreadable": step.unreadable} if step.unreadable else values


def step_from_json(record: Any, geometry: PictureGeometry, number: int | None = None) -> Step:
    """The reverse of `step_to_json`; the step has no logits (a run recomputes them).

    number: its expected number. Raises InputError naming the field and its value.
    """
    fields = record if isinstance(record, Fields) else Fields(record)
    if fields.whole("number", 1) != number and number is not None:
        raise fields.error("number", f"must be {number}: steps are numbered in order")
    by: Author = fields.choice("by", ("policy", "person"))  # type: ignore[assignment]
    mask = mask_from(fields, "mask_rle", (geometry.height, geometry.width))
    if fields.whole("area_px", 0) != area(mask):
        raise fields.error("area_px", f"is not the mask's area, {area(mask)}")
    return Step(
        number=fields.whole("number", 1),
        action=_action_from_json(fields.inside("action")),
        by=by,
        mask=mask,
        logits=None,
        score=fields.number("score", optional=True),
        thinking=fields.text("thinking"),
        reply=fields.text("reply"),
        unreadable=fields.text("unreadable", ""),
        seconds=fields.numbers("seconds"),
    )


def action_to_json(action: RunAction, geometry: PictureGeometry) -> Json:
    """One action in the form of the record. geometry: of a slice of the volume."""
    return {
        "number": action.number,
        "kind": action.kind,
        "slice": action.index,
        "by": action.by,
        "words": action.words,
        "steps": [step_to_json(step, geometry) for step in action.steps],
        "clicks": [click_to_json(click) for click in action.clicks],
        "ways": [dataclasses.asdict(way) for way in action.ways],
        "look": action.look,
        "afresh": action.afresh,
        "stopped": action.stopped,
        "seconds": action.seconds,
    }


def action_from_json(fields: Fields, geometry: PictureGeometry, number: int) -> RunAction:
    """The reverse of `action_to_json`; its steps have no logits. Raises InputError naming the field."""
    kind: Any = fields.choice("kind", KINDS)
    by: Any = fields.choice("by", ("policy", "person"))
    clicks = tuple(click_from_json(click) for click in fields.list_of("clicks"))
    if kind == "click" and not clicks:
        raise fields.error("clicks", "must not be empty", "[]")
    return RunAction(
        number=number,
        kind=kind,
        index=fields.whole("slice", 0),
        by=by,
        words=fields.text("words"),
        steps=tuple(step_from_json(step, geometry) for step in fields.list_of("steps")),
        clicks=clicks,
        ways=tuple(
            Way(way.whole("start", 0), way.whole("last", 0), way.flag("ended"))
            for way in fields.list_of("ways")
        ),
        look=int(fields.value("look", 0)),
        afresh=bool(fields.value("afresh", False)),
        stopped=bool(fields.value("stopped", False)),
        seconds=fields.number("seconds") or 0.0,
    )


def actions_of(steps: Iterable[Step], index: int) -> tuple[RunAction, ...]:
    """The steps on a single slice as the actions of a run."""
    made: list[RunAction] = []
    clicks: tuple[Prompt, ...] = ()
    for step in steps:
        if isinstance(step.action, Prompt):
            clicks = (*clicks, step.action)
        kind, words, on = (
            ("click", "clicked", clicks) if isinstance(step.action, Prompt) else ("done", "", ())
        )
        made.append(RunAction(len(made) + 1, kind, index, step.by, words, (step,), on))  # type: ignore[arg-type]
    return tuple(made)


def slice_to_json(found: Found | None, mask: np.ndarray, index: int, pixel_mm2: float | None) -> Json | None:
    """The state of one slice; None if unknown. mask: within the region of interest."""
    if found is None:
        return None
    return {
        "slice": index,
        "mask_rle": encode_rle(mask),
        "area_px": area(mask),
        "area_mm2": None if pixel_mm2 is None else area(mask) * pixel_mm2,
        "score": found.score,
        "presence": found.presence,
        "anchor": found.anchor,
    }


def given_to_json(masks: Given) -> Json:
    """The optional keys "start" and "excluded" of a record: a name, and run lengths by slice."""
    parts = (
        ("start", masks.start_name, masks.start),
        ("excluded", masks.excluded_name, masks.excluded),
    )
    return {
        key: {"name": name, "masks": {str(index): encode_rle(mask) for index, mask in sorted(held.items())}}
        for key, name, held in parts
        if held
    }


def given_from_json(fields: Fields, geometry: PictureGeometry) -> Given:
    """The reverse of `given_to_json`. geometry: of any slice. Raises InputError naming the field."""
    start, start_name = _given_part(fields, "start", geometry)
    excluded, excluded_name = _given_part(fields, "excluded", geometry)
    return given(start, excluded, start_name, excluded_name)


def begun(fields: Fields, geometry: PictureGeometry) -> dict[int, Json]:
    """The state of the slices before the first action, in the form of `slice_to_json`."""
    masks = given_from_json(fields, geometry).filled()
    known = {n: Found(n, mask, 1.0, float(mask.any())) for n, mask in masks.items()}
    pixel = geometry.pixel_area_mm2
    return {n: slice_to_json(each, each.mask, n, pixel) or {} for n, each in known.items()}


def _given_part(fields: Fields, key: str, geometry: PictureGeometry) -> tuple[Masks, str]:
    if fields.value(key, None) is None:
        return {}, ""
    part = fields.inside(key)
    masks, count = part.inside("masks"), geometry.shape[geometry.axis]
    for index in masks.values:
        if not index.isdecimal() or int(index) >= count:
            raise masks.error(index, f"is not one of the {count} slices")
    size = geometry.height, geometry.width
    return {int(index): mask_from(masks, index, size) for index in masks.values}, part.text("name", "")


def settings_to_json(settings: Settings) -> Json:
    """The settings of a run: for a single slice only its limits, for a volume all."""
    values = dataclasses.asdict(settings)
    return dict(values["episode"]) if settings.follow == "alone" else values


def settings_from_json(fields: Fields, alone: bool) -> Settings:
    """The reverse of `settings_to_json`. Settings that older records lack get their defaults. Raises InputError naming
    the field.
    """
    inside = fields if alone else fields.inside("episode")
    episode = inside.checked(lambda: Limits(inside.whole("max_turns", 1), inside.whole("max_repeats", 2)))
    if alone:
        return Settings(episode=episode, follow="alone")
    follow: Any = fields.choice("follow", FOLLOWS)
    parts = {
        each.name: _numbers(fields, each.name) for each in dataclasses.fields(Settings) if each.name in _PARTS
    }
    patience = fields.number("patience_mm", optional=True)
    made = {name: dataclasses.replace(_PARTS[name], **values) for name, values in parts.items()}
    looks = fields.whole("looks", 0)
    return Settings(
        episode, looks, Settings.patience_mm if patience is None else patience, follow=follow, **made
    )


_PARTS: Json = {"search": Settings().search, "doubt": Settings().doubt, "following": Settings().following}


def _numbers(fields: Fields, name: str) -> Json:
    """The numbers of one group of settings in the record."""
    if fields.value(name, None) is None:
        return {}
    inside, usual = fields.inside(name), dataclasses.asdict(_PARTS[name])
    return {
        key: inside.whole(key, 0) if isinstance(value, int) else inside.number(key)
        for key, value in usual.items()
        if inside.value(key, None) is not None
    }


def mask_from(fields: Fields, key: str, shape: tuple[int, int]) -> np.ndarray:
    """The (H, W) bool mask of a field with run lengths, read-only. Raises InputError naming the field."""
    text = fields.text(key)
    mask = fields.checked(lambda: decode_rle(text, shape), key)
    mask.setflags(write=False)
    return mask
