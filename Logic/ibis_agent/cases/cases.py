"""Find the pictures and masks of a data set: a folder, or a CSV or JSON manifest, read into cases.

Only names and files are checked here. A case's voxels are read and checked in data; `python -m training.check_cases
SOURCE` does so for a whole data set. A problem with one case is reported as a `Problem` and does not stop the others.

Supported folder layouts:
- pairs beside each other: `scan.nii.gz` with `scan_labels.nii.gz` (or _label, _mask, _seg, _segmentation);
- `images/` with `masks/` or `labels/` (imagesTr and labelsTr too; a channel's `_0000` is removed, and further
  channels are ignored), and `masks/STRUCTURE/` with one mask per structure;
- one folder per patient, with `segmentations/STRUCTURE.nii.gz` beside the one scan;
- MedSAM2-style `.npz` with `gts`.

A mask's values get their names from `NAME.json` beside it (NAME without the extension), from the segments of a
`.seg.nrrd`, from `names`, or from `dataset.json` or `labels.json` of the folder: {"1": "liver"}, {"liver": 1} or
{"organ": [1, 2]}. The value "any" stands for everything except zero.

A manifest has the columns (or keys) `image` and `mask`, and optionally `id`, `structure`, `value`, `labels`
("1=liver;2=spleen", an object, or a JSON file), `window_min`, `window_max`, `reverse`. Paths are relative to the
manifest. A JSON manifest is a list of objects, or {"labels": …, "cases": [objects]}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ibis_agent.cases.case import Case, Problem, read_labels
from ibis_agent.errors import InputError


def read_cases(source: Path, names: Path | None = None) -> tuple[list[Case], list[Problem]]:
    """The cases of a folder or a manifest, in the order of their ids or rows, and the problems with others.

    names: a JSON file with the names of the masks' values, for all cases without their own.

    Raises InputError for a source that contains no cases, and for a `names` file that cannot be read.
    """
    from ibis_agent.cases.folders import in_folder
    from ibis_agent.cases.manifests import in_csv, in_json

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
            "is not a folder or manifest of cases" if there else "there is no such file or folder",
            file=source,
            remedy="Give a folder, a .csv or a .json manifest.",
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
        raise InputError("contains no pictures with masks", file=source, remedy=_LAYOUTS)
    return cases, problems


_LAYOUTS = "See the beginning of ibis_agent/cases/cases.py for the supported folder layouts."


def refuse(problems: Sequence[Problem]) -> None:
    """Raise InputError for the first problem, if there is one, with the number of others."""
    if problems:
        first, more = problems[0], len(problems) - 1
        raise InputError(
            f"{first}" + (f" (and {more} more)" if more else ""),
            file=first.file,
            remedy="Correct the data, or choose to skip such cases.",
        )


def tally(problems: Sequence[Problem]) -> dict[str, Any]:
    """The problems for a report: the number of each kind, and the list."""
    return {
        "count": len(problems),
        "skipped_cases": len({each.case for each in problems if each.skipped}),
        "kinds": dict(sorted(Counter(each.kind for each in problems).items())),
        "each": [{"kind": p.kind, "case": p.case, "file": p.file, "text": p.text} for p in problems],
    }
