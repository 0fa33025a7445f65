"""What comes before any command: streams that can be written to, and the options. Little is imported for it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence

from ibis_agent.cli.options import parser, with_negative_numbers


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """None takes those of this process. Raises SystemExit for --help and a wrong command."""
    # A service may start us without streams. Opened at once, lest a file of ours take the place of one.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open as long as we run
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows a question mark; it does not end the run.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not sys.warnoptions:
        # Libraries warn their programmers; a person gets one line that says what to do.
        warnings.simplefilter("ignore")
    return parser().parse_args(with_negative_numbers(sys.argv[1:] if arguments is None else arguments))
