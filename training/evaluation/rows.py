"""The rows of an evaluation on disk: one JSON line per picture, so that a killed run can be resumed.

A folder has `settings.json` (pictures, settings, models) and a `rows-I-of-N.jsonl` per shard. All rows are read
together; a line cut off by a kill is ignored, and a picture evaluated by two shards counts once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ibis_agent.errors import InputError
from ibis_agent.files import check_writable_folder, output_error, write_json

from training.common.processes import Shard
from training.evaluation.measure import Row

SCHEMA = "ibis-evaluation/1"
SETTINGS = "settings.json"


class RowStore:
    """The rows of one run. Without a folder they are kept in memory only.

    store = RowStore(folder, settings, Shard())
    store.add(row)          # on disk when this returns
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], shard: Shard) -> None:
        """Raises InputError if the folder has an evaluation with other settings, OutputError."""
        self.rows: dict[int, Row] = {}
        self._stream: BinaryIO | None = None
        if folder is None:
            return
        check_writable_folder(folder)
        if (folder / SETTINGS).exists():
            check_same(settings, read_settings(folder), folder)
        else:
            write_json(folder / SETTINGS, {"schema": SCHEMA, **settings})
        self.rows = read_rows(folder)
        self._path = folder / f"rows-{shard.number}-of-{shard.count}.jsonl"
        try:
            _remove_unfinished_line(self._path)
            # Unbuffered: a row is one write, so that two processes cannot mix their lines.
            self._stream = self._path.open("ab", buffering=0)
        except OSError as error:
            raise output_error(error, self._path) from error

    def add(self, row: Row) -> None:
        """Raises OutputError."""
        self.rows[row["index"]] = row
        if self._stream is None:
            return
        try:
            self._stream.write(json.dumps(row, allow_nan=False).encode("ascii") + b"\n")
        except OSError as error:
            raise output_error(error, self._path) from error

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder's evaluation. Raises InputError."""
    path = folder / SETTINGS
    remedy = "Give the --out folder of an evaluation."
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            "contains no evaluation", file=folder, value=error.strerror, remedy=remedy
        ) from error
    except ValueError as error:
        raise InputError("is not JSON", file=path, value=str(error), remedy=remedy) from error
    if not isinstance(settings, dict) or settings.get("schema") != SCHEMA:
        raise InputError("is not the settings of an evaluation", file=path, remedy=remedy)
    return {name: value for name, value in settings.items() if name != "schema"}


def check_same(ours: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    """Raises InputError naming the first setting that differs from the evaluation in `folder`."""
    # Through JSON, which turns tuples into lists.
    ours = json.loads(json.dumps(ours))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"was evaluated with another {name}",
                file=folder,
                value=f"{json.dumps(theirs.get(name))} there, {json.dumps(ours.get(name))} now",
                remedy="Choose another folder, or use the same settings.",
            )


def read_rows(folder: Path) -> dict[int, Row]:
    """Index → row for all shards in the folder, ordered. Raises InputError for a line that is not a row."""
    found: dict[int, Row] = {}
    for path in sorted(folder.glob("rows-*-of-*.jsonl")):
        for row in _lines(path):
            _take(found, row)
    return dict(sorted(found.items()))


def merged(folders: Sequence[Path], total: int) -> dict[int, Row]:
    """The rows of several folders, which together must have all `total` pictures.

    Raises InputError, also for folders with different settings.
    """
    found: dict[int, Row] = {}
    settings = read_settings(folders[0])
    for folder in folders:
        check_same(settings, read_settings(folder), folder)
        for row in read_rows(folder).values():
            _take(found, row)
    missing = [index for index in range(total) if index not in found]
    if missing:
        raise InputError(
            f"{len(missing)} of {total} pictures are not evaluated yet",
            value=", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else ""),
            remedy="Run the missing shards, or resume a stopped one.",
        )
    return dict(sorted(found.items()))


def is_done(row: Row | None) -> bool:
    """Whether a picture was evaluated; one with a problem is tried again."""
    return row is not None and "problem" not in row


def _take(found: dict[int, Row], row: Row) -> None:
    """Keep the first row of a picture, unless it only has a problem."""
    if not is_done(found.get(row["index"])):
        found[row["index"]] = row


def _lines(path: Path) -> Iterator[Row]:
    """The rows of one file, without an unfinished last line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError("cannot be read", file=path, value=error.strerror) from error
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            row = json.loads(line)
            if not isinstance(row["index"], int):
                raise TypeError("index")
        except (ValueError, KeyError, TypeError) as error:
            remedy = "Remove that line; its picture will be evaluated again."
            raise InputError(
                f"line {number} is not a row", file=path, value=line[:60], remedy=remedy
            ) from error
        yield row


def _remove_unfinished_line(path: Path) -> None:
    """Remove an unfinished last line, so that the next row starts on a new line."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        stream.truncate(stream.read().rfind(b"\n") + 1)
