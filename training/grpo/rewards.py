"""Rewards, each one a pure function: the published ones exactly, and the house's variants of them.

The published functions (`published_*`, `answer`, `placement`, `improvement`, `length`) give what the published
reward code gives, number for number, on any reply. What they are given is where a rollout differs from the
published rows, and why:
- the masks are those of the rollout; the published code asks a server, without the mask before;
- the IoU before the action and the number of the step are real; the published rows lack both, so that there
  improvement is judged against 0 and length is 0. Give 0 and None to get the same.
Its format reward wants line breaks inside the tags and the word `Termination`, which our replies do not have:
`house_format` is its variant for them.

What becomes of rewards (sums, advantages) is in objective; where the states come from, in rollouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from ibis_agent.actions import Action, Box, Click, Prompt, Terminate
from ibis_agent.errors import InputError, ReplyError
from ibis_agent.policy.language import IBIS, Language

from training.common.placing import pixel_of, points_at
from training.rollouts.state import State

OPTIMAL_STEPS = 5
ANSWER_LEVELS = ((0.80, 3.0), (0.70, 2.0), (0.50, 1.0))

# The published rules, whose parts read one reply in two ways: what is well formed may have white space around
# the action, what is scored may not; and the first action decides the form, but any scored one the score.
_SHOWN = re.compile(r"<think>\n.*?\n</think>\n\s*<action>\n.*?\n</action>", re.DOTALL)
_ACTION = re.compile(r"<action>\n(.*?)\n</action>", re.DOTALL)
_FRACTION = r"\s*(0(?:\.\d+)?|1(?:\.0+)?)\s*"
_POINT = re.compile(rf"(Positive|Negative) Point \({_FRACTION},{_FRACTION}\)")
_SCORED_POINT = re.compile(rf"<action>\n{_POINT.pattern}\n</action>")
_SCORED_END = re.compile(r"<action>\n\s*Termination\s*\n</action>")


def published_action(reply: str) -> Action | None:
    """The action that the published code scores: a click anywhere on a line of its own in its tags, else the end."""
    point = _SCORED_POINT.search(reply)
    if point is not None:
        return Click(float(point[2]), float(point[3]), point[1] == "Positive")
    return Terminate() if _SCORED_END.search(reply) else None


def published_think_format(reply: str) -> float:
    """1 where thinking and then an action stand on lines of their own between their tags, else 0."""
    return float(_SHOWN.search(reply) is not None)


def published_point_format(reply: str) -> float:
    """1 where the first action is a click of two fractions, or `Termination`, else 0."""
    found = _ACTION.search(reply)
    text = found[1].strip() if found else ""
    return float(text == "Termination" or _POINT.fullmatch(text) is not None)


def published_answer_format(reply: str) -> float:
    """1 where an answer opens before one closes, or where there is none and the reply does not end; else 0."""
    opened, closed = reply.find("<answer>"), reply.find("</answer>")
    if opened < 0:
        return float(_SCORED_END.search(reply) is None)
    return float(opened < closed)


def published_format(reply: str) -> float:
    """1 where thinking, action and answer are all well formed by the published rules, else 0."""
    parts = (published_think_format, published_point_format, published_answer_format)
    return float(all(part(reply) for part in parts))


def house_format(reply: str, language: Language = IBIS) -> float:
    """1 for a reply in the form that the policy's language writes, else 0.

    Some thinking, one action, and an answer if and only if it ends. Line breaks inside the tags and the word
    Termination do no harm, so that a policy trained on the published reward loses nothing here.
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
    """3, 2, 1 or 0 for an IoU after the action above 0.80, 0.70, 0.50, or none of them."""
    return next((value for level, value in ANSWER_LEVELS if iou_after > level), 0.0)


def placement(action: Action | None, before: np.ndarray, truth: np.ndarray) -> float:
    """+1 for a positive click in what the mask missed or a negative one in what it took wrongly, else −1.

    For a box: +1 where it overlaps the structure's own box by half (IoU), else −1. 0 for the end and where there is no
    action. Masks are (H, W) bool; the clicked pixel is int(x·W), int(y·H).
    """
    if isinstance(action, Box):
        return 1.0 if points_at(action, truth) else -1.0
    if not isinstance(action, Click):
        return 0.0
    row, column = pixel_of(action, truth.shape)
    missed = bool(truth[row, column]) and not before[row, column]
    wrong = bool(before[row, column]) and not truth[row, column]
    return 1.0 if (missed if action.positive else wrong) else -1.0


def improvement(action: Action | None, iou_before: float, iou_after: float) -> float:
    """1 for a click or a box that raised the IoU, else 0."""
    return float(isinstance(action, Prompt) and iou_after > iou_before)


def length(number: int | None, optimal: int = OPTIMAL_STEPS) -> float:
    """1 up to the optimal number of steps, then −0.2 for every step more; 0 where the number is not known."""
    if number is None:
        return 0.0
    return 1.0 if number <= optimal else -0.2 * (number - optimal)


def published_score(state: State, optimal: int = OPTIMAL_STEPS) -> dict[str, float]:
    """Every component of the published score by its published name, and `score`, their sum over 5.

    The action is read from `state.reply` by the published rules, whatever `state.action` says.
    """
    action = published_action(state.reply)
    ends = _SCORED_END.search(state.reply) is not None
    # Two empty masks are not success there.
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
    """How much the IoU rose by the action; negative where it fell. Unlike `improvement`, in proportion."""
    return iou_after - iou_before


def patience(action: Action | None, iou_after: float, worth: float = ANSWER_LEVELS[1][0]) -> float:
    """For the end alone: +1 where the mask is worth stopping at (IoU above `worth`), else −1; 0 for a click."""
    if not isinstance(action, Terminate):
        return 0.0
    return 1.0 if iou_after > worth else -1.0


def ending(state: State) -> float:
    """What an end is worth, 0 for everything else: the IoU of the mask that it leaves.

    1 for "not there" said rightly, −1 for saying it of what is there.
    """
    if not isinstance(state.action, Terminate):
        return 0.0
    if not state.truth.any():
        return float(not state.after.any())
    return state.iou_after if state.after.any() else -1.0


# What a configuration may give weights to. A turn's rewards are those of its own action; an outcome's, of the
# state in which the episode ended.
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
    """As published: a reply without an action answers nothing, also where the mask happens to be right."""
    return 0.0 if state.action is None else answer(state.iou_after)


def _plain(reply: str) -> str:
    """A reply without what the two written forms differ in: white space at tags, Termination, digits."""
    text = re.sub(r"\s*(</?(?:think|action|answer|tool_call)>)\s*", r"\1", reply.strip())
    text = text.replace("Termination", "Terminate")
    return re.sub(r"\d+(?:\.\d*)?", lambda number: f"{float(number[0]):.4f}", text)
