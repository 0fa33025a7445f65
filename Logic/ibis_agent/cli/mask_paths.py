"""The files for the mask of a run, checked before any slow work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ibis_agent.errors import InputError
from ibis_agent.files import check_not_input
from ibis_agent.mask import MASK_FORMATS
from ibis_agent.mask import files as mask_files
from ibis_agent.scan.geometry import PictureGeometry

REPORT_NAME = "report.dcm"  # of the measurements, beside a DICOM SEG


def mask_paths(
    named: Path | None,
    formats: Sequence[str],
    folder: Path,
    geometry: PictureGeometry,
    volume: bool,
    scan: Path | None,
    inputs: Sequence[Path],
) -> list[Path]:
    """The file given with --mask, or one for each format in the results folder.

    Raises InputError if a format cannot store the mask, or if one of the inputs would be overwritten.
    """
    kind = "picture" if geometry.plane == "picture" else "volume"
    if named is not None:
        if formats:
            remedy = "The extension of --mask determines the format; leave --mask-format out."
            raise InputError("the mask format is given twice", value=formats[0], remedy=remedy)
        mask_files.check_mask_path(named, kind, scan)
        check_not_input(named, inputs)
        return [named]
    formats = formats or (("png",) if kind == "picture" else ("nii.gz",))
    paths = [folder / f"mask{MASK_FORMATS[each]}" for each in dict.fromkeys(formats)]
    for path in paths:
        # A PNG beside other formats shows the mask as displayed; alone it would lose its position in the scan.
        if volume or not (path.suffix == ".png" and len(paths) > 1):
            mask_files.check_mask_path(path, kind, scan)
        check_not_input(path, inputs)
    return paths


def spare_other_kinds(path: Path, *endings: str) -> None:
    """Raises InputError if the file exists and has none of these endings: it may be a scan, given by mistake."""
    if path.is_file() and path.suffix.lower() not in endings:
        remedy = f"Choose another --out, ending in {endings[0]}."
        raise InputError("would be overwritten, and is a file of another kind", file=path, remedy=remedy)
