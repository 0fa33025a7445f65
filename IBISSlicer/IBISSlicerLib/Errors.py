"""Errors with messages for the user, and displaying them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ibis_agent.errors import IbisError


class PlainError(RuntimeError):
    """An error whose message says what failed, why, and what to do."""


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[None]:
    """Show errors from the block in the panel instead of a pop-up. Programming errors also go to Slicer's console."""
    try:
        yield
    except (PlainError, IbisError) as error:
        logging.warning("IBISSlicer: %s", error)
        say(str(error))
