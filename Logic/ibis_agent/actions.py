"""Actions, and the published text format for them: one parser and one formatter for inference, training and rewards.

What is accepted, and how ambiguous replies are resolved:
- Tags may have any case and some spaces. Text between `<think>` and `</think>` is thinking, whatever it
  contains. A `<think>` that is never closed ends at the first `<action>` or `<answer>`.
- The first well-formed, complete action outside the thinking counts; later and malformed ones are ignored.
- A missing `</action>` is accepted if the action is clearly complete (a closed bracket, or Terminate), and so are
  missing action tags if a piece of text outside all tags begins with an action.
- A click that was cut off inside a number is refused: without a closing bracket it needs `</action>`, and no number
  may end with its decimal point.
- A box is `Box (x0, y0, x1, y1)`, always in brackets.
- Coordinates are numbers from 0 to 1; percentages, pixels and anything else are refused, with the reason.
- Full-width digits, brackets and commas are read as their ASCII forms.

All patterns have bounded repeats and are tried at positions that do not overlap, so parsing takes linear time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Real
from typing import Union

from ibis_agent.errors import InputError, ReplyError


class Prompt:
    """A prompt for the segmenter: a Click or a Box. A Box is always positive."""

    positive: bool = True


@dataclass(frozen=True)
class Click(Prompt):
    """A click at normalised picture coordinates from 0 to 1: x to the right, y down.

    Raises InputError for anything but finite numbers in that range.
    """

    x: float
    y: float
    positive: bool = True

    def __post_init__(self) -> None:
        _check_numbers(self, "click", ("x", "y"))
        object.__setattr__(self, "positive", bool(self.positive))

    def pixel(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(row, column) in a picture of (H, W), by the published rule: int(y·H), int(x·W), clamped."""
        height, width = shape
        return min(int(self.y * height), height - 1), min(int(self.x * width), width - 1)


@dataclass(frozen=True)
class Box(Prompt):
    """A box around the structure: left, upper, right and lower edge, normalised like a click.

    A later box replaces an earlier one and the clicks before it. Raises InputError for numbers outside 0 to 1, and
    for an empty box.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        _check_numbers(self, "box", ("x0", "y0", "x1", "y1"))
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise InputError(
                "the box is empty",
                value=f"{self.x0:g} {self.y0:g} {self.x1:g} {self.y1:g}",
                remedy="Give the left, upper, right and lower edge.",
            )

    @property
    def middle(self) -> Click:
        return Click((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)


def _check_numbers(prompt: Prompt, what: str, names: tuple[str, ...]) -> None:
    for axis in names:
        value = getattr(prompt, axis)
        is_number = isinstance(value, Real)
        if not is_number or not 0 <= value <= 1:  # also refuses NaN
            raise InputError(
                f"the {what}'s {axis} must be a number from 0 to 1",
                value=value,
                remedy="Divide pixel coordinates by the picture's width or height.",
            )
        object.__setattr__(prompt, axis, float(value) + 0.0)  # + 0.0 turns -0.0 into 0.0


@dataclass(frozen=True)
class Terminate:
    """The end of the episode; `answer` is the text of `<answer>`, or empty."""

    answer: str = ""


Action = Union[Prompt, Terminate]  # noqa: UP007 - evaluated when imported, in Slicer 5.8 by Python 3.9


@dataclass(frozen=True)
class Reply:
    """One turn of the policy: what it thought and what it does."""

    thinking: str
    action: Action


_TAG = re.compile(r"<\s{0,4}(/?)\s{0,4}(think|action|answer)\s{0,4}>", re.IGNORECASE | re.ASCII)
_NUMBER = r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:e[+-]?\d{1,4})?"
_CLICK = re.compile(
    rf"(positive|negative)[\s_-]{{0,8}}(?:point|click)?[\s:=]{{0,8}}([(\[{{]?)\s{{0,8}}"
    rf"(?:x\s{{0,4}}[=:]\s{{0,4}})?({_NUMBER})\s{{0,4}}(%?)\s{{0,8}}[,;\s]\s{{0,8}}"
    rf"(?:y\s{{0,4}}[=:]\s{{0,4}})?({_NUMBER})(?![\d.e])\s{{0,4}}(%?)\s{{0,8}}([)\]}}]?)",
    re.IGNORECASE | re.ASCII,
)
_BOX = re.compile(
    rf"(?:bounding[\s_-]{{0,8}})?box[\s:=]{{0,8}}([(\[{{])\s{{0,8}}({_NUMBER})\s{{0,8}}[,;\s]\s{{0,8}}({_NUMBER})"
    rf"\s{{0,8}}[,;\s]\s{{0,8}}({_NUMBER})\s{{0,8}}[,;\s]\s{{0,8}}({_NUMBER})(?![\d.e])\s{{0,8}}([)\]}}])",
    re.IGNORECASE | re.ASCII,
)
_TERMINATE = re.compile(r"terminat(?:e|ed|ion)(?![a-z0-9_])\s{0,8}(?:\(\s{0,8}\))?", re.IGNORECASE | re.ASCII)
_BEGINS_LIKE_A_BOX = re.compile(r"(?:bounding[\s_-]{0,8})?box", re.IGNORECASE | re.ASCII)
_BEGINS_LIKE_A_CLICK = re.compile(r"(positive|negative)", re.IGNORECASE | re.ASCII)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_DECORATION = " \t\r\n\f\v\"'`*_.,;:!#-"
_LONGEST_ACTION = 400
_ASCII_FORMS = {ord(wide): ord(wide) - 0xFEE0 for wide in "０１２３４５６７８９（）［］｛｝，．：；％＋－＝"}
_ASCII_FORMS[ord("、")] = ord(",")


def parse_reply(text: str) -> Reply:
    """Parse the first action and the thinking before it.

    Raises ReplyError, and nothing else, if the reply contains no valid action.
    """
    found = _scan(text)
    if found.action is None:
        raise found.error or ReplyError(
            "the reply contains no action",
            value=text[:200],
            remedy="Expected <action>Positive Point (x, y)</action>, a Negative Point, or Terminate.",
        )
    return Reply(found.thinking, found.action)


def format_reply(reply: Reply) -> str:
    """Write a reply in the format that policies are trained on, with four decimals.

    `parse_reply` returns the same reply, up to rounding and white space around the texts. Raises InputError if the
    thinking or the answer contains one of the tags.
    """
    for part, text in (("thinking", reply.thinking), ("answer", getattr(reply.action, "answer", ""))):
        tag = _TAG.search(text)
        if tag:
            raise InputError(
                f"the {part} contains a tag", value=tag.group(), remedy="Remove the tag from the text."
            )
    head = f"<think>{reply.thinking.strip()}</think>\n"
    if isinstance(reply.action, Terminate):
        return f"{head}<action>Terminate</action>\n<answer>{reply.action.answer.strip()}</answer>"
    return f"{head}<action>{format_prompt(reply.action)}</action>"


def format_prompt(prompt: Prompt) -> str:
    """A click as `format_click` writes it, or `Box (0.1234, 0.2345, 0.5678, 0.6789)`."""
    if isinstance(prompt, Box):
        return f"Box ({prompt.x0:.4f}, {prompt.y0:.4f}, {prompt.x1:.4f}, {prompt.y1:.4f})"
    assert isinstance(prompt, Click)
    return format_click(prompt)


def format_click(click: Click) -> str:
    """`Positive Point (0.1234, 0.5678)`, or Negative."""
    return f"{'Positive' if click.positive else 'Negative'} Point ({click.x:.4f}, {click.y:.4f})"


def reply_is_complete(text: str) -> bool:
    """Whether no further text can change the action: after a click's `</action>`, or Terminate's `</answer>`.

    Inside an open `<think>` nothing is final, because its end may still follow. Cheap on a growing text: it only
    counts `</` until a closing tag other than `</think>` begins.
    """
    closings = text.count("</")
    if closings == 0 or (closings == 1 and "</t" in text.lower()):
        return False
    found = _scan(text)
    return found.settled and (isinstance(found.action, Prompt) or found.answered)


@dataclass
class _Found:
    """The result of one pass over a reply."""

    thinking: str = ""
    action: Action | None = None
    settled: bool = False  # no further text can change the action
    answered: bool = False  # no further text can change the answer
    error: ReplyError | None = None  # why the first malformed action was ignored


def _scan(text: str) -> _Found:
    """One pass over the tags; each piece of text between two tags is read once."""
    tags = list(_TAG.finditer(text))
    last_closing = max((n for n, tag in enumerate(tags) if _name(tag) == "/think"), default=-1)
    found = _Found()
    thoughts: list[str] = []
    outside: list[str] = []
    answer: str | None = None
    never_closed = False
    inside = ""
    start = 0
    for n, tag in enumerate([*tags, None]):
        name = _name(tag)
        if inside == "think" and tag and name != "/think":
            if n < last_closing or name == "think":
                continue
            never_closed = True
        piece = text[start : tag.start() if tag else len(text)]
        start = tag.end() if tag else start
        if inside == "think":
            thoughts.append(piece)
        elif inside == "action" and found.action is None:
            action = _read_action(piece, cut=name != "/action")
            if isinstance(action, ReplyError):
                found.error = found.error or action
            else:
                found.action = action
                found.settled = tag is not None and not never_closed
        elif inside == "answer" and answer is None:
            answer = piece.strip()
            found.answered = name == "/answer"
        elif not inside and found.action is None:
            outside.append(piece)
            if name == "/think" and not thoughts:  # the prompt had already opened the thinking
                thoughts, outside = outside, []
        if isinstance(found.action, Prompt):
            break
        inside = "" if name.startswith("/") else name
    if found.action is None and found.error is None:
        found.action = _untagged(outside)
    if isinstance(found.action, Terminate):
        found.action = Terminate(answer or "")
    found.thinking = "\n".join(filter(None, (each.strip() for each in thoughts or outside)))
    return found


def _untagged(outside: list[str]) -> Action | None:
    """Parse the action at the start of a piece of text outside all tags; remove it and what follows."""
    for n, piece in enumerate(outside):
        action = _read_action(piece, cut=True)
        if not isinstance(action, ReplyError):
            del outside[n:]
            return action
    return None


def _name(tag: re.Match[str] | None) -> str:
    """`think`, `/think` and so on; empty at the end of the text."""
    return (tag.group(1) + tag.group(2)).lower() if tag else ""


def _read_action(body: str, *, cut: bool) -> Action | ReplyError:
    """The action at the start of `body`, or why it cannot be parsed. cut: `</action>` is missing.

    Text after a click is ignored; only punctuation may follow Terminate.
    """
    start = body.lstrip(_DECORATION)[:_LONGEST_ACTION].translate(_ASCII_FORMS)
    ending = _TERMINATE.match(start)
    if ending and not start[ending.end() :].strip(_DECORATION):
        return Terminate()
    if _BEGINS_LIKE_A_BOX.match(start):
        return _read_box(start, body)
    click = _CLICK.match(start)
    if click is None:
        if _BEGINS_LIKE_A_CLICK.match(start):
            return _refused("a click needs two numbers, as in Positive Point (0.4213, 0.5500)", body)
        return _refused("this is not an action", body)
    sign, opened, x, x_percent, y, y_percent, shut = click.groups()
    if not shut and (cut or x.endswith(".") or y.endswith(".")):
        return _refused("the click was cut off before its closing bracket", body)
    left_open = opened and not shut and start[click.end() :].strip(_DECORATION)
    if left_open or (opened and shut and shut != _BRACKETS[opened]):
        return _refused("a click needs two numbers, as in Positive Point (0.4213, 0.5500)", body)
    if x_percent or y_percent:
        return _refused("coordinates are fractions from 0 to 1, not percentages", body)
    for axis, number in (("x", x), ("y", y)):
        if not 0 <= float(number) <= 1:
            return _refused(f"{axis} must lie between 0 and 1", number)
    return Click(float(x), float(y), sign.lower() == "positive")


def _read_box(start: str, body: str) -> Box | ReplyError:
    box = _BOX.match(start)
    if box is None or box.group(6) != _BRACKETS[box.group(1)]:
        return _refused("a box needs four numbers, as in Box (0.2100, 0.3050, 0.5520, 0.6000)", body)
    try:
        return Box(*(float(number) for number in box.groups()[1:5]))
    except InputError as error:
        return _refused(error.problem, body)


def _refused(problem: str, value: str) -> ReplyError:
    return ReplyError(
        problem,
        value=value.strip()[:200],
        remedy="Expected Positive Point (x, y), Negative Point (x, y), Box (x0, y0, x1, y1) or Terminate.",
    )
