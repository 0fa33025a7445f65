"""The start of every command: check the standard streams, and parse the options. It imports little."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence

from ibis_agent.cli.options import parser, with_negative_numbers


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """None means the arguments of this process. Raises SystemExit for --help and an invalid command."""
    # A service may start us without streams. Open them first, or one of our files would get their number.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open as long as we run
    for stream in (sys.stdout, sys.stderr):
        # A terminal with another encoding shows a question mark instead of raising.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not sys.warnoptions:
        # Warnings of libraries are meant for programmers; users get one line that says what to do.
        warnings.simplefilter("ignore")
    return parser().parse_args(with_negative_numbers(sys.argv[1:] if arguments is None else arguments))
