"""What a long run adds to its record while it goes on: a file of JSON lines beside it, one for each action.

    trajectory.json            the record as it was when the journal was begun
    trajectory.json.journal    what has happened since; its first line says which record it belongs to

Reading a record reads its journal too. A line that a kill has cut off is passed over, and so is a journal of
another record: the run is then as after the action before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ibis_agent import files
from ibis_agent.fields import read_json
from ibis_agent.record.forms import NOTHING, figures, is_volume_record

Json = dict[str, Any]


def beside(path: str | os.PathLike[str]) -> Path:
    """The journal's file."""
    return Path(f"{os.fspath(path)}.journal")


def begin(path: str | os.PathLike[str]) -> None:
    """An empty journal for the record that stands at `path` now. Raises OutputError."""
    files.write_text(beside(path), json.dumps({"journal": 1, "of": _sha256(Path(path))}) + "\n")


def add(
    path: str | os.PathLike[str],
    keep: int,
    actions: list[Json],
    slices: Mapping[int, Json | None],
    outcome: Mapping[str, Any],
) -> None:
    """Write down what changed. Raises OutputError.

    Args:
        keep: so many of the actions before still count.
        actions: those that followed.
        slices: by slice, what is known otherwise than before; None for what is not known any more. A slice that is
            new to the record brings its "picture".
        outcome: answer, status, reason.
    """
    line = {"keep": keep, "actions": actions, "slices": {str(n): each for n, each in slices.items()}}
    files.append_line(beside(path), {**line, **outcome})


def end(path: str | os.PathLike[str]) -> None:
    """The record at `path` is whole: its journal goes."""
    with contextlib.suppress(OSError):
        beside(path).unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Any:
    """The JSON value of a record with what its journal adds. Raises InputError as fields.read_json."""
    record = read_json(path)
    if not is_volume_record(record) or not beside(path).is_file():
        return record
    try:
        lines = list(_lines(Path(path)))
        return _with(record, lines) if lines else record
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # not one that we wrote: the record stands alone
        return record


def _lines(path: Path) -> Iterator[Json]:
    """What was added to the record at `path`, as far as it is whole."""
    first, *rest = beside(path).read_bytes().split(b"\n")[:-1]
    if json.loads(first).get("of") != _sha256(path):
        return
    for line in rest:
        try:
            yield json.loads(line)
        except ValueError:
            return


def _with(record: Json, lines: list[Json]) -> Json:
    rows = {int(each["slice"]): dict(each) for each in record["slices"]}
    actions, outcome = list(record["actions"]), {key: record[key] for key in ("answer", "status", "reason")}
    for line in lines:
        actions = [*actions[: line["keep"]], *line["actions"]]
        for index, row in ((int(n), each) for n, each in line["slices"].items()):
            rows[index] = {**rows.get(index, {}), "mask_rle": "", **NOTHING, **(row or {})}
        outcome = {key: line[key] for key in outcome}
    gap = float(record["volume"]["gap_mm"])
    volume = {**record["volume"], **figures(actions, rows.values(), gap)}
    slices = [rows[index] for index in sorted(rows)]
    return {**record, "volume": volume, **outcome, "actions": actions, "slices": slices}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
