"""Read YAML settings into a dataclass, checked before slow work; errors name the file, the key and the remedy.

    settings = read_settings("training/configs/sft-demo.yaml", SftSettings, ["steps=20", "lora.rank=4"])

The dataclass's fields define what is allowed: types (also `Path`, `Literal`, tuples, nested dataclasses) and limits
in `field(metadata={"least": 1, "most": 9, "above": 0})`. Paths are relative to the current folder, as on a command
line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml
from ibis_agent.errors import InputError

_LARGEST = 2**20
# Numbers that YAML 1.1 reads as octal or as minutes and seconds: 010 is 8, 1:30 is 90.
_MISREAD = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}

T = TypeVar("T")


def setting(default: Any = dataclasses.MISSING, **limits: float) -> Any:
    """A dataclass field with limits: `least`, `most` (inclusive) or `above` (exclusive)."""
    return dataclasses.field(default=default, metadata=limits)


def read_settings(path: str | os.PathLike[str], kind: type[T], changes: Sequence[str] = ()) -> T:
    """The settings in a YAML file, with `changes` as `key=value` or `part.key=value`.

    Raises InputError for invalid YAML, an unknown, duplicate or missing key, a wrong type or limit.
    """
    values = _load(Path(path))
    for change in changes:
        _apply(values, change)
    return settings_from(values, kind, os.fspath(path))


def settings_from(values: Mapping[str, Any], kind: type[T], file: str | None = None) -> T:
    """The settings in a mapping, checked as by `read_settings`."""
    return _dataclass(values, kind, "", file)


def settings_to_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as JSON values; `settings_from` reads them."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=os.fspath))


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError("is too large for settings", file=path, value=path.stat().st_size)
        values = yaml.load(path.read_text("utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, remedy="Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"is not YAML: {text}", file=path, remedy="Correct it there.") from error
    if not isinstance(values, dict):
        raise InputError(
            "contains no settings", file=path, value=_bare(values), remedy="Write one `key: value` per line."
        )
    return values


@dataclasses.dataclass(frozen=True)
class _Scalar:
    """A YAML number, date, boolean or null, together with its text.

    A folder may be called 2026-11-24, 1_000 or 0x1F; the type of the field decides which one is used.
    """

    value: Any
    text: str


class _Loader(yaml.SafeLoader):
    """Keeps the text of every scalar, and refuses duplicate keys, which YAML accepts silently."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except ValueError:  # such as a date with month 13
            value = node.value
        scalar = isinstance(node, yaml.ScalarNode) and not isinstance(value, str)
        return _Scalar(value, node.value) if scalar else value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = _bare(self.construct_object(key_node, deep=True))
            if isinstance(key, (list, dict)) or key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return {_bare(key): value for key, value in super().construct_mapping(node, deep).items()}


def _bare(value: Any, text: bool = False) -> Any:
    """Unwrap scalars at any depth: to their values or, with `text`, to their text."""
    if isinstance(value, _Scalar):
        return value.text if text else value.value
    if isinstance(value, dict):
        return {key: _bare(each, text) for key, each in value.items()}
    return [_bare(each, text) for each in value] if isinstance(value, list) else value


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError("a change needs a key and a value", value=change, remedy="Such as steps=200.")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(
            "the value of a change is not YAML", value=change, remedy="Put it in quotes."
        ) from error
    *parents, last = key.strip().split(".")
    place: Any = values
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"{parent} has no parts", value=change, remedy="Leave out the dot.")
    place[last] = value


def _dataclass(values: Any, kind: type[T], prefix: str, file: str | None) -> T:
    if not isinstance(values, Mapping):
        raise InputError(
            f"{prefix[:-1]} must have parts", file=file, value=_bare(values), remedy="Indent `key: value`."
        )
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            remedy = f'Did you mean "{prefix}{near[0]}"?' if near else f"Known keys: {', '.join(fields)}."
            raise InputError("unknown key", file=file, value=f"{prefix}{key}", remedy=remedy)
    given = {}
    for name, each in fields.items():
        if name in values:
            given[name] = _value(values[name], hints[name], prefix + name, file)
            _limits(given[name], each.metadata, prefix + name, file)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise InputError(
                f'the key "{prefix}{name}" is missing', file=file, remedy=f"Add `{prefix}{name}: …`."
            )
    return kind(**given)


def _value(value: Any, hint: Any, key: str, file: str | None) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(value, typing.cast(type, hint), key + ".", file)
    if origin is Literal:
        value = _bare(value, text=str(_bare(value)) not in map(str, parts))
        if value not in parts or isinstance(value, bool):
            near = difflib.get_close_matches(str(value), [str(part) for part in parts], n=1)
            remedy = f"Did you mean {near[0]}?" if near else "Choose one of them."
            raise InputError(
                f"{key} must be {' or '.join(map(str, parts))}", file=file, value=value, remedy=remedy
            )
        return value
    if origin in (Union, types.UnionType):
        if _bare(value) is None:
            if type(None) in parts:
                return None
            raise _wrong(value, "given", key, file)
        return _value(value, next(part for part in parts if part is not type(None)), key, file)
    if origin is tuple:
        # A single value is a list of one.
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _wrong(value, "one or more", key, file)
        if parts[-1] is not Ellipsis and len(values) != len(parts):
            raise _wrong(value, f"a list of {len(parts)}", key, file)
        kinds = [parts[0]] * len(values) if parts[-1] is Ellipsis else list(parts)
        return tuple(
            _value(one, kind, f"{key}[{n}]", file)
            for n, (one, kind) in enumerate(zip(values, kinds, strict=True))
        )
    if origin is dict or hint is dict:
        if isinstance(value, Mapping):  # also OmegaConf's, as verl gives them
            value = dict(value)
            for name, each in value.items():
                _check_decimal(each, f"{key}.{name}", file)
        value = _bare(value)
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise _wrong(value, "`key: value` lines", key, file)
        return value
    return _plain(value, hint, key, file)


def _plain(value: Any, hint: Any, key: str, file: str | None) -> Any:
    written = value.text if isinstance(value, _Scalar) else ""
    if _bare(value) is None and written:  # otherwise null would be the name of a folder
        raise _wrong(written, f"{_WORDS.get(hint, hint)}, in quotes if this is meant", key, file)
    if hint in (int, float):
        _check_decimal(value, key, file)
    value = _bare(value, text=hint in (Path, str))
    if hint is Path and isinstance(value, str) and value.strip():
        return Path(value).expanduser()
    if hint is float and isinstance(value, str):
        # YAML reads 1e-5, without a dot, as text.
        try:
            value = float(value)
        except ValueError:
            raise _wrong(value, _WORDS[float], key, file) from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise _wrong(value, _WORDS.get(hint, str(hint)), key, file)
    return value


def _check_decimal(value: Any, key: str, file: str | None) -> None:
    if isinstance(value, _Scalar) and _MISREAD.fullmatch(value.text):
        raise _wrong(value.text, f"a number in decimal (YAML reads {value.value})", key, file)


def _limits(value: Any, limits: Mapping[str, float], key: str, file: str | None) -> None:
    if value is None:
        return
    for name, words, broken in (
        ("least", "at least", lambda limit: value < limit),
        ("most", "at most", lambda limit: value > limit),
        ("above", "above", lambda limit: value <= limit),
    ):
        if name in limits and broken(limits[name]):
            raise InputError(
                f"{key} must be {words} {limits[name]:g}", file=file, value=value, remedy="Correct it."
            )


def _wrong(value: Any, expected: str, key: str, file: str | None) -> InputError:
    return InputError(f"{key} must be {expected}", file=file, value=_bare(value), remedy="Correct it.")
