"""Which pictures and masks there are: a folder, a CSV or a JSON manifest read into cases.

    python -m training.cases SOURCE          # look through a data set before using it: what is wrong, by name

Here names and files only; a case's voxels are read and checked in case_data. What is wrong with one case
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

import argparse
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibis_agent.errors import IbisError, InputError
from ibis_agent.picture import check_window
from ibis_agent.record import read_json
from ibis_agent.scan_checks import stem, suffix_of

ANY = -1  # as a label's value: whatever is not zero
KINDS = ("manifest", "missing", "duplicate", "unreadable", "size", "place", "nan", "empty", "label", "names")

_SCANS = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd", ".npz")
_ENDINGS = ("_labels", "_label", "_mask", "_masks", "_seg", "_segmentation", "_gt", ".seg", "-mask", "-label")
_IMAGE_FOLDERS = ("images", "imagesTr", "image", "imgs", "volumes", "scans")
_MASK_FOLDERS = ("masks", "labels", "labelsTr", "mask", "label", "gts", "annotations")
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
    source = Path(source)
    given = None if names is None else read_labels(names)
    if source.is_dir():
        found = list(_in_folder(source, given))
    elif source.suffix.lower() == ".csv":
        found = list(_in_csv(source, given))
    elif source.suffix.lower() == ".json":
        found = list(_in_json(source, given))
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


_LAYOUTS = "See python -m training.cases --help for the folders that are understood."


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
        number, name = (value, key) if _number(value) is not None else (key, value)
        whole = _number(number)
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


# ---- manifests -------------------------------------------------------------------------------------------


def _in_csv(path: Path, names: dict[int, str] | None) -> Iterator[Case | Problem]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        dialect = csv.Sniffer().sniff(text[:4096], ",;\t") if text.strip() else csv.excel
        rows = list(csv.DictReader(io.StringIO(text), dialect=dialect))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("cannot be read as CSV", file=path, value=error, mend="Save it as UTF-8.") from error
    _check_columns(rows[0].keys() if rows else (), path)
    for number, row in enumerate(rows, 2):
        yield from _from_row({k: v for k, v in row.items() if v not in (None, "")}, number, path, names)


def _in_json(path: Path, names: dict[int, str] | None) -> Iterator[Case | Problem]:
    content = read_json(path, mend="A manifest is a list of objects with image and mask.")
    if isinstance(content, Mapping):
        if isinstance(content.get("labels"), Mapping):
            names = names or read_labels(path, content["labels"])
        content = content.get("cases")
    if not isinstance(content, list):
        raise InputError("is no list of cases", file=path, mend='Such as [{"image": …, "mask": …}].')
    for number, row in enumerate(content, 1):
        if isinstance(row, Mapping):
            yield from _from_row({k: v for k, v in row.items() if v is not None}, number, path, names)
        else:
            yield Problem("manifest", f"entry {number}", str(path), "is no object with image and mask")


def _check_columns(columns: Any, path: Path) -> None:
    lacking = {"image", "mask"} - set(columns)
    unknown = [each for each in columns if each not in _COLUMNS]
    if lacking or unknown:
        problem = f"has no column {sorted(lacking)[0]}" if lacking else "has an unknown column"
        raise InputError(
            problem, file=path, value=", ".join(map(str, columns)), mend=f"Known: {', '.join(_COLUMNS)}."
        )


def _from_row(
    row: dict[str, Any], number: int, path: Path, names: dict[int, str] | None
) -> Iterator[Case | Problem]:
    name = str(row.get("id", f"{'row' if path.suffix.lower() == '.csv' else 'entry'} {number}"))
    try:
        unknown = [each for each in row if each not in _COLUMNS]
        if unknown:
            raise InputError("has an unknown key", value=unknown[0])
        for key in ("image", "mask"):
            if not isinstance(row.get(key), str):
                raise InputError(f"names no {key}")
        image, mask = (path.parent / row[key] for key in ("image", "mask"))
        labels, own = _labels_of_row(row, path, mask), True
        if not labels:
            labels, own = _names_for(mask, path.parent, names)
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
    yield from _checked(Case(name, image, mask, labels, window, reverse, own))


def _labels_of_row(row: dict[str, Any], path: Path, mask: Path) -> dict[int, str]:
    if "structure" in row:
        value = row.get("value", ANY)
        whole = _number(value)
        if whole is None or whole == 0:
            raise InputError("value must be a whole number but 0", value=value)
        return {whole: plain_name(str(row["structure"]))}
    labels = row.get("labels")
    if labels is None:
        return {}
    if isinstance(labels, str) and "=" in labels:
        parts = (each.split("=", 1) for each in labels.split(";") if each.strip())
        labels = {part[0].strip(): part[1].strip() if len(part) > 1 else "" for part in parts}
    elif isinstance(labels, str):
        return read_labels(path.parent / labels)
    return read_labels(path, labels)


# ---- folders ---------------------------------------------------------------------------------------------


def _in_folder(root: Path, names: dict[int, str] | None) -> Iterator[Case | Problem]:
    for images in _IMAGE_FOLDERS:
        for masks in _MASK_FOLDERS:
            if (root / images).is_dir() and (root / masks).is_dir():
                yield from _two_folders(root, root / images, root / masks, names)
                return
    paths = _scans_in(root)
    taken: set[Path] = set()
    for path in paths:  # one folder a patient
        if path.parent.name == "segmentations":
            taken.add(path)
            beside = [each for each in paths if each.parent == path.parent.parent]
            name = f"{path.parent.parent.relative_to(root).as_posix()}/{stem(path)}".removeprefix("./")
            if len(beside) == 1:
                taken.add(beside[0])
                labels = {ANY: plain_name(stem(path))}
                yield from _checked(Case(name, beside[0], path, labels))
            else:
                text = f"{len(beside)} scans lie beside its folder, one is needed"
                yield Problem("missing", name, str(path), text)
    rest = [each for each in paths if each not in taken]
    masks = {path: bare for path in rest if (bare := _without_ending(path)) is not None}
    images = {_key(root, path): path for path in rest if path not in masks}
    for path, bare in masks.items():
        key = _key(root, path.with_name(bare + suffix_of(path)))
        image = images.pop(key, None)
        if image is None:
            yield Problem("missing", key, str(path), f"there is no picture {bare} for the mask {path.name}")
        else:
            yield from _case_of(root, key, image, path, names)
    for key, path in images.items():
        if suffix_of(path) == ".npz":
            yield from _case_of(root, key, path, path, names or {ANY: "lesion"})
        else:
            yield Problem("missing", key, str(path), "there is no mask for it")


def _two_folders(
    root: Path, images: Path, masks: Path, names: dict[int, str] | None
) -> Iterator[Case | Problem]:
    found: dict[str, list[Path]] = {}
    for path in _scans_in(masks):
        bare = _without_ending(path) or stem(path)
        found.setdefault((path.parent.relative_to(masks) / bare).as_posix(), []).append(path)
    used: set[Path] = set()
    for image in _scans_in(images):
        key = re.sub(r"_0000$", "", (image.parent.relative_to(images) / stem(image)).as_posix())
        own = found.get(key, [])
        split = [  # masks/STRUCTURE/NAME
            (path, path.relative_to(masks).parts[0])
            for other, paths in found.items()
            for path in paths
            if other != key and other.split("/", 1)[-1] == key and "/" in other
        ]
        for path in own[:1]:
            used.add(path)
            yield from _case_of(root, key, image, path, names)
        for path in own[1:]:
            used.add(path)
            text = f"a second mask of the same name: {path.name}"
            yield Problem("duplicate", key, str(path), text)
        for path, structure in split:
            used.add(path)
            yield from _checked(Case(f"{key}/{structure}", image, path, {ANY: plain_name(structure)}))
        if not own and not split:
            yield Problem("missing", key, str(image), "there is no mask for it")
    for key, paths in found.items():
        for path in paths:
            if path not in used:
                yield Problem("missing", key, str(path), f"there is no picture for the mask {path.name}")


def _case_of(
    root: Path, key: str, image: Path, mask: Path, names: dict[int, str] | None
) -> Iterator[Case | Problem]:
    try:
        labels, own = _names_for(mask, root, names)
    except InputError as error:
        yield Problem("names", key, str(mask), str(error))
        return
    yield from _checked(Case(key, image, mask, labels, own_labels=own))


def _names_for(mask: Path, root: Path, names: dict[int, str] | None) -> tuple[dict[int, str], bool]:
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


def _checked(case: Case) -> Iterator[Case | Problem]:
    for file in dict.fromkeys((case.image, case.mask)):
        if not file.exists():
            yield Problem("missing", case.id, str(file), f"there is no file {file.name}")
            return
    yield case


def _scans_in(folder: Path) -> list[Path]:
    files = (each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))
    return sorted(each for each in files if suffix_of(each) in _SCANS)


def _without_ending(path: Path) -> str | None:
    """The picture's name that a mask's name says; None for what is no mask."""
    name = stem(path) + (".seg" if suffix_of(path) == ".seg.nrrd" else "")
    return next((name[: -len(each)] for each in _ENDINGS if name.endswith(each)), None)


def _key(root: Path, path: Path) -> str:
    return (path.parent.relative_to(root) / stem(path)).as_posix()


def _number(value: Any) -> int | None:
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


def main() -> None:
    from training.case_data import load_case

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a folder, a .csv or a .json manifest")
    parser.add_argument("--names", type=Path, help="JSON: the names of the masks' values")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()
    try:
        cases, problems = read_cases(args.source, args.names)
    except IbisError as error:
        raise SystemExit(f"error: {error}") from error
    usable = Counter()  # type: ignore[var-annotated]
    for case in cases:
        loaded, more = load_case(case)
        problems += more
        if loaded is not None:
            usable.update(["cases", *loaded.structures])
    if args.json:
        print(json.dumps({"usable": dict(usable), "problems": tally(problems)}, indent=1))
        return
    print(f"{usable.pop('cases', 0)} cases can be used")
    for name, count in usable.most_common():
        print(f"  {name}: {count}")
    for problem in problems:
        print(f"{problem.kind}: {problem}")


if __name__ == "__main__":
    main()
