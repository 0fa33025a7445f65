"""Action languages: how replies are parsed, written, and recognised as complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ibis_agent.actions import Reply, format_reply, parse_reply, reply_is_complete
from ibis_agent.tool_calls import call_is_complete, format_call, parse_call


@dataclass(frozen=True)
class Language:
    """An action language. `parse` raises ReplyError and nothing else; `format` raises InputError.

    words: its name, for people.
    reply: finds each reply in a text of several.
    place: finds the coordinates in a reply.
    """

    words: str
    parse: Callable[[str], Reply]
    format: Callable[[Reply], str]
    is_complete: Callable[[str], bool]
    reply: re.Pattern[str]
    place: re.Pattern[str]


IBIS = Language(
    "the published text",
    parse_reply,
    format_reply,
    reply_is_complete,
    re.compile(r"<think>.*?(?:</action>(?:\s*<answer>.*?</answer>)?|(?=<think>)|\Z)", re.DOTALL),
    re.compile(r"(?<=\()[^()<]*(?=\)\s*</action>)"),
)
LANGUAGES = {
    "ibis": IBIS,
    "tool_calls": Language(
        "tool calls (add_bbox, add_point, stop_action)",
        parse_call,
        format_call,
        call_is_complete,
        re.compile(r".*?</tool_call>", re.DOTALL),
        re.compile(r"(?<=_2d\": \[)[^\]]*"),
    ),
}

TAG = re.compile(r"</?(?:tool_call|think|action|answer)>")
"""A tag of an action language. Some tokenizers have them as special tokens."""
