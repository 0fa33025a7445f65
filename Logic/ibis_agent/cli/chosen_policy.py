"""The policy named on the command line, and the consent to send pictures to another machine."""

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
    """Where a policy is, as given on the command line: an address or a path."""
    return text if policies.is_address(text) else Path(text)


def segmenter_place(text: str) -> Path | str:
    """Where a segmenter is: an address or a path."""
    return text if segmenters.is_address(text) else Path(text)


def any_place(text: str) -> Path | str:
    """Where a policy or a segmenter is: an address or a path."""
    return text if policies.is_address(text) or segmenters.is_address(text) else Path(text)


def chosen(options: argparse.Namespace) -> PolicySource:
    """Find the policy given by --policy, --model, --card and --send-pictures-to.

    Raises InputError for options that cannot be combined, and if consent is missing; ModelError.
    """
    where = options.policy
    if not policies.is_address(where):
        for option in ("model", "card", "send_pictures_to"):
            if getattr(options, option):
                raise InputError(
                    f"--{option.replace('_', '-')} is for a policy on a server",
                    value=getattr(options, option),
                    remedy="Give the address with --policy, or leave the option out.",
                )
        return policies.find(where)
    from ibis_agent.policy.remote.source import RemoteAddress

    found = RemoteAddress(where, options.model or "", options.card)
    agreed = options.send_pictures_to
    if agreed and agreed != found.host:
        raise InputError(
            "--send-pictures-to names a different host from the policy's",
            value=f"{agreed}; the policy is on {found.host}",
            remedy=f"To allow sending pictures there: --send-pictures-to {found.host}.",
        )
    if agreed or (found.needs_yes and sys.stdin.isatty() and _says_yes(found)):
        found.agree()
    found.check_yes()
    return found


def _says_yes(found: object) -> bool:
    from ibis_agent.policy.remote.source import WHAT_IS_SENT, RemoteAddress

    assert isinstance(found, RemoteAddress)
    print(f"The policy runs on another machine: {found.connection.base}", file=sys.stderr)
    print(f"It receives {WHAT_IS_SENT}.", file=sys.stderr)
    print(
        "Send this to the other machine? Type yes to agree, or anything else to stop: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() == "yes"
