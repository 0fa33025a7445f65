"""The files for the mask of a run, checked before any slow work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ibis_agent.errors import InputError
from ibis_agent.mask import MASK_FORMATS
from ibis_agent.mask import files as mask_files
from ibis_agent.scan.geometry import PictureGeometry


def mask_paths(
    named: Path | None,
    formats: Sequence[str],
    folder: Path,
    geometry: PictureGeometry,
    volume: bool,
    scan: Path | None,
) -> list[Path]:
    """The file given with --mask, or one for each format in the results folder.

    Raises InputError if a format cannot store the mask, or if the scan would be overwritten.
    """
    kind = "picture" if geometry.plane == "picture" else "volume"
    if named is not None:
        if formats:
            remedy = "The extension of --mask determines the format; leave --mask-format out."
            raise InputError("the mask format is given twice", value=formats[0], remedy=remedy)
        mask_files.check_mask_path(named, kind, scan)
        _spare_the_scan(scan, [named])
        return [named]
    formats = formats or (("png",) if kind == "picture" else ("nii.gz",))
    paths = [folder / f"mask{MASK_FORMATS[each]}" for each in dict.fromkeys(formats)]
    for path in paths:
        # A PNG beside other formats shows the mask as displayed; alone it would lose its position in the scan.
        if volume or not (path.suffix == ".png" and len(paths) > 1):
            mask_files.check_mask_path(path, kind, scan)
    _spare_the_scan(scan, paths)
    return paths


def _spare_the_scan(scan: Path | None, paths: list[Path]) -> None:
    for path in paths:
        if scan is not None and path.resolve() == scan.resolve():
            remedy = "Choose another --out or --mask."
            raise InputError("the mask would overwrite the scan", file=path, remedy=remedy)
