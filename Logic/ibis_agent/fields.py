"""Reading untrusted JSON field by field; errors name the file and the field."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ibis_agent.errors import IbisError, InputError

T = TypeVar("T")
LARGEST_FILE = 2**30
GIT_LFS = "version https://git-lfs.github.com/spec/"
_MISSING = object()


def read_json(
    path: str | os.PathLike[str],
    remedy: str = "Use a file written by this program.",
    largest: int = LARGEST_FILE,
    kind: type[IbisError] = InputError,
    finite: bool = True,
) -> Any:
    """The JSON value in a file. Raises `kind` for invalid JSON, a duplicate key and,
    if `finite`, for NaN and infinite numbers."""
    file = Path(path)
    try:
        if file.is_file() and file.stat().st_size > largest:
            raise kind("is too large for this kind of file", file=file, value=f"{file.stat().st_size} bytes")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise kind(f"cannot be read: {reason}", file=file, remedy="Check the path.") from error
    except UnicodeDecodeError as error:
        raise kind("is not JSON: it is not UTF-8 text", file=file, remedy=remedy) from error
    if text.startswith(GIT_LFS):
        raise kind("is a Git LFS pointer", file=file, remedy="Run `git lfs pull` there.")
    try:
        constant = _refuse_constant if finite else None
        return json.loads(text, parse_constant=constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        shown = str(error) if text.strip() else "an empty file"
        raise kind("is not JSON", file=file, value=shown, remedy=remedy) from error


class Fields:
    """An object of a record. Its methods return one checked field each, or raise InputError.

    The name of a field in errors is its path, such as `steps[2].action.x`.
    """

    def __init__(self, values: Any, file: str | os.PathLike[str] | None = None, path: str = "") -> None:
        self.file, self.path = file, path
        self._raw = values
        self.values: Mapping[str, Any] = values if isinstance(values, dict) else {}

    def error(self, key: str, problem: str, value: Any = _MISSING) -> InputError:
        """An InputError about one field; `value` defaults to the field's own."""
        shown = self.values.get(key) if value is _MISSING else value
        return InputError(
            f"{self._name(key)} {problem}",
            file=self.file,
            value="null" if shown is None else shown if isinstance(shown, str) else json.dumps(shown),
            remedy="The record was changed or comes from another program.",
        )

    def value(self, key: str, default: Any = _MISSING) -> Any:
        """The unchecked field; InputError if it is missing and has no default."""
        if not isinstance(self._raw, dict):
            raise InputError(
                f"{self.path or 'the record'} must be an object",
                file=self.file,
                value=type(self._raw).__name__,
            )
        found = self.values.get(key, default)
        if found is _MISSING:
            raise InputError(
                f"{self._name(key)} is missing",
                file=self.file,
                remedy="The record was changed or comes from another program.",
            )
        return found

    def text(self, key: str, default: Any = _MISSING) -> str:
        return self._of_type(key, str, "a string", default)

    def flag(self, key: str) -> bool:
        return self._of_type(key, bool, "true or false")

    def whole(self, key: str, least: int) -> int:
        found = self._of_type(key, int, "a whole number")
        if isinstance(found, bool) or found < least:
            raise self.error(key, f"must be a whole number from {least}")
        return found

    def number(self, key: str, optional: bool = False) -> float | None:
        found = self.value(key, None if optional else _MISSING)
        if found is None and optional:
            return None
        return _number(found, lambda: self.error(key, "must be a number"))

    def numbers(self, key: str) -> dict[str, float]:
        """An object of numbers."""
        inside = self.inside(key)
        return {name: inside.number(name) or 0.0 for name in inside.values}

    def texts(self, key: str, optional: bool = False) -> dict[str, str] | None:
        """An object of texts."""
        if self.value(key, None if optional else _MISSING) is None and optional:
            return None
        inside = self.inside(key)
        return {name: inside.text(name) for name in inside.values}

    def lines(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty if the key is missing."""
        found = self.value(key, [])
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self.error(key, "must be a list of strings")
        return tuple(found)

    def choice(self, key: str, options: Sequence[str]) -> str:
        found = self.text(key)
        if found not in options:
            raise self.error(key, f"must be one of {', '.join(options)}")
        return found

    def inside(self, key: str) -> Fields:
        """A field that is an object."""
        if not isinstance(self.value(key), dict):
            raise self.error(key, "must be an object")
        return Fields(self.values[key], self.file, self._name(key))

    def list_of(self, key: str, count: int | None = None) -> list[Fields]:
        """A field that is a list, item by item."""
        found = self.value(key)
        if not isinstance(found, list) or count not in (None, len(found)):
            raise self.error(key, "must be a list" + ("" if count is None else f" of {count}"))
        return [Fields(each, self.file, f"{self._name(key)}[{n}]") for n, each in enumerate(found)]

    def plain_number(self) -> float:
        """This item of a list, which must be a number."""
        return _number(self._raw, lambda: InputError(f"{self.path} must be a number", file=self.file))

    def checked(self, make: Callable[[], T], key: str | None = None) -> T:
        """The result of `make`; its InputError gets the file and the field's name."""
        try:
            return make()
        except InputError as error:
            if error.file is not None:
                raise
            name = self.path if key is None else self._name(key)
            raise InputError(
                f"{name}: {error.problem}", file=self.file, value=error.value, remedy=error.remedy
            ) from error

    def _name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _of_type(self, key: str, kind: type[T], what: str, default: Any = _MISSING) -> T:
        found = self.value(key, default)
        if not isinstance(found, kind):
            raise self.error(key, f"must be {what}")
        return found


def _number(value: Any, error: Callable[[], InputError]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error()
    try:
        number = float(value)
    except OverflowError as overflow:
        raise error() from overflow
    if not math.isfinite(number):
        raise error()
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises ValueError for a duplicate key, of which json silently keeps the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
