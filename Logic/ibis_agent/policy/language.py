"""The action language of a policy's card: how its replies are read, written, and known to be complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ibis_agent.actions import Reply, format_reply, parse_reply, reply_is_complete
from ibis_agent.tool_calls import call_is_complete, format_call, parse_call


@dataclass(frozen=True)
class Language:
    """Reading and writing of replies. `parse` raises ReplyError and nothing else; `format` InputError."""

    parse: Callable[[str], Reply]
    format: Callable[[Reply], str]
    is_complete: Callable[[str], bool]


IBIS = Language(parse_reply, format_reply, reply_is_complete)
LANGUAGES = {
    "ibis": IBIS,
    "tool_calls": Language(parse_call, format_call, call_is_complete),
}
