"""The journal of a long run: a file of JSON lines beside its record, one for each action.

    trajectory.json            the record when the journal was started
    trajectory.json.journal    the changes since; its first line says which record it belongs to

Reading a record also reads its journal. A line cut off by a kill is ignored, and so is a journal of another record: the
run is then in the state after the previous action.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
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
    """Start an empty journal for the record at `path`. Raises OutputError."""
    files.write_text(beside(path), json.dumps({"journal": 1, "of": _sha256(Path(path))}) + "\n")


def add(
    path: str | os.PathLike[str],
    keep: int,
    actions: list[Json],
    slices: Iterable[tuple[int, Json | None]],
    outcome: Mapping[str, Any],
) -> None:
    """Append a change. Raises OutputError.

    Args:
        keep: number of earlier actions that are kept.
        actions: the new actions after them.
        slices: the changed slices and their state, one by one; None if nothing is known any more. A slice that is
            new in the record includes its "picture".
        outcome: answer, status, reason, caveats.
    """
    files.append_line(beside(path), {"keep": keep, "actions": actions, **outcome}, ("slices", slices))


def end(path: str | os.PathLike[str]) -> None:
    """The record at `path` is complete: remove its journal."""
    with contextlib.suppress(OSError):
        beside(path).unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Any:
    """The JSON value of a record with its journal applied. Raises InputError like fields.read_json."""
    record = read_json(path)
    if not is_volume_record(record) or not beside(path).is_file():
        return record
    try:
        lines = list(_lines(Path(path)))
        return _with(record, lines) if lines else record
    except (KeyError, TypeError, ValueError, AttributeError):
        return record  # the journal was not written by this program


def _lines(path: Path) -> Iterator[Json]:
    """The complete entries of the journal of the record at `path`."""
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
    outcome["caveats"] = record.get("caveats", [])
    for line in lines:
        actions = [*actions[: line["keep"]], *line["actions"]]
        for index, row in ((int(n), each) for n, each in line["slices"].items()):
            rows[index] = {**rows.get(index, {}), "mask_rle": "", **NOTHING, **(row or {})}
        outcome |= {key: line[key] for key in outcome if key in line}  # older journals have no caveats
    gap = float(record["volume"]["gap_mm"])
    volume = {**record["volume"], **figures(actions, rows.values(), gap)}
    slices = [rows[index] for index in sorted(rows)]
    return {**record, "volume": volume, **outcome, "actions": actions, "slices": slices}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
