"""Rewards, each a pure function: the published ones exactly, and this project's variants.

The published functions (`published_*`, `answer`, `placement`, `improvement`, `length`) return what the published
reward code returns for any reply. Their inputs differ from those of the published data:
- masks come from the rollout; the published code asks a server, and has no mask before the action;
- the IoU before the action and the step number are known; the published rows have neither, so there improvement
  is judged against an IoU of 0, and length is 0. Pass 0 and None to get the same.
The published format reward requires line breaks inside the tags and the word `Termination`, which this project's
replies do not have: `house_format` is the variant for them.

Advantages are computed in credit and the loss in objective; states come from training.rollouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from ibis_agent.actions import Action, Box, Click, Prompt, Terminate
from ibis_agent.errors import InputError, ReplyError
from ibis_agent.policy.language import IBIS, TAG, Language

from training.common.placing import points_at
from training.rollouts.state import State

OPTIMAL_STEPS = 5
ANSWER_LEVELS = ((0.80, 3.0), (0.70, 2.0), (0.50, 1.0))

# The published rules read a reply in two ways. A well-formed action may have white space around it, a scored one
# may not; the format is judged by the first action, the score by any action that can be scored.
_SHOWN = re.compile(r"<think>\n.*?\n</think>\n\s*<action>\n.*?\n</action>", re.DOTALL)
_ACTION = re.compile(r"<action>\n(.*?)\n</action>", re.DOTALL)
_FRACTION = r"\s*(0(?:\.\d+)?|1(?:\.0+)?)\s*"
_POINT = re.compile(rf"(Positive|Negative) Point \({_FRACTION},{_FRACTION}\)")
_SCORED_POINT = re.compile(rf"<action>\n{_POINT.pattern}\n</action>")
_SCORED_END = re.compile(r"<action>\n\s*Termination\s*\n</action>")


def published_action(reply: str) -> Action | None:
    """The action that the published code scores: a click on its own line between action tags, else termination."""
    point = _SCORED_POINT.search(reply)
    if point is not None:
        return Click(float(point[2]), float(point[3]), point[1] == "Positive")
    return Terminate() if _SCORED_END.search(reply) else None


def published_think_format(reply: str) -> float:
    """1 if thinking and then an action are on lines of their own between their tags, else 0."""
    return float(_SHOWN.search(reply) is not None)


def published_point_format(reply: str) -> float:
    """1 if the first action is a click at two fractions, or `Termination`, else 0."""
    found = _ACTION.search(reply)
    text = found[1].strip() if found else ""
    return float(text == "Termination" or _POINT.fullmatch(text) is not None)


def published_answer_format(reply: str) -> float:
    """1 if the answer tag opens before it closes, or if there is no answer and no termination; else 0."""
    opened, closed = reply.find("<answer>"), reply.find("</answer>")
    if opened < 0:
        return float(_SCORED_END.search(reply) is None)
    return float(opened < closed)


def published_format(reply: str) -> float:
    """1 if thinking, action and answer are all well formed by the published rules, else 0."""
    parts = (published_think_format, published_point_format, published_answer_format)
    return float(all(part(reply) for part in parts))


def house_format(reply: str, language: Language = IBIS) -> float:
    """1 for a well-formed reply in the policy's action language, else 0.

    Well formed: some thinking, one action, and an answer if and only if the action is to terminate. Line breaks
    inside the tags and the word Termination are accepted, so a policy trained on the published format loses nothing.
    """
    try:
        parsed = language.parse(reply)
        written = language.format(parsed)
    except (ReplyError, InputError):
        return 0.0
    if not parsed.thinking.strip() or (isinstance(parsed.action, Terminate) and not parsed.action.answer):
        return 0.0
    return float(_plain(reply) == _plain(written))


def answer(iou_after: float) -> float:
    """3, 2 or 1 if the IoU after the action is above 0.80, 0.70 or 0.50, else 0."""
    return next((value for level, value in ANSWER_LEVELS if iou_after > level), 0.0)


def placement(action: Action | None, before: np.ndarray, truth: np.ndarray) -> float:
    """+1 for a positive click on a false-negative pixel or a negative click on a false-positive one, else −1.

    For a box: +1 if its IoU with the structure's bounding box is at least 0.5, else −1. 0 for termination and for no
    action. Masks are (H, W) bool; the clicked pixel is column int(x·W), row int(y·H).
    """
    if isinstance(action, Box):
        return 1.0 if points_at(action, truth) else -1.0
    if not isinstance(action, Click):
        return 0.0
    pixel = action.pixel(truth.shape)
    missed = bool(truth[pixel]) and not before[pixel]
    wrong = bool(before[pixel]) and not truth[pixel]
    return 1.0 if (missed if action.positive else wrong) else -1.0


def improvement(action: Action | None, iou_before: float, iou_after: float) -> float:
    """1 for a click or a box that raised the IoU, else 0."""
    return float(isinstance(action, Prompt) and iou_after > iou_before)


def length(number: int | None, optimal: int = OPTIMAL_STEPS) -> float:
    """1 up to the optimal number of steps, then −0.2 for each further step; 0 if the number is unknown."""
    if number is None:
        return 0.0
    return 1.0 if number <= optimal else -0.2 * (number - optimal)


def published_score(state: State, optimal: int = OPTIMAL_STEPS) -> dict[str, float]:
    """Every component of the published score by its published name, and `score`, the sum of five of them over 5.

    The action is read from `state.reply` by the published rules, not taken from `state.action`.
    """
    action = published_action(state.reply)
    ends = _SCORED_END.search(state.reply) is not None
    # The published code does not count two empty masks as success.
    reached = state.iou_after if state.truth.any() or state.after.any() else 0.0
    components = {
        "think_format_score": published_think_format(state.reply),
        "point_format_score": published_point_format(state.reply),
        "answer_format_score": published_answer_format(state.reply),
        "unified_format_score": published_format(state.reply),
        "ans_score": answer(reached) if action is not None else 0.0,
        "placement_score": placement(action, state.before, state.truth),
        "pseg_score": 0.0 if ends else improvement(action, state.iou_before, reached),
        "len_score": length(state.number, optimal),
    }
    summed = ("unified_format_score", "ans_score", "placement_score", "pseg_score", "len_score")
    return {"score": sum(components[name] for name in summed) / 5, **components}


def gain(iou_before: float, iou_after: float) -> float:
    """The change of IoU by the action, negative if it fell."""
    return iou_after - iou_before


def patience(action: Action | None, iou_after: float, worth: float = ANSWER_LEVELS[1][0]) -> float:
    """For termination: +1 if the IoU is above `worth`, else −1. 0 for every other action."""
    if not isinstance(action, Terminate):
        return 0.0
    return 1.0 if iou_after > worth else -1.0


def ending(state: State) -> float:
    """For termination: the IoU of the final mask. 0 for every other action.

    A correct "not there" is worth 1, a wrong one −1.
    """
    if not isinstance(state.action, Terminate):
        return 0.0
    if not state.truth.any():
        return float(not state.after.any())
    return state.iou_after if state.after.any() else -1.0


# The rewards that settings can give weights to: TURN for a turn's own action, OUTCOME for the state in which the
# episode ended.
TURN: Mapping[str, Callable[[State, int], float]] = {
    "format": lambda state, optimal: house_format(state.reply, state.language),
    "published_format": lambda state, optimal: published_format(state.reply),
    "answer": lambda state, optimal: _answer(state),
    "placement": lambda state, optimal: placement(state.action, state.before, state.truth),
    "improvement": lambda state, optimal: improvement(state.action, state.iou_before, state.iou_after),
    "length": lambda state, optimal: length(state.number, optimal),
    "gain": lambda state, optimal: gain(state.iou_before, state.iou_after),
    "patience": lambda state, optimal: patience(state.action, state.iou_after),
    "ending": lambda state, optimal: ending(state),
    "click": lambda state, optimal: float(isinstance(state.action, Prompt)),
    "format_fault": lambda state, optimal: house_format(state.reply, state.language) - 1,
}
OUTCOME: Mapping[str, Callable[[State, int], float]] = {
    "answer": lambda state, optimal: _answer(state),
    "iou": lambda state, optimal: state.iou_after,
    "length": lambda state, optimal: length(state.number, optimal),
    "ended": lambda state, optimal: float(isinstance(state.action, Terminate)),
}


def _answer(state: State) -> float:
    """As published: a reply without an action scores 0 even if the mask happens to be right."""
    return 0.0 if state.action is None else answer(state.iou_after)


def _plain(reply: str) -> str:
    """A reply with white space at tags, Termination and digits normalised, for comparison."""
    text = re.sub(rf"\s*({TAG.pattern})\s*", r"\1", reply.strip())
    text = text.replace("Termination", "Terminate")
    return re.sub(r"\d+(?:\.\d*)?", lambda number: f"{float(number[0]):.4f}", text)
