"""A scan as stored in its file: voxels, their positions, and notes on how it was read.

It is not reoriented or resampled. Choosing the reader is in load; converting a slice to a picture is in picture and
geometry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ibis_agent.scan.geometry import Orientation, PictureGeometry, slice_geometry
from ibis_agent.scan.modality import like_ct, likeness_words
from ibis_agent.scan.nifti_place import NiftiPlace


@dataclass(eq=False)
class Scan:
    """A scan as stored in its file.

    Attributes:
        voxels: (I, J, K) in the file's index order, scalar, in the file's own integer type or float32;
            (H, W, 3) uint8 where kind is "picture".
        affine: (4, 4) voxel index → RAS mm; meaningless if kind is "picture".
        kind: "volume" or "picture".
        path: the file or folder it came from.
        name: for display.
        modality: "CT", "MR", another DICOM modality, or "" if unknown.
        window: the display window (minimum, maximum) in the file, if any.
        sized: whether the voxel size is known; if not, one unit of the affine is one voxel.
        inverted: low values are displayed bright (DICOM's MONOCHROME1).
        place: the position fields of a NIfTI header; None for other files.
        notes: for the person, about how the file was read.
        likeness: the result of `like_ct`, if computed from more voxels than these; None computes it here.
    """

    voxels: np.ndarray
    affine: np.ndarray
    kind: Literal["volume", "picture"]
    path: Path
    name: str = ""
    modality: str = ""
    window: tuple[float, float] | None = None
    sized: bool = True
    inverted: bool = False
    place: NiftiPlace | None = None
    notes: tuple[str, ...] = ()
    likeness: tuple[bool, str] | None = None

    def taken_as(self, modality: str) -> Scan:
        """The same scan with the modality chosen by the person, with a note about it."""
        if modality == self.modality:
            return self
        other = f"; the file says {self.modality}" if self.modality else ""
        notes = (*self.notes, f"taken as {modality}, as requested{other}")
        return replace(self, modality=modality, notes=notes)

    def geometry(
        self,
        plane: str = "axial",
        index: int | None = None,
        orientation: Orientation | str = Orientation.RADIOLOGICAL,
    ) -> PictureGeometry:
        """The geometry of one slice of a volume, see `slice_geometry`. Raises InputError naming the file."""
        turned = Orientation(orientation)
        cut = slice_geometry(self.voxels.shape, self.affine, plane, index, turned, self.path)
        return replace(cut, sized=self.sized, place=self.place)

    @property
    def may_be_ct(self) -> bool:
        """Whether a window in Hounsfield units fits: it is a CT or, if the modality is unknown, looks like one."""
        if self.modality or self.kind == "picture":
            return self.modality == "CT"
        return self._likeness[0]

    @property
    def told(self) -> tuple[str, ...]:
        """All notes about how the scan was read, including decisions about the modality."""
        if self.modality or self.kind == "picture" or self.window is not None:
            return self.notes
        return (*self.notes, likeness_words(self._likeness))

    @cached_property
    def _likeness(self) -> tuple[bool, str]:
        return self.likeness or like_ct(self.voxels)
