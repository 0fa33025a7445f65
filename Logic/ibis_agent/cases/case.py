"""One labelled case (a picture with its mask), and the kinds of problems with cases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.mask.segmentations import numbered, segments_of
from ibis_agent.scan.checks import stem, suffix_of

ANY = -1  # as a label's value: everything except zero
Labels = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """One picture or volume with its mask.

    Attributes:
        id: unique within its source.
        image: a scan that ibis_agent.scan can read.
        mask: a label map of the same size, or a picture; for `.npz` the same file.
        labels: structure → its values in the mask; ANY means everything except zero. A value may belong to several
            structures. For a .seg.nrrd, the values are segment numbers, see segmentations.numbered.
        window: grey values shown as black and white; None if not given.
        reverse: the structure is black in the mask (pictures only).
        own_labels: the names were given only for this case, so each must occur in its mask.
    """

    id: str
    image: Path
    mask: Path
    labels: Labels = field(hash=False)
    window: tuple[float, float] | None = None
    reverse: bool = False
    own_labels: bool = False

    @property
    def structures(self) -> tuple[str, ...]:
        """The names, without duplicates."""
        return tuple(self.labels)


@dataclass(frozen=True)
class Problem:
    """A problem with one case: its kind (such as "missing" or "place"), the case, the file, and a message.

    `skipped`: the whole case is skipped; otherwise only a part of it.
    """

    kind: str
    case: str
    file: str
    text: str
    skipped: bool = True

    def __str__(self) -> str:
        return f"{self.case}: {self.text}"


def read_labels(file: Path, content: Any = None) -> Labels:
    """Structure → values from a JSON file: {"1": "liver"}, {"liver": 1}, or either under "labels".

    A structure may consist of several values, as in a region-based dataset.json: {"organ": [1, 2]}. "background" with
    the value 0 and "ignore" are not structures. Raises InputError naming the file.
    """
    content = (
        read_json(file, remedy='For example: {"1": "liver", "2": "spleen"}.') if content is None else content
    )
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        content = content["labels"]
    if not isinstance(content, Mapping):
        raise InputError("contains no label names", file=file, remedy='Such as {"1": "liver"}.')
    labels: Labels = {}
    for key, value in content.items():
        named = isinstance(value, (list, tuple)) or label_value(value) is not None
        name, numbers = (key, value) if named else (value, key)
        values = [
            label_value(each) for each in (numbers if isinstance(numbers, (list, tuple)) else [numbers])
        ]
        if None in values or not values or not isinstance(name, str) or not name.strip():
            raise InputError(
                "a label needs a whole number and a name",
                file=file,
                value=f"{key}: {value}",
                remedy='Give a structure with several values as a list: {"organ": [1, 2]}.',
            )
        kept = [each for each in values if each]
        if kept and name.strip().lower() != "ignore":
            known = labels.get(plain_name(name), ())
            labels[plain_name(name)] = tuple(dict.fromkeys((*known, *kept)))
    if not labels:
        raise InputError("contains no label", file=file, remedy='Such as {"1": "liver"}.')
    return labels


def plain_name(name: str) -> str:
    """The common name of a structure: "kidney_left" is the left kidney."""
    text = re.sub(r"[_\s]+", " ", name).strip()
    sided = re.fullmatch(r"(.+) (left|right)( \d+)?", text)
    return f"{sided[2]} {sided[1]}{sided[3] or ''}" if sided and "_" in name else text


def names_for(mask: Path, root: Path, names: Labels | None) -> tuple[Labels, bool]:
    """(labels, whether they are given for this mask only). Raises InputError if there are none.

    names: for all masks of the data set, if given.
    """
    own = mask.with_name(f"{stem(mask)}.json")
    if own.is_file():
        return read_labels(own), True
    if suffix_of(mask) == ".seg.nrrd" and mask.is_file():
        segments = numbered(segments_of(mask))
        if segments:
            return _joined({number: each.name for number, each in segments.items()}), True
    if names:
        return names, False
    for name in ("dataset.json", "labels.json"):
        for folder in (mask.parent, root):
            if (folder / name).is_file():
                return read_labels(folder / name), False
    raise InputError(
        "the names of its values are unknown",
        file=mask,
        remedy=f'Create {own.name}, for example {{"1": "liver"}}, or labels.json for all masks.',
    )


def _joined(names: Mapping[int, str]) -> Labels:
    labels: Labels = {}
    for number, name in names.items():
        labels[plain_name(name)] = (*labels.get(plain_name(name), ()), number)
    return labels


def checked(case: Case) -> Iterator[Case | Problem]:
    """The case, or a problem if one of its files is missing."""
    for file in dict.fromkeys((case.image, case.mask)):
        if not file.exists():
            yield Problem("missing", case.id, str(file), f"there is no file {file.name}")
            return
    yield case


def label_value(value: Any) -> int | None:
    """A label's value: a whole number from 0, or ANY for "any"; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().lower() == "any":
        return ANY
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number == int(number) and (number >= 0 or number == ANY) else None
