"""Where a run's record is. Imports nothing, so that --help stays fast."""

from __future__ import annotations

import os
from pathlib import Path

TRAJECTORY_NAME = "trajectory.json"


def record_in(path: str | os.PathLike[str]) -> Path:
    """The record of a run, given it or the folder of the run. Any other path is returned as it is."""
    record = Path(path) / TRAJECTORY_NAME
    return record if record.is_file() else Path(path)
