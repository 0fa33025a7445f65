"""Errors whose text is meant for the person at the screen, and showing them there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ibis_agent.errors import IbisError


class PlainError(RuntimeError):
    """What could not be done, why, and what to do, in plain words."""


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[None]:
    """Say what goes wrong inside in the panel, instead of a pop-up. Mistakes of ours go on to Slicer's
    console.
    """
    try:
        yield
    except (PlainError, IbisError) as error:
        logging.warning("IBISSlicer: %s", error)
        say(str(error))
