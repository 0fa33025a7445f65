"""One turn of a trajectory as stored: what the policy sees, its reply, and the IoU of the mask."""

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
    """One turn: what the policy sees and its reply.

    `mask_before_rle` is the mask over the picture, as run-length text (ibis_agent.mask.masks). A click has `x`, `y`
    (0 to 1) and `positive`; a box has `box` (left, upper, right, lower edge, 0 to 1); a termination has `answer`.
    `reply` is the whole text in the published language, see `reply_in`. `learn` is false for a deliberate mistake
    (of the kind `mistake`), which has no loss.
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
    """The action of a turn. Raises InputError, KeyError or TypeError if it is invalid."""
    if turn["kind"] == "terminate":
        return Terminate(turn.get("answer") or "")
    if turn["kind"] == "box":
        return Box(*turn["box"])
    if turn["kind"] == "click":
        return Click(turn["x"], turn["y"], turn["positive"])
    raise InputError("unknown kind of turn", value=turn["kind"])


def reply_in(language: Language, reply: str) -> str:
    """A turn's reply in this action language; unchanged if it is in it already, or in no known one."""
    for written in (language, *LANGUAGES.values()):
        try:
            said = written.parse(reply)
        except ReplyError:
            continue
        return reply if written is language else language.format(said)
    return reply
