"""A scan as its file holds it, and which reader reads it.

Nothing is reoriented or resampled; how a slice becomes a picture is in picture and geometry. Each scan_*
module reads one kind of file: it refuses from the header what cannot be used, then decodes the voxels once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

_FAT = -50  # Hounsfield units


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

    @cached_property
    def may_be_ct(self) -> bool:
        """Whether a window in Hounsfield units fits: it is a CT or, where nothing says what it is, there is air.

        Only a CT has values this far below zero; what is cut out of one without any air or fat does not tell.
        """
        if self.modality or self.kind == "picture":
            return self.modality == "CT"
        # One slice may stand for all (see workbench.scan_of): it need not be searched again and again.
        once = tuple(np.s_[:1] if stride == 0 else np.s_[:] for stride in self.voxels.strides)
        return bool(np.fmin.reduce(self.voxels[once], axis=None) < _FAT)  # the least that is a number
