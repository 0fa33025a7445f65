"""Fixtures for tests of the module in the simulated Slicer. Importing this needs no Slicer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slicer_panel import Panel


@pytest.fixture
def panel(slicer_host: Any, tmp_path: Path) -> Iterator[Panel]:
    """The module's panel, just opened, with a Python that can run a scripted worker."""
    opened = Panel(slicer_host, tmp_path)
    yield opened
    logging.getLogger().removeHandler(opened.failures)
    assert not opened.failures.texts, "\n".join(opened.failures.texts)


@pytest.fixture
def asked(panel: Panel, data: Path) -> Panel:
    """A CT is shown, the question is typed, nothing has been pressed."""
    panel.script()
    panel.load(data / "ct_abdomen_3mm.nii.gz")
    panel.ask()
    return panel


@pytest.fixture
def stepped(asked: Panel) -> Panel:
    """Two steps have been made."""
    asked.step()
    asked.step()
    return asked
