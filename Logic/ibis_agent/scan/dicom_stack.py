"""Frames of a DICOM series → one evenly spaced stack in the patient, or a refusal.

The same rules apply to single files and to frames of multi-frame files: parallel, one per position, evenly spaced, not
sheared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.dicom_choice import listed, telling
from ibis_agent.scan.dicom_header import Frame

_REMEDY = "Choose a complete series, or create an evenly spaced volume from it in 3D Slicer (DICOM module)."


def stacked(
    path: Path, frames: Sequence[Frame], same: Callable[[Frame, Frame], bool]
) -> tuple[list[Frame], np.ndarray, list[str]]:
    """(frames in order, (4, 4) voxel (column, row, frame) → RAS mm, notes).

    Exact copies of a frame are left out. If the frames of one file are already in order, its direction is kept.

    Args:
        same: returns whether two frames have the same values.

    Raises InputError naming the folder or the file.
    """
    for frame in frames:
        if frame.position is None or frame.orientation is None:
            raise InputError("a slice has no position", file=frame.file, remedy=_REMEDY)
    turns = np.array([frame.orientation for frame in frames])
    middle = np.median(turns, axis=0)
    if np.abs(turns - middle).max() > 1e-3:
        odd = frames[int(np.argmax(np.abs(turns - middle).max(axis=1)))]
        value = "\\".join(f"{each:g}" for each in odd.orientation if odd.orientation is not None)  # type: ignore
        raise InputError(
            "the slices of the series are not parallel",
            file=path,
            value=f"{odd.file.name}: {value}",
            remedy=f"Remove localizers and other planes. {_REMEDY}",
        )
    sizes = np.array([(0, 0) if frame.spacing is None else frame.spacing for frame in frames])
    if np.abs(sizes - sizes[0]).max() > 1e-3 * sizes.max(initial=1e-9):
        raise InputError(
            "the slices have different pixel sizes",
            file=path,
            value=" and ".join(sorted({f"{a:g} × {b:g} mm" for a, b in sizes})[:4]),
            remedy=_REMEDY,
        )
    axes = square(middle)
    places = np.array([frame.position for frame in frames])
    along = places @ axes[2]
    order = _order(frames, along)
    kept, notes = _without_copies(path, [frames[n] for n in order], along[order], same)
    places = np.array([frame.position for frame in kept])
    step = _even_step(path, kept, places @ axes[2])
    _check_straight(path, places, axes, step, sizes[0])
    affine = np.eye(4)
    spacing = (*(sizes[0][::-1] if sizes[0].all() else (1.0, 1.0)), step)
    affine[:3, :3] = axes.T * spacing
    affine[:3, 3] = places[0]
    affine[:2] *= -1
    return kept, affine, notes


def square(turn: np.ndarray) -> np.ndarray:
    """(3, 3) unit vectors along the rows, along the columns, and from slice to slice, exactly perpendicular."""
    row, column = turn[:3], turn[3:]
    row = row / np.linalg.norm(row)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return np.array([row, np.cross(normal, row), normal])


def _order(frames: Sequence[Frame], along: np.ndarray) -> np.ndarray:
    if len({frame.file for frame in frames}) == 1 and (np.diff(along) < 0).all():
        return np.arange(len(frames))
    return np.array(
        sorted(range(len(frames)), key=lambda n: (along[n], str(frames[n].file), frames[n].index))
    )


def _without_copies(
    path: Path, frames: list[Frame], along: np.ndarray, same: Callable[[Frame, Frame], bool]
) -> tuple[list[Frame], list[str]]:
    """The frames without copies. Raises InputError for different frames at the same position."""
    kept: list[Frame] = []
    where = 0.0
    for frame, place in zip(frames, along, strict=True):
        if kept and abs(place - where) < 1e-4:
            aside = frame.position - kept[-1].position  # type: ignore[operator]
            if np.linalg.norm(aside) > 1e-3 or not same(kept[-1], frame):
                raise _two_at_one_place(path, frames, kept[-1], frame)
            continue
        kept.append(frame)
        where = float(place)
    dropped = len(frames) - len(kept)
    if not dropped:
        return kept, []
    copies = "1 exact copy of a slice was" if dropped == 1 else f"{dropped} exact copies of slices were"
    return kept, [f"{copies} left out"]


def _two_at_one_place(path: Path, frames: Sequence[Frame], a: Frame, b: Frame) -> InputError:
    differ = telling(frames, a, b)
    names = [each.file.name if a.file != b.file else f"frame {each.index + 1}" for each in (a, b)]
    told = f"{names[0]} and {names[1]}"
    remedy = "Keep one slice per position in the folder, or choose a complete series."
    if differ:
        told += f", {differ} {a.marks[differ]} and {b.marks[differ]}"
        remedy = (
            f"The series has several images at each position. Choose one kind with --series:\n"
            f"{listed(frames, differ)}"
        )
    return InputError(
        "several slices of the series are at the same position", file=path, value=told, remedy=remedy
    )


def _even_step(path: Path, frames: Sequence[Frame], along: np.ndarray) -> float:
    """mm from slice to slice, negative if the order is against the normal. Raises InputError."""
    steps = np.diff(along)
    usual, mean = float(np.median(steps)), float(along[-1] - along[0]) / len(steps)
    drift = np.abs(along - along[0] - mean * np.arange(len(along)))
    uneven = np.abs(steps - usual) > max(0.05 * abs(usual), 0.01)
    if uneven.any() or drift.max() > max(0.1 * abs(mean), 0.01):
        n = int(np.argmax(np.abs(steps - usual)))
        raise InputError(
            "the slices of the series are not evenly spaced; some may be missing",
            file=path,
            value=f"{abs(steps[n]):g} mm after slice {n}, {abs(usual):g} mm elsewhere",
            remedy=_REMEDY,
        )
    return mean


def _check_straight(path: Path, places: np.ndarray, axes: np.ndarray, step: float, size: np.ndarray) -> None:
    """Refuse slices that are shifted sideways, from one to the next or over the whole stack."""
    moved = places - places[0]
    aside = np.linalg.norm(moved - np.outer(moved @ axes[2], axes[2]), axis=1)
    each = float(np.abs(np.diff(aside)).max())
    pixel = float(size.min()) if size.all() else 1.0
    if each > 0.01 * abs(step) + 0.01 or aside.max() > max(0.5 * pixel, 0.1):
        raise InputError(
            "the slices of the series are shifted sideways (gantry tilt)",
            file=path,
            value=f"{aside.max():.2f} mm over the stack",
            remedy=_REMEDY,
        )
