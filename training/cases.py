"""Which pictures and masks there are: a folder, a CSV or a JSON manifest read into cases.

Here names and files only; a case's voxels are read and checked in case_data, and `python -m training.check_cases
SOURCE` does so for a whole data set. What is wrong with one case
becomes a `Problem` and never stops the others.

Folders that are understood:
- pairs beside each other: `scan.nii.gz` with `scan_labels.nii.gz` (or _label, _mask, _seg, _segmentation);
- `images/` with `masks/` or `labels/` (imagesTr and labelsTr too; a channel's `_0000` is passed over), and
  `masks/STRUCTURE/` with one mask a structure;
- one folder a patient, with `segmentations/STRUCTURE.nii.gz` beside the one scan;
- MedSAM2-style `.npz` that hold `gts`.

A mask's values get their names from `NAME.json` beside it (or beside it without the `.nii`), from
`dataset.json` or `labels.json` of the folder, or from `names`: {"1": "liver"} or {"liver": 1}. The key "any"
names whatever is not zero.

A manifest has the columns (or keys) `image` and `mask`, and where wanted `id`, `structure`, `value`, `labels`
("1=liver;2=spleen", an object, or a JSON file), `window_min`, `window_max`, `reverse`. Paths in it are
relative to it. A JSON manifest is a list of objects, or {"labels": …, "cases": [objects]}.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError
from ibis_agent.record import read_json
from ibis_agent.scan_checks import stem

ANY = -1  # as a label's value: whatever is not zero
KINDS = ("manifest", "missing", "duplicate", "unreadable", "size", "place", "nan", "empty", "label", "names")


@dataclass(frozen=True)
class Case:
    """One picture or volume and one mask of it.

    Attributes:
        id: unlike all others of its source.
        image: a scan as ibis_agent.scan reads it.
        mask: a label map of the same size, or a picture; for `.npz` the same file.
        labels: value in the mask → structure; ANY stands for whatever is not zero. Several values may make
            up one structure.
        window: grey values shown as black and white; None where nothing is said.
        reverse: the mask shows the structure in black (pictures only).
        own_labels: the names were given for this case alone, so that each must occur in its mask.
    """

    id: str
    image: Path
    mask: Path
    labels: dict[int, str] = field(hash=False)
    window: tuple[float, float] | None = None
    reverse: bool = False
    own_labels: bool = False

    @property
    def structures(self) -> tuple[str, ...]:
        """The names, each once."""
        return tuple(dict.fromkeys(self.labels.values()))


@dataclass(frozen=True)
class Problem:
    """Something wrong with one case: its kind (one of KINDS), the case, the file, and a sentence for people.

    `skipped`: the case is left out; else only a part of it is.
    """

    kind: str
    case: str
    file: str
    text: str
    skipped: bool = True

    def __str__(self) -> str:
        return f"{self.case}: {self.text}"


def read_cases(source: Path, names: Path | None = None) -> tuple[list[Case], list[Problem]]:
    """The cases of a folder or a manifest, in the order of their ids or rows, and what is wrong with others.

    names: a JSON file with the names of the masks' values, for all cases that bring none of their own.

    Raises InputError for a source that is none at all, and for a `names` file that cannot be read.
    """
    from training.case_folders import in_folder
    from training.case_manifests import in_csv, in_json

    source = Path(source)
    given = None if names is None else read_labels(names)
    if source.is_dir():
        found = list(in_folder(source, given))
    elif source.suffix.lower() == ".csv":
        found = list(in_csv(source, given))
    elif source.suffix.lower() == ".json":
        found = list(in_json(source, given))
    else:
        there = source.exists()
        raise InputError(
            "is no source of cases" if there else "there is no such file or folder",
            file=source,
            mend="Give a folder, a .csv or a .json manifest.",
        )
    cases: list[Case] = []
    problems: list[Problem] = []
    first: dict[str, Case] = {}
    for each in found:
        if isinstance(each, Problem):
            problems.append(each)
        elif each.id in first:
            text = f"the id occurs twice: {first[each.id].image.name} and {each.image.name}"
            problems.append(Problem("duplicate", each.id, str(each.image), text))
        else:
            first[each.id] = each
            cases.append(each)
    if not cases and not problems:
        raise InputError("holds no pictures with masks", file=source, mend=_LAYOUTS)
    return cases, problems


_LAYOUTS = "See the beginning of training/cases.py for the folders that are understood."


def read_labels(file: Path, content: Any = None) -> dict[int, str]:
    """Value → structure from a JSON file: {"1": "liver"}, {"liver": 1}, or either under "labels".

    Raises InputError naming the file.
    """
    content = read_json(file, mend='Such as {"1": "liver", "2": "spleen"}.') if content is None else content
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        content = content["labels"]
    if not isinstance(content, Mapping):
        raise InputError("holds no names of labels", file=file, mend='Such as {"1": "liver"}.')
    labels: dict[int, str] = {}
    for key, value in content.items():
        number, name = (value, key) if label_value(value) is not None else (key, value)
        whole = label_value(number)
        if whole is None or not isinstance(name, str) or not name.strip():
            raise InputError(
                "a label needs a whole number and a name",
                file=file,
                value=f"{key}: {value}",
                mend="Structures that overlap need masks of their own.",
            )
        if whole != 0:
            labels[whole] = plain_name(name)
    if not labels:
        raise InputError("names no label", file=file, mend='Such as {"1": "liver"}.')
    return labels


def plain_name(name: str) -> str:
    """A structure as people say it: "kidney_left" is the left kidney."""
    text = re.sub(r"[_\s]+", " ", name).strip()
    sided = re.fullmatch(r"(.+) (left|right)( \d+)?", text)
    return f"{sided[2]} {sided[1]}{sided[3] or ''}" if sided and "_" in name else text


def refuse(problems: Sequence[Problem]) -> None:
    """Raise InputError for the first problem, if there is one, and say how many there are."""
    if problems:
        first, more = problems[0], len(problems) - 1
        raise InputError(
            f"{first}" + (f" (and {more} more)" if more else ""),
            file=first.file,
            mend="Mend the data, or choose to skip such cases.",
        )


def tally(problems: Sequence[Problem]) -> dict[str, Any]:
    """The problems as a report keeps them: how many of each kind, and each by name."""
    return {
        "count": len(problems),
        "skipped_cases": len({each.case for each in problems if each.skipped}),
        "kinds": dict(sorted(Counter(each.kind for each in problems).items())),
        "each": [{"kind": p.kind, "case": p.case, "file": p.file, "text": p.text} for p in problems],
    }


def names_for(mask: Path, root: Path, names: dict[int, str] | None) -> tuple[dict[int, str], bool]:
    """(labels, whether they are the mask's own). Raises InputError where there are none."""
    own = mask.with_name(f"{stem(mask)}.json")
    if own.is_file():
        return read_labels(own), True
    if names:
        return names, False
    for name in ("dataset.json", "labels.json"):
        for folder in (mask.parent, root):
            if (folder / name).is_file():
                return read_labels(folder / name), False
    raise InputError(
        "nothing says what its values stand for",
        file=mask,
        mend=f'Write {own.name}, such as {{"1": "liver"}}, or labels.json for all.',
    )


def checked(case: Case) -> Iterator[Case | Problem]:
    for file in dict.fromkeys((case.image, case.mask)):
        if not file.exists():
            yield Problem("missing", case.id, str(file), f"there is no file {file.name}")
            return
    yield case


def label_value(value: Any) -> int | None:
    """A label's value; "any" is ANY."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().lower() == "any":
        return ANY
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number == int(number) and (number >= 0 or number == ANY) else None
