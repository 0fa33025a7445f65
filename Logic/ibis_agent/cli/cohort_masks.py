"""The masks given for each scan of a cohort, found from patterns, folders and columns before any scan is read.

--start-mask '{scan}_liver.nii.gz'     # {scan}: the scan's path without its extension
--start-mask '{folder}/seg/liver.nii'  # {folder}: the scan's folder
--start-mask 'masks/{name}.seg.nrrd'   # {name}: the scan's name without its extension
--start-mask masks                     # a folder of masks with the same names as the scans
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ibis_agent.cli.cohort_scans import Entry, plain_name
from ibis_agent.cli.given_masks import MaskFiles
from ibis_agent.errors import InputError
from ibis_agent.scan.checks import stem, suffix_of

_MASKS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".png")
_WORDS = ("{scan}", "{folder}", "{name}")
_NAMES = 5  # of scans, in an error


def with_masks(entries: Sequence[Entry], asked: MaskFiles) -> list[Entry]:
    """The entries with the files of their masks. Files named in a manifest take precedence.

    Masks in the folder of the scans are not taken for scans. Raises InputError naming the scans whose mask is missing.
    """
    starts = [(name, _Place(path, "--start-mask", len(entries))) for name, path in asked.start]
    out = None if asked.exclude is None else _Place(asked.exclude, "--exclude", len(entries))
    made = []
    for entry in entries:
        start = entry.start or tuple((name, place.of(entry)) for name, place in starts)
        made.append(replace(entry, start=start, exclude=entry.exclude or (out.of(entry) if out else "")))
    starts_of = next((entry.start for entry in made if any(path for _, path in entry.start)), ())
    out_of = next((Path(entry.exclude) for entry in made if entry.exclude), asked.exclude)
    given = tuple((name, Path(path)) for name, path in starts_of) or asked.start
    replace(asked, start=given, exclude=out_of).check()
    masks = {Path(path).resolve() for entry in made for path in _files(entry)}
    made = [entry for entry in made if Path(entry.scan).resolve() not in masks]
    for place in [*(place for _, place in starts), *([] if out is None else [out])]:
        place.check({entry.name for entry in made})
    for entry in made:
        for path in _files(entry):
            if not Path(path).is_file():
                raise InputError("the mask named in the manifest is missing", file=path, value=entry.name)
    return made


def _files(entry: Entry) -> list[str]:
    return [path for path in (*(path for _, path in entry.start), entry.exclude) if path]


def masks_of(entry: Entry, asked: MaskFiles) -> MaskFiles:
    """The masks for the run of this entry."""
    start = tuple((name, Path(path)) for name, path in entry.start if path)
    exclude = Path(entry.exclude) if entry.exclude else None
    return MaskFiles(
        start,
        asked.label if start else None,
        exclude,
        asked.exclude_labels if exclude is not None else (),
    )


class _Place:
    """Where the masks are: a pattern, or a folder of masks with the same names as the scans."""

    def __init__(self, where: Path, option: str, scans: int) -> None:
        self._where, self._option = str(where), option
        self._missing: dict[str, str] = {}
        self._files: dict[str, list[Path]] | None = None
        self._used: dict[Path, dict[str, Path]] = {}  # mask of the folder → name and folder of its scans
        if any(word in self._where for word in _WORDS):
            return
        if not where.is_dir():
            if scans > 1 or not where.is_file():
                raise InputError(
                    f"in a cohort, {option} must be a folder of masks, or a path with {{scan}}, {{folder}} or {{name}}",
                    file=where,
                    remedy=f"For example: {option} '{{scan}}_liver.nii.gz'.",
                )
            return
        self._files = {}
        for path in sorted(where.rglob("*")):
            if path.is_file() and suffix_of(path) in _MASKS:
                for name in {plain_name(path, where), plain_name(Path(path.name), Path())}:
                    self._files.setdefault(name, []).append(path)

    def of(self, entry: Entry) -> str:
        """The file for one scan; empty if it is missing, which `check` reports."""
        scan = Path(entry.scan)
        own_name = stem(scan)
        if self._files is None:
            named = {"{scan}": str(scan.parent / own_name), "{folder}": str(scan.parent), "{name}": own_name}
            text = self._where
            for word, value in named.items():
                text = text.replace(word, value)
            found = [Path(text)] if Path(text).is_file() else []
        else:
            text = f"{self._where}/{entry.name}"
            own = plain_name(Path(f"{own_name}.nii"), Path())
            found = self._files.get(entry.name) or self._files.get(own, [])
        if len(found) > 1:
            raise InputError(
                f"two masks have the name of the scan {entry.name}",
                file=found[0],
                value=str(found[1]),
                remedy="Remove one of them from the folder.",
            )
        if not found:
            self._missing[entry.name] = text
        elif self._files is not None:
            self._used.setdefault(found[0], {})[entry.name] = scan.parent.resolve()
        return str(found[0]) if found else ""

    def check(self, names: Collection[str]) -> None:
        """Raises InputError if a scan has no mask, or scans of several folders have the same. names: of the scans."""
        missing = [name for name in self._missing if name in names]
        if missing:
            said = ", ".join(missing[:_NAMES]) + (", …" if len(missing) > _NAMES else "")
            raise InputError(
                f"{len(missing)} of {len(names)} scans have no mask for {self._option}: {said}",
                file=self._missing[missing[0]],
                remedy="Leave them out, or use a manifest with a column start_mask or exclude, which may be empty.",
            )
        for path, scans in self._used.items():
            shared = {name: folder for name, folder in scans.items() if name in names}
            if len(set(shared.values())) > 1:
                raise InputError(
                    f"scans of several folders would have the same mask for {self._option}: "
                    + ", ".join(list(shared)[:_NAMES]),
                    file=path,
                    remedy="Put the masks into folders like the scans, or use a manifest with a column start_mask or "
                    "exclude.",
                )
