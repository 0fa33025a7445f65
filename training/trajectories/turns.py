"""One turn of a trajectory as it is kept: what the policy saw, what it is to write, and how good the mask was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import numpy as np
from ibis_agent.actions import Action, Box, Click, Reply, Terminate, format_reply
from ibis_agent.errors import InputError, ReplyError
from ibis_agent.mask.masks import encode_rle
from ibis_agent.policy.language import LANGUAGES, Language


class _Turn(TypedDict):
    number: int
    mask_before_rle: str
    iou_before: float
    kind: Literal["click", "box", "terminate"]
    x: float | None
    y: float | None
    positive: bool | None
    answer: str | None
    thinking: str
    reply: str
    learn: bool
    mistake: Literal["beside", "neighbour", "sign", "repeat"] | None
    iou_after: float


class Turn(_Turn, total=False):
    """One turn: what the policy saw and what it is to write.

    The mask before is what lies over the picture (run-length text of ibis_agent.mask.masks); `x`, `y`, `positive`
    of a click, `box` of a box (left, upper, right and lower edge), `answer` of an end; `reply` is the whole text, in
    the published language: see `reply_in`. `learn` is false for a deliberate mistake, whose kind `mistake` tells: it
    carries no loss, its recovery does.
    """

    box: list[float]


def turn_row(
    number: int,
    mask: np.ndarray,
    overlap: float,
    action: Action,
    thinking: str,
    overlap_after: float,
    mistake: str | None,
) -> dict[str, Any]:
    """One turn of trajectories.jsonl."""
    click = action if isinstance(action, Click) else None
    box = action if isinstance(action, Box) else None
    row = {
        "number": number,
        "mask_before_rle": encode_rle(mask),
        "iou_before": overlap,
        "kind": kind_of(action),
        "x": None if click is None else click.x,
        "y": None if click is None else click.y,
        "positive": None if click is None else click.positive,
        "answer": action.answer if isinstance(action, Terminate) else None,
        "thinking": thinking,
        "reply": format_reply(Reply(thinking, action)),
        "learn": mistake is None,
        "mistake": mistake,
        "iou_after": overlap_after,
    }
    return row if box is None else {**row, "box": [box.x0, box.y0, box.x1, box.y1]}


def kind_of(action: Action) -> str:
    """ "click", "box" or "terminate"."""
    return "terminate" if isinstance(action, Terminate) else type(action).__name__.lower()


def action_of(turn: Mapping[str, Any]) -> Action:
    """The click, box or end of a turn. Raises InputError, KeyError or TypeError for a turn that has none."""
    if turn["kind"] == "terminate":
        return Terminate(turn.get("answer") or "")
    if turn["kind"] == "box":
        return Box(*turn["box"])
    if turn["kind"] == "click":
        return Click(turn["x"], turn["y"], turn["positive"])
    raise InputError("there is no such kind of turn", value=turn["kind"])


def reply_in(language: Language, reply: str) -> str:
    """A turn's reply as a policy of this language says it: unchanged where it is in it already, or in none."""
    for written in (language, *LANGUAGES.values()):
        try:
            said = written.parse(reply)
        except ReplyError:
            continue
        return reply if written is language else language.format(said)
    return reply
