"""The second action language: tool calls with boxes, points and stop, as MedSAM-Agent's policies write them.

    <tool_call>
    {"name": "add_point", "arguments": {"point_2d": [412, 300], "point_type": "negative"}}
    </tool_call>

`add_bbox` takes "bbox_2d" [x0, y0, x1, y1]; `stop_action` takes no arguments. Coordinates are integers from 0 to 999:
thousandths of the picture's width and height. Text before the call is thinking. The format follows the public sources
of MedSAM-Agent (CUHK-AIM-Group); the texts are ours. The other language is in `actions`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ibis_agent.actions import Action, Box, Click, Reply, Terminate
from ibis_agent.errors import InputError, ReplyError

_CALL = re.compile(
    r"<\s{0,4}tool_call\s{0,4}>(.{0,2000}?)<\s{0,4}/\s{0,4}tool_call\s{0,4}>", re.IGNORECASE | re.DOTALL
)
_TAGS = re.compile(r"<\s{0,4}/?\s{0,4}(?:tool_call|think)\s{0,4}>", re.IGNORECASE)
_SIDE = 1000
_EXPECTED = "Expected one <tool_call> of add_bbox, add_point or stop_action."

TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": said,
            "parameters": {"type": "object", "properties": properties, "required": list(properties)},
        },
    }
    for name, said, properties in (
        (
            "add_bbox",
            "Draw a box around the structure.",
            {"bbox_2d": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}},
        ),
        (
            "add_point",
            "Place a point: positive on what is missing, negative on what does not belong to the structure.",
            {
                "point_2d": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                "point_type": {"type": "string", "enum": ["positive", "negative"]},
            },
        ),
        ("stop_action", "The mask fits the structure, or there is none.", {}),
    )
)
"""The tools as JSON schemas, for the policy's prompt."""


def parse_call(text: str) -> Reply:
    """Parse the first valid tool call and the thinking before it. Raises ReplyError, and nothing else."""
    found = _first(text)
    if isinstance(found, ReplyError):
        raise found
    return found[0]


def format_call(reply: Reply) -> str:
    """Write a reply in this language. The format has no answer: it follows the call.

    Raises InputError if the thinking or the answer contains one of the tags.
    """
    answer = getattr(reply.action, "answer", "")
    for part, text in (("thinking", reply.thinking), ("answer", answer)):
        tag = _TAGS.search(text)
        if tag:
            raise InputError(
                f"the {part} contains a tag", value=tag.group(), remedy="Remove the tag from the text."
            )
    name, arguments = _call_of(reply.action)
    call = json.dumps({"name": name, "arguments": arguments})
    head = f"{reply.thinking.strip()}\n" if reply.thinking.strip() else ""
    tail = f"\n{answer.strip()}" if answer.strip() else ""
    return f"{head}<tool_call>\n{call}\n</tool_call>{tail}"


def call_is_complete(text: str) -> bool:
    """Whether no further text can change the action: a valid call is closed and is not `stop_action`.

    An answer may follow `stop_action` and ends with the text. Cheap on a growing text.
    """
    if "</" not in text or "tool_call" not in text.lower():
        return False
    found = _first(text)
    return not isinstance(found, ReplyError) and not isinstance(found[0].action, Terminate)


def _first(text: str) -> tuple[Reply, int] | ReplyError:
    refused: ReplyError | None = None
    start = _after_thinking(text)
    for call in _CALL.finditer(text, start):
        action = _read(call.group(1))
        if isinstance(action, ReplyError):
            refused = refused or action
            continue
        thinking = _TAGS.sub("", text[: call.start()]).strip()
        if isinstance(action, Terminate):
            action = Terminate(_TAGS.sub("", text[call.end() :]).strip())
        return Reply(thinking, action), call.end()
    return refused or ReplyError("the reply contains no tool call", value=text[:200], remedy=_EXPECTED)


def _after_thinking(text: str) -> int:
    """The end of the thinking in `<think>` tags: a call inside is ignored."""
    closing = [
        tag.end() for tag in _TAGS.finditer(text) if tag.group().replace(" ", "").lower() == "</think>"
    ]
    return closing[-1] if closing else 0


def _read(body: str) -> Action | ReplyError:
    try:
        call = json.loads(body)
        name, given = str(call["name"]), call.get("arguments", {})
        given = json.loads(given) if isinstance(given, str) else given or {}
        if name == "stop_action":
            return Terminate()
        if name == "add_bbox":
            return Box(*_numbers(given["bbox_2d"], 4))
        if name == "add_point":
            kind = given["point_type"]
            if kind not in ("positive", "negative"):
                return _refused('point_type must be "positive" or "negative"', body)
            x, y = _numbers(given["point_2d"], 2)
            return Click(x, y, kind == "positive")
        return _refused(f"there is no tool {name[:40]}", body)
    except InputError as error:
        return _refused(error.problem, body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _refused("this is not a call of a tool", body)


def _numbers(values: Any, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise ValueError
    if not all(0 <= value < _SIDE for value in values):
        raise InputError(f"coordinates are whole numbers from 0 to {_SIDE - 1}", value=values)
    return [value / _SIDE for value in values]


def _call_of(action: Action) -> tuple[str, dict[str, Any]]:
    if isinstance(action, Box):
        edges = [_thousandths(each) for each in (action.x0, action.y0, action.x1, action.y1)]
        return "add_bbox", {"bbox_2d": edges}
    if isinstance(action, Click):
        place = [_thousandths(action.x), _thousandths(action.y)]
        return "add_point", {"point_2d": place, "point_type": "positive" if action.positive else "negative"}
    return "stop_action", {}


def _thousandths(value: float) -> int:
    return min(_SIDE - 1, round(value * _SIDE))


def _refused(problem: str, value: str) -> ReplyError:
    return ReplyError(problem, value=value.strip()[:200], remedy=_EXPECTED)
