"""Read a CSV or JSON manifest into cases; its columns are described in cases."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ibis_agent.cases.case import (
    ANY,
    Case,
    Labels,
    Problem,
    checked,
    label_value,
    names_for,
    plain_name,
    read_labels,
)
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.scan.checks import stem
from ibis_agent.scan.picture import check_window

_COLUMNS = (
    "id",
    "image",
    "mask",
    "structure",
    "value",
    "labels",
    "window_min",
    "window_max",
    "window",
    "reverse",
)


def in_csv(path: Path, names: Labels | None) -> Iterator[Case | Problem]:
    """The cases of a CSV manifest, and problems. Raises InputError for a wrong file or missing columns."""
    rows = read_csv(path)
    _check_columns(rows[0].keys() if rows else (), path)
    for number, row in enumerate(rows, 2):
        yield from _from_row({k: v for k, v in row.items() if v not in (None, "")}, number, path, names)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, by column; also with semicolons or tabs, and in the encodings of spreadsheet programs.

    Raises InputError for a file that is not CSV, a duplicate column, and a row with more cells than columns.
    """
    try:
        text = _text(path.read_bytes())
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        rows, columns = list(reader), [each.strip() for each in reader.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            "cannot be read as CSV", file=path, value=error, remedy="Save it as UTF-8."
        ) from error
    twice = next((each for n, each in enumerate(columns) if each and each in columns[:n]), None)
    if twice is not None:
        raise InputError(
            "has a duplicate column", file=path, value=twice, remedy="Remove or rename one of them."
        )
    for number, row in enumerate(rows, 2):
        if any(more := row.pop(None, None) or ()):
            raise InputError(
                f"row {number} has more cells than the first row has columns",
                file=path,
                value=", ".join(more),
                remedy="Put texts that contain the separator in quotes.",
            )
    return [{(key or "").strip(): value for key, value in row.items()} for row in rows]


def _text(data: bytes) -> str:
    """Decode a file that may come from a spreadsheet program: in UTF-16 or Windows-1252, or with a first line `sep=;`,
    which is removed.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
    first, _, rest = text.partition("\n")
    return rest if re.fullmatch(r"sep=.\s*", first) else text


def _delimiter(text: str) -> str:
    """The most frequent separator between the column names."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def in_json(path: Path, names: Labels | None) -> Iterator[Case | Problem]:
    """The cases of a JSON manifest, and problems. Raises InputError if it is not a list of cases."""
    content = read_json(path, remedy="A manifest is a list of objects with image and mask.")
    if isinstance(content, Mapping):
        if isinstance(content.get("labels"), Mapping):
            names = names or read_labels(path, content["labels"])
        content = content.get("cases")
    if not isinstance(content, list):
        raise InputError(
            "is not a list of cases", file=path, remedy='For example: [{"image": …, "mask": …}].'
        )
    for number, row in enumerate(content, 1):
        if isinstance(row, Mapping):
            yield from _from_row({k: v for k, v in row.items() if v is not None}, number, path, names)
        else:
            yield Problem("manifest", f"entry {number}", str(path), "is not an object with image and mask")


def _check_columns(columns: Any, path: Path) -> None:
    lacking = {"image", "mask"} - set(columns)
    unknown = [each for each in columns if each not in _COLUMNS]
    if lacking or unknown:
        problem = f"has no column {sorted(lacking)[0]}" if lacking else "has an unknown column"
        raise InputError(
            problem, file=path, value=", ".join(map(str, columns)), remedy=f"Known: {', '.join(_COLUMNS)}."
        )


def _from_row(row: dict[str, Any], number: int, path: Path, names: Labels | None) -> Iterator[Case | Problem]:
    name = str(row.get("id", f"{'row' if path.suffix.lower() == '.csv' else 'entry'} {number}"))
    try:
        unknown = [each for each in row if each not in _COLUMNS]
        if unknown:
            raise InputError("has an unknown key", value=unknown[0])
        for key in ("image", "mask"):
            if not isinstance(row.get(key), str):
                raise InputError(f"has no {key}")
        image, mask = (beside(path, row[key]) for key in ("image", "mask"))
        labels, own = _labels_of_row(row, path, mask), True
        if not labels:
            labels, own = names_for(mask, path.parent, names)
        window = row.get("window")
        if "window_min" in row or "window_max" in row:
            window = (row.get("window_min"), row.get("window_max"))
        window = None if window is None else check_window(window)
        reverse = str(row.get("reverse", "")).lower() in ("1", "true", "yes")
    except InputError as error:
        yield Problem("manifest", name, str(path), f"{error} ({path.name}, {number})")
        return
    if "id" not in row:
        name = stem(image) if "structure" not in row else f"{stem(image)}/{row['structure']}"
    yield from checked(Case(name, image, mask, labels, window, reverse, own))


def beside(path: Path, name: str) -> Path:
    """A path relative to the manifest; also accepts paths written on Windows."""
    found = path.parent / name
    return found if "\\" not in name or found.exists() else path.parent / name.replace("\\", "/")


def _labels_of_row(row: dict[str, Any], path: Path, mask: Path) -> Labels:
    if "structure" in row:
        value = row.get("value", ANY)
        whole = label_value(value)
        if whole is None or whole == 0:
            raise InputError("value must be a whole number other than 0", value=value)
        return {plain_name(str(row["structure"])): (whole,)}
    labels = row.get("labels")
    if labels is None:
        return {}
    if isinstance(labels, str) and "=" in labels:
        parts = (each.split("=", 1) for each in labels.split(";") if each.strip())
        labels = {part[0].strip(): part[1].strip() if len(part) > 1 else "" for part in parts}
    elif isinstance(labels, str):
        return read_labels(beside(path, labels))
    return read_labels(path, labels)


def single_case(image: Path, mask: Path, names: Path | None = None) -> Case:
    """One picture and its mask, without a manifest; values without names are combined into "the structure".

    Raises InputError if a file is missing.
    """
    for file in (image, mask):
        if not file.exists():
            raise InputError("there is no such file", file=file, remedy="Check the path.")
    labels: Labels = {"structure": (ANY,)} if names is None else read_labels(names)
    return Case(stem(image), image, mask, labels, own_labels=True)
