"""Reading a scan: a picture, a volume, or a DICOM folder → one Scan in the order of its file.

Nothing is reoriented or resampled here; how a slice of it becomes a picture is in picture and geometry.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .errors import InputError


@dataclass(eq=False)
class Scan:
    """A scan as its file holds it.

    Attributes:
        voxels: (I, J, K) in the file's index order, scalar, in the file's own integer type or float32;
            (H, W, 3) uint8 where kind is "picture".
        affine: (4, 4) voxel index → RAS mm; stands for nothing where kind is "picture".
        kind: "volume" or "picture".
        path: the file or folder it came from.
        name: for people.
        modality: "CT", "MR", another DICOM modality, or "" where nothing says it.
        window: the (minimum, maximum) that the file asks to be shown with, if any.
    """

    voxels: np.ndarray
    affine: np.ndarray
    kind: Literal["volume", "picture"]
    path: Path
    name: str = ""
    modality: str = ""
    window: tuple[float, float] | None = None


def load_scan(path: str | os.PathLike[str], *, series: str | None = None) -> Scan:
    """Read a PNG or JPEG, NIfTI, NRRD, MetaImage, MedSAM2-style .npz, or a DICOM folder.

    Args:
        series: which series of a DICOM folder, by its UID; needed only where there are several.

    Raises InputError naming the file, what is wrong with it, and the mend. What can be seen in the header is
    refused before the voxels are read.
    """
    from . import scan_readers

    path = Path(path)
    if not path.exists():
        raise InputError("there is no such file", file=path, mend="Check the path.")
    if series is not None and not path.is_dir():
        raise InputError("a series can be chosen in a DICOM folder only", file=path, value=series)
    return scan_readers.reader_for(path)(path, series)
