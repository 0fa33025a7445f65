"""The file of a run in progress: complete after every action."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

from ibis_agent.record import journal
from ibis_agent.record.forms import row_with_picture, visited
from ibis_agent.record.steps import Json, action_to_json, slice_to_json
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import RunAction
from ibis_agent.run.caveats import caveats
from ibis_agent.run.plan import spans_of
from ibis_agent.run.run import Run
from ibis_agent.segmenter.contract import Found


class RunFile:
    """The record of one run in one file.

    The record of a single slice is small and is rewritten each time. For many slices, only the changes are appended
    to a journal beside the record (see journal), until `finish` combines both into one file.
    """

    def __init__(self, path: Path, source: str | os.PathLike[str] = "", created: str = "") -> None:
        """created: the date of a resumed run."""
        self.path, self._created = path, created
        self._source = os.path.basename(os.path.normpath(source)) if os.fspath(source) else ""
        self._begun = False
        self._actions: tuple[RunAction, ...] = ()
        self._found: dict[int, Found] = {}
        self._pictured: set[int] = set()

    def save(self, run: Run) -> None:
        """Update the file. Raises OutputError; the previous contents are then unchanged."""
        if run.alone or not self._begun:
            self.finish(run)
            if not run.alone:
                journal.begin(self.path)
                self._begun = True
                self._written(run)
            return
        geometry = run.slices.geometry(run.slices.first)
        same = (old is new for old, new in zip(self._actions, run.actions, strict=False))
        keep = sum(itertools.takewhile(bool, same))
        found = run.found
        changed = {n for n in {*found, *self._found} if found.get(n) is not self._found.get(n)}
        rows = ((n, self._row(run, n)) for n in sorted(changed | (_visited(run) - self._pictured)))
        actions = [action_to_json(each, geometry) for each in run.actions[keep:]]
        outcome: Json = {"answer": run.answer, "status": run.status, "reason": run.reason}
        outcome["caveats"] = list(caveats(run))
        journal.add(self.path, keep, actions, rows, outcome)
        self._written(run)

    def finish(self, run: Run, measurements: Json | None = None) -> Trajectory:
        """Write the record as one file, and return its contents. Raises OutputError."""
        record = dataclasses.replace(self.record(run), measurements=measurements or {})
        record.save(self.path)
        journal.end(self.path)
        self._begun = False
        return record

    def record(self, run: Run) -> Trajectory:
        """The contents of the file."""
        made = Trajectory.of(run, self._source, self._created)
        self._created = made.created
        return made

    def remove(self) -> None:
        """Delete the files of the run."""
        journal.end(self.path)
        self.path.unlink(missing_ok=True)

    def _row(self, run: Run, index: int) -> Json | None:
        pixel = run.pixel_mm2
        row = slice_to_json(run.found.get(index), run.mask(index), index, pixel)
        if index in self._pictured:
            return row
        slices = run.slices
        return row_with_picture(index, row, slices.picture(index), slices.inside(index), self._source)

    def _written(self, run: Run) -> None:
        self._actions, self._found = run.actions, dict(run.found)
        self._pictured |= _visited(run)


def _visited(run: Run) -> set[int]:
    return set(visited(spans_of(run.actions), run.found, run.slices.first))
