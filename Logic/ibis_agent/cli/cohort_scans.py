"""The scans of a cohort: a folder, a glob, or a manifest (CSV, JSON, Parquet), as a list of entries.

Only names are checked here; a scan that cannot be read is reported when it is processed.
"""

from __future__ import annotations

import difflib
import functools
import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ibis_agent.cases.manifests import beside, read_csv
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.scan.checks import stem, suffix_of

_VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz")
_PICTURES = (".png", ".jpg", ".jpeg")
_DICOM = (".dcm", ".ima")
_MANIFESTS = (".csv", ".json", ".parquet")
_KEYS = ("scan", "name", "prompt", "series", "start_mask", "exclude")
_COLUMNS = "scan (a path), and optionally name, prompt and series, start_mask, exclude"


@dataclass(frozen=True)
class Entry:
    """One scan of a cohort.

    Attributes:
        name: of its folder in the results, unique.
        scan: file or DICOM folder.
        question: its own question; empty for the cohort's.
        series: which series of a DICOM folder; empty if there is only one.
        start: (structure, file) of the masks to start from, see given_masks.
        exclude: the file with the excluded voxels; empty for none.
    """

    name: str
    scan: str
    question: str = ""
    series: str = ""
    start: tuple[tuple[str, str], ...] = ()
    exclude: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def entries_of(source: str) -> list[Entry]:
    """The scans that `source` names, in a fixed order. Raises InputError if there are none."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() in _MANIFESTS:
        found = list(_from_manifest(path))
    elif path.is_dir():
        found = [Entry(plain_name(scan, path), str(scan)) for scan in scans_in(path)]
    else:
        # A pattern may also match other files; for DICOM files, the entry is their folder.
        matched = [Path(each) for each in sorted(glob.glob(source, recursive=True))]
        scans = [
            each for each in matched if each.is_dir() or suffix_of(each) in (*_VOLUMES, *_PICTURES, *_DICOM)
        ]
        root = _common(scans)
        found = [Entry(plain_name(scan, root), str(scan)) for scan in scans]
    if not found:
        raise InputError(
            "there are no scans",
            file=source,
            remedy="Give a folder of scans, a pattern in quotes, or a manifest (CSV, JSON, Parquet).",
        )
    taken: dict[str, int] = {}
    entries = []
    for each in found:
        taken[each.name] = taken.get(each.name, 0) + 1
        count = taken[each.name]
        entries.append(each if count == 1 else replace(each, name=f"{each.name}-{count}"))
    if len({each.name for each in entries}) < len(entries):
        raise InputError(
            "two scans in the manifest have the same name", file=source, remedy="Give them different names."
        )
    return entries


def scans_in(root: Path) -> Iterator[Path]:
    """Scan files below a folder, and the folders that contain DICOM files, sorted by name."""
    here = sorted(root.iterdir())
    files = [each for each in here if each.is_file() and not each.name.startswith(".")]
    if any(_is_dicom(each) for each in files):
        yield root
    for path in here:
        if path.is_dir() and path.resolve() in (root.resolve(), *root.resolve().parents):
            continue  # a link to a folder that contains it
        if path.is_dir() and not path.name.startswith("."):
            yield from scans_in(path)
        elif suffix_of(path) in (*_VOLUMES, *_PICTURES) and path in files:
            yield path


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in _DICOM:
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _from_manifest(path: Path) -> Iterator[Entry]:
    for number, row in enumerate(_rows(path), 1):
        texts = _texts(row, f"row {number} of the manifest", path)
        if "scan" not in texts:
            raise InputError(
                f"row {number} of the manifest has no scan", file=path, remedy=f"Its columns are {_COLUMNS}."
            )
        # Paths are relative to the manifest.
        start, exclude = (str(beside(path, texts[key])) if key in texts else "" for key in _KEYS[-2:])
        yield Entry(
            plain_name(Path(texts.get("name") or texts["scan"]), Path()),
            str(beside(path, texts["scan"])),
            texts.get("prompt", ""),
            texts.get("series", ""),
            (("", start),) if start else (),
            exclude,
        )


def _texts(row: Any, where: str, path: Path) -> dict[str, str]:
    """The texts of a row by known column. Other columns are ignored, but a misspelt one is refused (InputError)."""
    if not isinstance(row, Mapping):
        raise InputError(
            f"{where} is not an object", file=path, value=row, remedy=f"Its keys are {_COLUMNS}."
        )
    found = {}
    for column, value in row.items():
        key = re.sub(r"[\s-]+", "_", str(column).strip()).casefold()
        meant = _meant(key)
        if not meant or value is None or value != value:  # Parquet's empty numbers are NaN
            continue
        if key != meant:
            raise InputError(
                "the manifest has an unknown column",
                file=path,
                value=column,
                remedy=f"Rename it to {meant}, or remove it.",
            )
        if isinstance(value, (bool, list, Mapping)):
            remedy = "Give one text; several structures in one question, or a row for each."
            raise InputError(f"{where}: {key} is not a text", file=path, value=value, remedy=remedy)
        if text := str(value).strip():
            found[key] = text
    return found


@functools.cache
def _meant(key: str) -> str:
    """The column that a name stands for, also misspelt; "" for other columns."""
    return next(iter(difflib.get_close_matches(key, _KEYS, 1, 0.8)), "")


def _rows(path: Path) -> Sequence[Any]:
    kind = path.suffix.lower()
    if kind == ".csv":
        return read_csv(path)
    if kind == ".json":
        rows = read_json(path, f"A manifest is a list of objects with {_COLUMNS}.")
        rows = rows.get("scans") if isinstance(rows, dict) else rows
        if not isinstance(rows, list):
            raise InputError("the manifest is not a list", file=path, remedy=f"Its columns are {_COLUMNS}.")
        return rows
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError("reading Parquet needs pyarrow", file=path, remedy="pip install pyarrow") from error
    try:
        return list(parquet.read_table(path).to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError("the manifest cannot be read", file=path, value=str(error)) from error


def _common(paths: Iterable[Path]) -> Path:
    parents = [each.parent for each in paths]
    if not parents:
        return Path()
    root = parents[0]
    while not all(root == each or root in each.parents for each in parents):
        root = root.parent
    return root


def plain_name(path: Path, root: Path) -> str:
    """A folder name for a scan: its path below the root, without the extension and without unusual characters."""
    relative = path.relative_to(root) if root != path and root in path.parents else None
    text = str(relative.with_name(stem(path)) if relative else stem(path if path.name else path.resolve()))
    return re.sub(r"[^\w.-]+", "_", text.replace("..", "_")).strip("._") or "scan"
