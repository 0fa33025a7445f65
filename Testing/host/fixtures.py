"""The pytest fixture `slicer_host`; conftest.py imports it. Importing this needs neither Slicer nor Qt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from . import missing_parts, start

if TYPE_CHECKING:
    from .session import Host


@pytest.fixture
def slicer_host() -> Iterator[Host]:
    """A simulated Slicer just after start-up. Exceptions that Slicer would only print fail the test."""
    if missing_parts():
        pytest.skip(missing_parts())
    host = start()
    host.reset()
    host.draw_views(always=False)
    yield host
    errors = [*host.errors, *host.complaints]
    unanswered = host.unused_answers()
    host.reset()
    assert not errors, "exceptions in handlers (take expected ones out of slicer_host.errors):\n" + "\n".join(
        errors
    )
    assert not unanswered, f"answers that no dialog asked for: {unanswered}"
