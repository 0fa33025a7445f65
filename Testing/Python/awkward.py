"""Runs the scripts that make awkward inputs (shared/cases, beside the checkout) for the tests that know their truth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"


def made(number: str, out: Path) -> Path:
    """The folder in which script `number` made its inputs; the test is skipped where there is no such script."""
    script = CASES / f"{number}.py"
    if not script.is_file():
        pytest.skip("the scripts of awkward inputs are not beside this checkout")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        [sys.executable, script.name, str(out)], cwd=CASES, capture_output=True, text=True, env=environment
    )
    assert told.returncode == 0, told.stderr
    return out
