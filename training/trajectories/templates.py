"""Thinking and answers from templates, without a teacher.

"plain" has one sentence per situation, for small policies; "varied" has several wordings and says more: where, how
much, and what went wrong before. They never contain coordinates or numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ibis_agent.actions import Action, Box, Click, Terminate

from training.common import questions
from training.common.questions import zone

STYLES = ("plain", "varied")
WELL = 0.8  # IoU from which a mask counts as good: the published expert's threshold


@dataclass(frozen=True)
class Moment:
    """The situation at one turn.

    Attributes:
        structure: the structure asked for.
        action: the next action.
        first: whether there is no mask yet.
        present: whether the picture shows the structure.
        iou: of the mask so far.
        after: the kind of the deliberate mistake just before, or None.
    """

    structure: str
    action: Action
    first: bool
    present: bool
    iou: float = 0.0
    after: str | None = None


_FIRST = (
    "The {n} is in the {z} of the picture. I start in its middle.",
    "I look for the {n} and find it in the {z}. A point well inside it should catch most of it.",
    "The {n} is in the {z} and has a visible border. I place the first point inside it.",
    "The structure in the {z} is the {n}; nothing is segmented yet, so I start there.",
)
_FIRST_BOX = (
    "The {n} is in the {z} of the picture. I draw a box around all of it.",
    "I look for the {n} and find it in the {z}. A box around it shows its extent.",
    "The structure in the {z} is the {n}; nothing is segmented yet, so I draw a box around it.",
)
_LATER_BOX = (
    "The mask does not fit the {n}. I start again with a box around it in the {z}.",
    "One point was not enough for the {n} in the {z}; a box around all of it shows its extent.",
)
_MISSED = (
    "The green area leaves out {m} of the {n} in the {z}. A point there should add it.",
    "Part of the {n} in the {z} is not green yet, so I add a point there.",
    "The mask stops short of the {n}'s border in the {z}. I extend it there.",
    "In the {z} the {n} extends beyond the green area, so I add that part.",
)
_SPILLED = (
    "In the {z} the green area extends beyond the {n}. I remove that part.",
    "The mask runs into tissue next to the {n} in the {z}; a negative point should remove that.",
    "The green area in the {z} is not {n}, so I remove it.",
    "The mask crosses the border of the {n} in the {z}. I exclude the part outside.",
)
_AFTER = {
    "beside": "The last point missed the {n}.",
    "neighbour": "The last point was on another structure, not on the {n}.",
    "sign": "The last point had the wrong sign.",
    "repeat": "Repeating the point changed nothing.",
}
_THOUGHTS = {
    "done": (
        "The green area follows the border of the {n}. Nothing needs to be added or removed.",
        "The mask covers the {n} and nothing else, so I stop here.",
        "The {n} is covered up to its border; further points would not improve it.",
    ),
    "part": (
        "The green area covers most of the {n}, but not its whole border. More points did not improve it.",
        "The mask of the {n} is not exact, but further points no longer improve it, so I stop here.",
        "Parts of the {n}'s border are still wrong. I stop here, because further points do not help.",
    ),
    "absent": (
        "I look through the picture for the {n} and do not find it.",
        "None of the structures here is the {n}; this slice does not show it.",
        "There is nothing here that looks like the {n}, so there is nothing to segment.",
    ),
}
_ANSWERS = {
    "done": ("The {n} is segmented.", "The {n} is visible and segmented.", "The green area shows the {n}."),
    "part": (
        "The {n} is partly segmented; its border should be checked.",
        "Most of the {n} is segmented.",
        "The green area shows the {n}, though not exactly.",
    ),
    "absent": (
        "There is no {n} in this picture.",
        "The {n} is not visible in this picture.",
        "No {n} can be seen here.",
    ),
}


def thinking(moment: Moment, style: str, rng: np.random.Generator) -> str:
    """The expert's thinking at this turn, in one of the STYLES."""
    name, action = moment.structure, moment.action
    if isinstance(action, Terminate):
        outcome = _outcome(moment.present, moment.iou)
        text = questions.THOUGHTS[outcome] if style == "plain" else _pick(_THOUGHTS[outcome], rng)
        return text.format(n=name)
    action = _pointed(action)
    first = moment.first and action.positive
    if style == "plain":
        return questions.click_thought(name, action, first)
    where = zone(action.x, action.y)
    if isinstance(moment.action, Box):
        return _pick(_FIRST_BOX if moment.first else _LATER_BOX, rng).format(n=name, z=where)
    if first:
        return _pick(_FIRST, rng).format(n=name, z=where)
    much = "a good part" if moment.iou < 0.5 else "a part" if moment.iou < 0.7 else "a small part"
    text = _pick(_MISSED if action.positive else _SPILLED, rng).format(n=name, z=where, m=much)
    before = _AFTER.get(moment.after or "")
    return f"{before.format(n=name)} {text}" if before else text


def answer(structure: str, present: bool, style: str, rng: np.random.Generator, iou: float = 1.0) -> str:
    """The answer on termination; iou: of the final mask."""
    outcome = _outcome(present, iou)
    text = questions.ANSWERS[outcome] if style == "plain" else _pick(_ANSWERS[outcome], rng)
    return text.format(n=structure)


def intended(action: Action, mistake: str | None) -> Action:
    """The action that the thinking is about: of a click with the wrong sign, the one with the right sign."""
    if mistake == "sign" and isinstance(action, Click):
        return Click(action.x, action.y, not action.positive)
    return action


def _outcome(present: bool, iou: float) -> str:
    return "absent" if not present else "done" if iou >= WELL else "part"


def _pointed(action: Action) -> Click:
    """The click, or the centre of the box."""
    if isinstance(action, Box):
        return action.middle
    assert isinstance(action, Click)
    return action


def _pick(texts: tuple[str, ...], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]
