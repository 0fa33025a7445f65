"""The policy that a command names, and the question whether pictures may go to another machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.errors import InputError

if TYPE_CHECKING:
    from ibis_agent.policy.contract import PolicySource


def place(text: str) -> Path | str:
    """A policy's place as it stands on a command line: an address, or a path."""
    return text if policies.is_address(text) else Path(text)


def segmenter_place(text: str) -> Path | str:
    """The same of a segmenter."""
    return text if segmenters.is_address(text) else Path(text)


def chosen(options: argparse.Namespace) -> PolicySource:
    """What --policy, --model, --card and --send-pictures-to say.

    Raises InputError for options that do not fit together, and where a yes is missing; ModelError.
    """
    where = options.policy
    if not policies.is_address(where):
        for option in ("model", "card", "send_pictures_to"):
            if getattr(options, option):
                raise InputError(
                    f"--{option.replace('_', '-')} is for a policy on a server",
                    value=getattr(options, option),
                    remedy="Name its address with --policy, or leave it out.",
                )
        return policies.find(where)
    from ibis_agent.policy.remote.source import RemoteAddress

    found = RemoteAddress(where, options.model or "", options.card)
    agreed = options.send_pictures_to
    if agreed and agreed != found.host:
        raise InputError(
            "the agreement is for another host than the policy's",
            value=f"{agreed}, the policy is on {found.host}",
            remedy=f"If pictures may go there: --send-pictures-to {found.host}.",
        )
    if agreed or (found.needs_yes and sys.stdin.isatty() and _says_yes(found)):
        found.agree()
    found.check_yes()
    return found


def _says_yes(found: object) -> bool:
    from ibis_agent.policy.remote.source import WHAT_IS_SENT, RemoteAddress

    assert isinstance(found, RemoteAddress)
    print(f"The policy runs on another machine: {found.connection.base}", file=sys.stderr)
    print(f"It is sent {WHAT_IS_SENT}.", file=sys.stderr)
    print(
        "May this leave your machine? Type yes, or anything else to stop: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() == "yes"
