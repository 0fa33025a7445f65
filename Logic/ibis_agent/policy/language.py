"""The action language of a policy's card: how its replies are read, written, and known to be complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ibis_agent.actions import Reply, format_reply, parse_reply, reply_is_complete
from ibis_agent.tool_calls import call_is_complete, format_call, parse_call


@dataclass(frozen=True)
class Language:
    """Reading and writing of replies. `parse` raises ReplyError and nothing else; `format` InputError.

    words: what it is, for people.
    """

    words: str
    parse: Callable[[str], Reply]
    format: Callable[[Reply], str]
    is_complete: Callable[[str], bool]


IBIS = Language("the published text", parse_reply, format_reply, reply_is_complete)
LANGUAGES = {
    "ibis": IBIS,
    "tool_calls": Language(
        "tool calls (add_bbox, add_point, stop_action)", parse_call, format_call, call_is_complete
    ),
}


def is_tag(token: str) -> bool:
    """Whether it is a tag that replies are written with, which some tokenizers have as a token of its own."""
    return re.fullmatch(r"</?(?:tool_call|think|action|answer)>", token) is not None
