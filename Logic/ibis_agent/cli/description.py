"""Descriptions of a run for the terminal and for tools: before it starts, after each step, and at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ibis_agent.segmenter as segmenters
from ibis_agent.actions import Prompt, format_prompt
from ibis_agent.cli.request import Task, reading_lines
from ibis_agent.mask import masks
from ibis_agent.run.caveats import caveats
from ibis_agent.run.measured import answer, measured
from ibis_agent.run.run import Run
from ibis_agent.scan.slices import Stack


def describe(task: Task) -> list[tuple[str, str]]:
    """A description of the task, as (term, text)."""
    slices = task.slices
    geometry = slices.geometry(slices.first)
    window, notes = _shown(task)
    if isinstance(slices, Stack):
        term, where = "slices", f"{geometry.plane}, slices {slices.first} to {slices.last} of {len(slices)}"
    else:
        term, where = "picture", f"{geometry.width} × {geometry.height} pixels"
        if geometry.plane != "picture":
            where = f"{geometry.plane}, slice {geometry.index} of {len(slices)}, {where}"
    if window:
        where += f", window {window[0]:g} to {window[1]:g}"
    if isinstance(slices, Stack) and slices.roi is not None:
        where += ", inside the region of interest"
    return [
        ("scan", task.source),
        (term, where),
        ("question", task.question),
        ("policy", task.card.name + (f" ({task.card.note})" if task.card.note else "")),
        ("segmenter", _named(task.request.segmenter)),
        *([("starts from", task.given.start_name)] if task.given.start else []),
        *([("excluded", task.given.excluded_name)] if task.given.excluded else []),
        *reading_lines(notes),
        *([("caution", task.caution)] if task.caution else []),
    ]


def asked(task: Task, run: Run) -> dict[str, Any]:
    """A description of the task and the loaded models, as plain values."""
    slices = task.slices
    geometry = slices.geometry(slices.first)
    where: dict[str, Any] = {"plane": geometry.plane}
    if isinstance(slices, Stack):
        where |= {"first": slices.first, "last": slices.last, "slices": len(slices)}
    else:
        where |= {"slice": None if geometry.plane == "picture" else geometry.index}
    window, notes = _shown(task)
    return {
        "scan": task.source,
        "file": None if task.request.scan is None else str(task.request.scan),
        **where,
        "window": None if window is None else list(window),
        "question": task.question,
        "policy": None if run.policy is None else dict(run.policy.identity),
        "segmenter": dict(run.segmenter.identity),
        "reading": list(notes),
        "caution": task.caution,
    }


def facts_of(run: Run, number: int) -> dict[str, Any]:
    """The facts about step `number` on a single slice: plain values, and `…_text` for display."""
    step, before = run.steps[number - 1], masks.area(run.steps[number - 2].mask) if number > 1 else 0
    pixels, clicked = masks.area(step.mask), isinstance(step.action, Prompt)
    return {
        "number": step.number,
        "by": step.by,
        "thinking": step.thinking,
        "action": format_prompt(step.action) if isinstance(step.action, Prompt) else "Terminate",
        "answer": None if isinstance(step.action, Prompt) else step.action.answer,
        "sign": ("+" if step.action.positive else "-") if isinstance(step.action, Prompt) else "=",
        "area_px": pixels,
        "area_mm2": _mm2(run, pixels),
        "area_text": area_text(run, step.mask),
        "change_text": _amount(run, pixels - before, sign=True),
        "score": step.score if clicked else None,
        "seconds": dict(step.seconds),
        "seconds_text": _seconds_text(step.seconds),
    }


def area_text(run: Run, mask: np.ndarray) -> str:
    """The area of a (H, W) mask in mm², or in pixels for a photograph."""
    return _amount(run, masks.area(mask))


def summary(run: Run, written: Mapping[str, Path]) -> dict[str, Any]:
    """The whole run as plain values. written: its files by kind."""
    facts: dict[str, Any] = {
        "question": run.question,
        "answer": answer(run),
        "measurements": measured(run).to_json(),
        "status": run.status,
        "reason": run.reason,
        "caveats": list(caveats(run)),
    }
    if run.alone:
        pixels = masks.area(run.mask())
        facts |= {"steps": len(run.steps), "area_px": pixels, "area_mm2": _mm2(run, pixels)}
    else:
        areas = {str(index): area for index, area in run.areas_mm2().items() if area}
        facts |= {"key_slice": run.key, "actions": len(run.actions), "second_looks": run.looks}
        if run.pixel_mm2 is None:
            facts |= {"volume_ml": None, "areas_px": areas}
        else:
            facts |= {"volume_ml": run.volume_ml, "areas_mm2": areas}
    return {**facts, "files": {what: str(path) for what, path in written.items()}}


def _shown(task: Task) -> tuple[tuple[float, float] | None, Iterable[str]]:
    """The window shown as black to white, and notes on how the scan was read."""
    slices = task.slices
    if isinstance(slices, Stack):
        return slices.window, slices.scan.told
    picture = slices.picture(slices.first)
    return picture.window, picture.notes


def _named(segmenter: Path | str | None) -> str:
    if segmenter is None:
        return "demo segmenter"
    if isinstance(segmenter, str):
        return str(segmenters.find(segmenter)) if segmenters.is_address(segmenter) else segmenter
    return segmenter.name


def _mm2(run: Run, pixels: int) -> float | None:
    return None if run.pixel_mm2 is None else pixels * run.pixel_mm2


def _amount(run: Run, pixels: int, sign: bool = False) -> str:
    area = _mm2(run, pixels)
    number, unit = (pixels, "px") if area is None else (area, "mm²")
    digits = ".1f" if abs(number) < 10 and number != int(number) else ".0f"
    return f"{number:{'+' if sign else ''}{digits}} {unit}"


def _seconds_text(seconds: Mapping[str, float]) -> str:
    parts = [f"{who} {seconds.get(who, 0):.2f}" for who in ("policy", "segmenter") if seconds.get(who)]
    return f"{seconds.get('total', 0):.2f} s" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
