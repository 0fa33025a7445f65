"""Which files a run's mask goes to, checked before anything is worked on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ibis_agent.errors import InputError
from ibis_agent.mask import MASK_FORMATS
from ibis_agent.mask import files as mask_files
from ibis_agent.scan.geometry import PictureGeometry


class Asked(Protocol):
    """What of a request says where its mask goes."""

    @property
    def scan(self) -> Path | None: ...

    @property
    def mask(self) -> Path | None: ...

    @property
    def mask_formats(self) -> Sequence[str]: ...


def mask_paths(request: Asked, folder: Path, geometry: PictureGeometry, volume: bool) -> list[Path]:
    """In the folder, or the one that was named. Raises InputError for what cannot hold the mask, or is the scan."""
    kind = "picture" if geometry.plane == "picture" else "volume"
    if request.mask is not None:
        if request.mask_formats:
            remedy = "The extension of --mask determines the format; leave --mask-format out."
            raise InputError("the mask format is given twice", value=request.mask_formats[0], remedy=remedy)
        mask_files.check_mask_path(request.mask, kind, request.scan)
        _spare_the_scan(request, [request.mask])
        return [request.mask]
    formats = request.mask_formats or (("png",) if kind == "picture" else ("nii.gz",))
    paths = [folder / f"mask{MASK_FORMATS[each]}" for each in dict.fromkeys(formats)]
    for path in paths:
        # A PNG beside other formats shows the mask as displayed; alone it would lose its position in the scan.
        if volume or not (path.suffix == ".png" and len(paths) > 1):
            mask_files.check_mask_path(path, kind, request.scan)
    _spare_the_scan(request, paths)
    return paths


def _spare_the_scan(request: Asked, paths: list[Path]) -> None:
    for path in paths:
        if request.scan is not None and path.resolve() == request.scan.resolve():
            remedy = "Choose another --out or --mask."
            raise InputError("the mask would overwrite the scan", file=path, remedy=remedy)
