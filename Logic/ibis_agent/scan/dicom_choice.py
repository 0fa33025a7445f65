"""Choosing a series of a DICOM folder and, if it has several images at each position, which of them.

Written as `UID`, `EchoTime=4.6`, or both separated by commas. The values that distinguish images at one position are
their `marks` (see dicom_header).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.dicom_header import Frame

_MOST_LISTED = 20


@dataclass(frozen=True)
class Choice:
    """A choice: the UID of a series, or None, and the required marks of its images."""

    uid: str | None = None
    marks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None, path: Path) -> Choice:
        """Raises InputError if the text does not have the form above."""
        uid, marks = None, {}
        for part in text.split(",") if text is not None else ():
            key, equals, value = (each.strip() for each in part.partition("="))
            if (not key) or (equals and not value) or (not equals and uid is not None):
                remedy = "Give a UID, a value such as EchoTime=4.6, or both separated by a comma."
                raise InputError(
                    "this is not a valid choice of a series", file=path, value=text, remedy=remedy
                )
            if equals:
                marks[key] = value
            else:
                uid = key
        return cls(uid, marks)

    def among(self, path: Path, frames: Sequence[Frame]) -> list[Frame]:
        """The frames with the chosen marks. Raises InputError, which lists the available values."""
        kept = list(frames)
        for key, value in self.marks.items():
            before = kept
            kept = [frame for frame in before if _same(_mark(frame, key), value)]
            if kept:
                continue
            known = dict.fromkeys(name for frame in before for name in frame.marks)
            name = next((each for each in known if each.lower() == key.lower()), None)
            if name is None:
                held = f"Available: {', '.join(known) or 'none'}."
            else:
                held = f"Available:\n{listed(before, name)}"
            raise InputError("no image has this value", file=path, value=f"{key}={value}", remedy=held)
        return kept

    def note(self, frame: Frame) -> str:
        """A description of the choice, with the values of a chosen frame; "" if it was a whole series."""
        marks = (
            (key, frame.marks[key])
            for name in self.marks
            for key in frame.marks
            if key.lower() == name.lower()
        )
        chosen = ", ".join(f"{key} {value}" for key, value in marks)
        return f"chosen from several images at each position: {chosen}" if chosen else ""


def telling(frames: Sequence[Frame], a: Frame, b: Frame) -> str:
    """The mark that distinguishes `a` and `b`, which are at the same position; "" if there is none.

    A mark that leaves a single image at each position is preferred.
    """
    differ = [key for key in a.marks if b.marks.get(key, a.marks[key]) != a.marks[key]]
    few = [key for key in differ if len({_mark(frame, key) for frame in frames}) < _MOST_LISTED]
    for key in few:
        places: dict[str, list[tuple[float, ...]]] = {}
        for frame in frames:
            places.setdefault(_mark(frame, key), []).append(_place(frame))
        if all(len(set(held)) == len(held) for held in places.values()):
            return key
    return next(iter((*few, *differ)), "")


def listed(frames: Sequence[Frame], key: str) -> str:
    """The values of a mark, one per line, in the form to be typed."""
    count = Counter(_mark(frame, key) for frame in frames)
    values = sorted(filter(None, count), key=lambda each: (_number(each) is None, _number(each) or 0.0, each))
    lines = [
        f"  {key}={value}  {count[value]} image{'' if count[value] == 1 else 's'}"
        for value in values[:_MOST_LISTED]
    ]
    more = [f"  and {len(values) - len(lines)} more"] if len(values) > len(lines) else []
    return "\n".join(lines + more)


def _mark(frame: Frame, key: str) -> str:
    return next((value for name, value in frame.marks.items() if name.lower() == key.lower()), "")


def _place(frame: Frame) -> tuple[float, ...]:
    return () if frame.position is None else tuple(np.round(frame.position, 3).tolist())


def _same(held: str, wanted: str) -> bool:
    numbers = _number(held), _number(wanted)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return held.casefold() == wanted.casefold()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
