"""The position fields of a NIfTI header, kept unchanged so that a mask gets identical numbers.

Programs have different rules for choosing between the two transforms of a header (sform, qform). A mask with both of
them, their codes and their unit matches its scan in each of those programs. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibis_agent.errors import InputError

_CODES = ("not set", "scanner", "aligned", "Talairach", "MNI", "template")
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # of one metre, of one micrometre
_FIELDS = ("pixdim", "quatern", "qoffset", "srow")
_SIZES = dict(zip(_FIELDS, (4, 3, 3, 12), strict=True))


@dataclass(frozen=True)
class NiftiPlace:
    """The fields of a NIfTI header that determine the position of its voxels, in the header's own unit.

    Attributes:
        pixdim: qfac and the voxel sizes along i, j, k.
        quatern, qoffset, qform_code: the qform.
        srow, sform_code: the sform, row by row.
        units: xyzt_units: 1 metres, 2 millimetres, 3 micrometres, 0 unknown (taken as millimetres).
        version: 1 or 2.
        itk: (16,) the affine to RAS mm used by ITK, row by row; empty if it equals `affine`.
    """

    pixdim: tuple[float, ...]
    quatern: tuple[float, ...]
    qoffset: tuple[float, ...]
    qform_code: int
    srow: tuple[float, ...]
    sform_code: int
    units: int
    version: int = 1
    itk: tuple[float, ...] = ()

    @classmethod
    def of(cls, header: Any) -> NiftiPlace:
        """From an unchanged nibabel header. A transform with invalid numbers counts as not set."""
        rows = np.concatenate([header[f"srow_{axis}"] for axis in "xyz"])
        turn = [header[f"quatern_{each}"] for each in "bcd"]
        offset = [header[f"qoffset_{axis}"] for axis in "xyz"]
        turned = np.isfinite([*turn, *offset]).all()
        return cls(
            _finite(header["pixdim"][:4]),
            _finite(turn),
            _finite(offset),
            int(header["qform_code"]) if turned else 0,
            _finite(rows) if np.isfinite(rows).all() else (0.0,) * 12,
            int(header["sform_code"]),
            int(header["xyzt_units"]) & 7,
            1 if int(header["sizeof_hdr"]) == 348 else 2,
        )

    def fill(self, header: Any) -> None:
        """Write these fields into a nibabel header."""
        header["pixdim"][:4] = self.pixdim
        for letter, value in zip("bcd", self.quatern, strict=True):
            header[f"quatern_{letter}"] = value
        for n, axis in enumerate("xyz"):
            header[f"qoffset_{axis}"] = self.qoffset[n]
            header[f"srow_{axis}"] = self.srow[4 * n : 4 * n + 4]
        header["qform_code"], header["sform_code"] = self.qform_code, self.sform_code
        header["xyzt_units"] = self.units

    @property
    def sform(self) -> np.ndarray | None:
        """(4, 4) to RAS mm; None if it is not set or an axis is zero."""
        affine = np.vstack([np.reshape(self.srow, (3, 4)), (0, 0, 0, 1)]) * self._scale
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        return affine if self.sform_code > 0 and lengths.min() > 0 else None

    @property
    def qform(self) -> np.ndarray | None:
        """(4, 4) to RAS mm; None if it is not set. An invalid quaternion is normalised, as in ITK.

        The formula: nifti1.h, method 2.
        """
        if self.qform_code <= 0:
            return None
        b, c, d = np.array(self.quatern) / max(1.0, float(np.linalg.norm(self.quatern)))
        a = np.sqrt(max(1 - b * b - c * c - d * d, 0.0))
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        sizes = self.sizes
        affine = np.eye(4)
        affine[:3, :3] = turn * (sizes[0], sizes[1], sizes[2] * (-1 if self.pixdim[0] < 0 else 1))
        affine[:3, 3] = self.qoffset
        return affine * self._scale

    @property
    def sizes(self) -> list[float]:
        """The voxel sizes from pixdim, in the header's unit; 1 if missing."""
        return [abs(size) or 1.0 for size in self.pixdim[1:]]

    def affine(self, shape: Sequence[int]) -> tuple[np.ndarray, bool, list[str]]:
        """((4, 4) to RAS mm, whether the voxel size is known, notes).

        The sform if set, otherwise the qform, otherwise nibabel's default.
        """
        sform, qform = self.sform, self.qform
        sized = all(size != 0 for size, side in zip(self.pixdim[1:], shape, strict=True) if side > 1)
        unsized = [] if sized else ["the file contains no voxel size (pixdim): measurements are in pixels"]
        if any(size < 0 for size in self.pixdim[1:]):
            unsized.append("a voxel size below 0 (pixdim): its sign was ignored")
        if sform is not None:
            return sform, True, self._apart(sform, qform, shape) or self._other_sizes(sform, shape)
        if qform is not None:
            empty = ["its sform is empty: the qform was used"] if self.sform_code > 0 else []
            if np.linalg.norm(self.quatern) > 1.001:
                empty.append("its qform is not a rotation: it was normalised, as in ITK")
            return qform, sized, empty + unsized
        if self.sform_code > 0 and not any(self.srow):
            raise InputError("the affine is singular: a voxel size is zero", value="an sform of zeros")
        if self.sform_code > 0:
            return np.vstack([np.reshape(self.srow, (3, 4)), (0, 0, 0, 1)]) * self._scale, True, []
        lost = "neither sform nor qform is set: left and right may be swapped"
        sizes = np.array(self.sizes) * (-1, 1, 1)
        affine = np.diag([*sizes, 1.0])
        affine[:3, 3] = -sizes * (np.array(shape) - 1) / 2
        return affine * self._scale, sized, [lost, *unsized]

    def _apart(self, sform: np.ndarray, qform: np.ndarray | None, shape: Sequence[int]) -> list[str]:
        if qform is None or not all(self.pixdim[1:]):
            return []
        corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape], [1])).reshape(4, -1)
        apart = np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max()
        least = np.linalg.norm(sform[:3, :3], axis=0).min()
        if apart <= 0.1 * least:
            return []
        names = [_CODES[n] if n < len(_CODES) else str(n) for n in (self.sform_code, self.qform_code)]
        where = f"sform ({names[0]}) and qform ({names[1]}) differ by {apart:.3g} mm"
        return [f"{where}: the sform was used; masks keep both"]

    def _other_sizes(self, sform: np.ndarray, shape: Sequence[int]) -> list[str]:
        """ITK, and so 3D Slicer, uses the directions of the sform and the sizes of pixdim."""
        own = np.linalg.norm(sform[:3, :3], axis=0)
        other = np.array(self.sizes) * self._scale[0, 0]
        known = [side > 1 and size != 0 for side, size in zip(shape, self.pixdim[1:], strict=True)]
        if not (np.abs(own - other) > 0.01 * own)[known].any():
            return []
        told = (" × ".join(f"{size:.3g}" for size in sizes) for sizes in (own, other))
        return [
            "the voxel size is {} mm in the sform and {} mm in pixdim: the sform was used, as in nibabel".format(
                *told
            )
        ]

    @property
    def _scale(self) -> np.ndarray:
        return np.array([[_MILLIMETRES.get(self.units, 1.0)]] * 3 + [[1.0]])

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        whole = ("qform_code", "sform_code", "units", "version")
        record: dict[str, Any] = {name: list(getattr(self, name)) for name in _FIELDS}
        record |= {name: getattr(self, name) for name in whole}
        return {**record, "itk": list(self.itk)} if self.itk else record

    @classmethod
    def from_json(cls, record: Any) -> NiftiPlace:
        """The reverse of `to_json`. Raises InputError."""
        try:
            lists: dict[str, Any] = {name: tuple(float(each) for each in record[name]) for name in _FIELDS}
            whole: dict[str, Any] = {
                name: int(record[name]) for name in ("qform_code", "sform_code", "units", "version")
            }
            itk = tuple(float(each) for each in record.get("itk", ()))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError("the NIfTI fields of the geometry cannot be read", value=str(error)) from error
        if (
            any(len(lists[name]) != size for name, size in _SIZES.items())
            or len(itk) not in (0, 16)
            or not np.isfinite([*sum(lists.values(), ()), *itk]).all()
            or whole["version"] not in (1, 2)
            or not all(0 <= whole[name] < 2**15 for name in ("qform_code", "sform_code"))
            or not 0 <= whole["units"] < 8
        ):
            raise InputError("the NIfTI fields of the geometry are invalid", value=record)
        return cls(**lists, **whole, itk=itk)


def _finite(values: Any) -> tuple[float, ...]:
    return tuple(float(each) if np.isfinite(each) else 0.0 for each in np.asarray(values, np.float64))
