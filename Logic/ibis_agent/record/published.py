"""Read and write trajectories in the format of the published generator.

One JSON object per picture: `file`, `type`, `mask_file`, `nii_data` or `img_data`, and `trajectory`, a list
of {`step`, `coords_norm`, `coords_original`, `mask_rle`}; a list may contain several objects. That format lacks some
things that training needs. We add them as further keys, which the published programs ignore:

- `positive` in every step, true or false: the sign of the click. If a foreign file lacks it, it is recovered
  from the masks: the generator's click is positive exactly if the previous mask does not contain it. Such
  steps are marked (`sign_recovered`).
- `question` and `answer` of the object, if known.
- `ibis_record` of a converted run: its whole record. Sub-pixel clicks, the frame, thinking and orientation are
  restored from it, if the steps have not been changed.

Our own format is in trajectory.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from ibis_agent import files
from ibis_agent.actions import Box, Click, Terminate
from ibis_agent.errors import InputError
from ibis_agent.fields import Fields, read_json
from ibis_agent.mask.masks import decode_rle, encode_rle
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.episode import Step
from ibis_agent.scan.geometry import Orientation, PictureGeometry, slice_geometry
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut

_KNOWN = ("file", "type", "mask_file", "nii_data", "img_data", "trajectory", "question", "answer")
_RECORD = "ibis_record"
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True, eq=False)
class PublishedStep:
    """One click of a published trajectory.

    Attributes:
        column, row: the clicked pixel.
        positive: the click's sign.
        mask: (H, W) bool after the click.
        sign_recovered: the file did not contain the sign.
    """

    column: int
    row: int
    positive: bool
    mask: np.ndarray
    sign_recovered: bool = False


@dataclass(frozen=True, eq=False)
class PublishedTrajectory:
    """One object of a published file.

    Attributes:
        file, mask_file: names as in the file.
        kind: "nii" or "img".
        shape: (H, W) of the picture.
        steps: in order.
        nii_data, img_data: as in the file; `kind` determines which one is present.
        question, answer: None if missing.
        further: all other keys of the object, unchanged.
    """

    file: str
    kind: str
    shape: tuple[int, int]
    steps: tuple[PublishedStep, ...]
    mask_file: str = ""
    nii_data: dict[str, Any] | None = None
    img_data: dict[str, Any] | None = None
    question: str | None = None
    answer: str | None = None
    further: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object in the form of the file."""
        height, width = self.shape
        values: dict[str, Any] = {
            **self.further,
            "file": self.file,
            "type": self.kind,
            "mask_file": self.mask_file,
            "nii_data": self.nii_data,
            "img_data": self.img_data,
            "trajectory": [
                {
                    "step": number,
                    "coords_norm": [step.column / width, step.row / height],
                    "coords_original": [step.column, step.row],
                    "mask_rle": encode_rle(step.mask),
                    "positive": step.positive,
                }
                for number, step in enumerate(self.steps)
            ],
        }
        texts = {"question": self.question, "answer": self.answer}
        return {**values, **{key: text for key, text in texts.items() if text is not None}}


def load(path: str | os.PathLike[str]) -> list[PublishedTrajectory]:
    """Read the objects of a published file, which contains one or a list.

    Raises InputError naming the file, the field and its value.
    """
    content = read_json(path, remedy="Use a file of the published trajectory generator.")
    if isinstance(content, list):
        return [_object_from(Fields(each, path, f"[{n}]")) for n, each in enumerate(content)]
    return [_object_from(Fields(content, path))]


def save(path: str | os.PathLike[str], trajectories: Sequence[PublishedTrajectory]) -> None:
    """Write one object, or a list of several. Raises OutputError."""
    objects = [each.to_json() for each in trajectories]
    files.write_json(path, objects[0] if len(objects) == 1 else objects)


def from_trajectory(
    trajectory: Trajectory,
    file: str | None = None,
    mask_file: str = "",
    mask_number: int | None = None,
    *,
    reverse: bool = False,
) -> PublishedTrajectory:
    """Convert one of our trajectories to the published form, in its own orientation.

    Args:
        file: the name of the scan or picture to write; None uses the recorded source.
        mask_file, mask_number: the expert's mask and the label value in it, if there is one.
        reverse: the structure is black in the expert's mask picture.

    Raises InputError for scans other than NIfTI files (the published programs read no others), and for boxes, which the
    published format does not support.
    """
    if any(isinstance(step.action, Box) for step in trajectory.steps):
        raise InputError(
            "the published format does not support boxes",
            file=file,
            remedy="Convert only runs without boxes.",
        )
    name = trajectory.source if file is None else file
    geometry = trajectory.picture.geometry
    parts: dict[str, Any] = {}
    if geometry.plane == "picture":
        upright = geometry
        suffix = os.path.splitext(name)[1].lstrip(".").lower()
        size = [geometry.width, geometry.height]
        parts["img_data"] = {"format": suffix, "size": size, "reverse": reverse}
    else:
        if not name.lower().endswith(_NIFTI):
            raise InputError(
                "the published format supports only pictures and NIfTI scans",
                file=name or None,
                remedy="Save the scan as NIfTI and run the agent on that.",
            )
        axis = "xyz"[geometry.axis]
        upright = slice_geometry(geometry.shape, geometry.affine, axis, geometry.index, Orientation.UPSTREAM)
        window = trajectory.picture.window
        parts["nii_data"] = {
            "size": list(geometry.shape),
            "slice_dir": axis,
            "slice_idx": geometry.index,
            "slice_size": [upright.height, upright.width],
            "mask_number": mask_number,
            "window": None if window is None else list(window),
        }
    steps = tuple(
        _turned(step.action, step.mask, geometry, upright)
        for step in trajectory.steps
        if isinstance(step.action, Click)
    )
    return PublishedTrajectory(
        file=name,
        kind="img" if "img_data" in parts else "nii",
        shape=(upright.height, upright.width),
        steps=steps,
        mask_file=mask_file,
        question=trajectory.question,
        answer=trajectory.answer,
        **parts,
    )


def from_record(record: Trajectory) -> list[PublishedTrajectory]:
    """The published form of a record: one object for a single slice; for a volume, one for every slice with clicks.

    Raises InputError for a volume without clicks, and like `from_trajectory`.
    """
    if record.alone:
        return [_with_record(record)]
    clicked = sorted({each.index for each in record.actions if each.kind == "click"})
    if not clicked:
        raise InputError(
            "this volume has no slice with clicks",
            remedy="The published format contains clicks and their masks.",
        )
    return [_with_record(record.on_slice(index)) for index in clicked]


def _with_record(record: Trajectory) -> PublishedTrajectory:
    return dataclasses.replace(from_trajectory(record), further={_RECORD: record.to_json()})


def _recorded(published: PublishedTrajectory, question: str | None) -> Trajectory | None:
    """The record included in a published trajectory, if its steps are unchanged. Raises InputError."""
    if _RECORD not in published.further:
        return None
    record = Trajectory.from_json(published.further[_RECORD])
    if (
        not record.alone
        or from_trajectory(record).to_json()["trajectory"] != published.to_json()["trajectory"]
    ):
        return None
    return record if question is None else dataclasses.replace(record, question=question)


def to_trajectory(
    published: PublishedTrajectory, folder: str | os.PathLike[str], question: str | None = None
) -> Trajectory:
    """Convert a published trajectory to ours: the picture is read from the scan in `folder`.

    For a converted run, this is its own record, if the steps are unchanged. Otherwise the steps count as a person's
    (the expert's), without thinking, scores or times; an answer becomes the last step. Only files inside `folder` are
    opened, regardless of the path in the record.

    Raises InputError if the scan is missing or its size differs from the record.
    """
    path = _inside(Path(folder), published.file)
    scan = load_scan(path)
    if published.nii_data is None:
        picture = cut(scan)
    else:
        data = published.nii_data
        if list(scan.voxels.shape) != list(data["size"]):
            raise InputError(
                "the size of the scan differs from the record", file=path, value=scan.voxels.shape
            )
        picture = cut(scan, data["slice_dir"], data["slice_idx"], data["window"], Orientation.UPSTREAM)
    height, width = published.shape
    if picture.rgb.shape[:2] != (height, width):
        raise InputError(
            "the size of the picture differs from the record",
            file=path,
            value=f"{picture.rgb.shape[:2]} instead of {(height, width)}",
        )
    recorded = _recorded(published, question)
    if recorded is not None:
        return recorded
    steps = [
        Step(
            number,
            # The middle of the pixel, which the published rule maps to this pixel.
            Click((each.column + 0.5) / width, (each.row + 0.5) / height, each.positive),
            "person",
            each.mask,
            logits=None,
            score=None,
        )
        for number, each in enumerate(published.steps, 1)
    ]
    if published.answer is not None:
        mask = steps[-1].mask if steps else np.zeros(published.shape, dtype=bool)
        steps.append(Step(len(steps) + 1, Terminate(published.answer), "person", mask, None, None))
    return Trajectory.of_slice(
        picture,
        question or published.question or "",
        steps,
        status="ended" if published.answer is not None else "ready",
        source=path.name,
        orientation=None if published.nii_data is None else Orientation.UPSTREAM.value,
    )


def _object_from(fields: Fields) -> PublishedTrajectory:
    kind = fields.choice("type", ("nii", "img"))
    data = fields.inside(f"{kind}_data")
    if kind == "nii":
        height, width = (_side(each, data) for each in data.list_of("slice_size", count=2))
        _check_slice(data, (height, width))
    else:
        width, height = (_side(each, data) for each in data.list_of("size", count=2))
    shape = (height, width)
    steps: list[PublishedStep] = []
    for each in fields.list_of("trajectory"):
        steps.append(_step_from(each, shape, steps[-1].mask if steps else np.zeros(shape, dtype=bool)))
    return PublishedTrajectory(
        file=fields.text("file"),
        kind=kind,
        shape=shape,
        steps=tuple(steps),
        mask_file=_text_or_none(fields, "mask_file") or "",
        nii_data=dict(data.values) if kind == "nii" else None,
        img_data=dict(data.values) if kind == "img" else None,
        question=_text_or_none(fields, "question"),
        answer=_text_or_none(fields, "answer"),
        further={key: value for key, value in fields.values.items() if key not in _KNOWN},
    )


def _step_from(fields: Fields, shape: tuple[int, int], before: np.ndarray) -> PublishedStep:
    column, row = (each.plain_number() for each in fields.list_of("coords_original", count=2))
    height, width = shape
    if column != int(column) or row != int(row) or not (0 <= column < width and 0 <= row < height):
        raise fields.error("coords_original", f"is not a pixel of a picture of {height} × {width}")
    text = fields.text("mask_rle")
    mask = fields.checked(lambda: decode_rle(text, shape), "mask_rle")
    mask.setflags(write=False)
    known = "positive" in fields.values
    positive = fields.flag("positive") if known else not bool(before[int(row), int(column)])
    return PublishedStep(int(column), int(row), positive, mask, sign_recovered=not known)


def _check_slice(data: Fields, shape: tuple[int, int]) -> None:
    axis = "xyz".index(data.choice("slice_dir", ("x", "y", "z")))
    size = [_side(each, data) for each in data.list_of("size", count=3)]
    index = data.whole("slice_idx", 0)
    if index >= size[axis]:
        raise data.error("slice_idx", f"is outside a scan of {size}")
    across = [size[each] for each in range(3) if each != axis]
    if shape != (across[1], across[0]):
        raise data.error(
            "slice_size", f"does not match a slice perpendicular to {'xyz'[axis]} of a scan of {size}"
        )
    if data.value("window", None) is not None:
        low, high = (each.plain_number() for each in data.list_of("window", count=2))
        if not low < high:
            raise data.error("window", "must be two increasing numbers")


def _side(item: Fields, data: Fields) -> int:
    side = item.plain_number()
    if side != int(side) or not 1 <= side <= 2**20:
        raise data.error(item.path, "must be a whole number of pixels", value=side)
    return int(side)


def _text_or_none(fields: Fields, key: str) -> str | None:
    return None if fields.value(key, None) is None else fields.text(key)


def _turned(click: Click, mask: np.ndarray, old: PictureGeometry, new: PictureGeometry) -> PublishedStep:
    """A click and its mask, converted from one orientation of the slice to another."""
    if old is new:
        row, column = old.pixel(click.x, click.y)
        return PublishedStep(column, row, click.positive, mask)
    row, column = new.pixel(*new.from_patient(*old.to_patient(click.x, click.y)))
    turned = _thin(new).extract(_thin(old).embed_mask(mask)) != 0
    return PublishedStep(column, row, click.positive, turned)


def _thin(geometry: PictureGeometry) -> PictureGeometry:
    """The geometry in a scan of only that slice, to avoid creating a whole volume."""
    shape = [1 if axis == geometry.axis else side for axis, side in enumerate(geometry.shape)]
    return dataclasses.replace(geometry, shape=(shape[0], shape[1], shape[2]), index=0)


def _inside(folder: Path, name: str) -> Path:
    """`name` below `folder`: its relative path if that stays inside, otherwise its last part."""
    relative = PurePosixPath(name.replace("\\", "/"))
    if not relative.is_absolute() and not PureWindowsPath(name).drive and ".." not in relative.parts:
        whole = folder / relative
        if whole.is_file():
            return whole
    last = folder / relative.name
    if not relative.name or not last.is_file():
        raise InputError(
            "the scan of the record is missing",
            file=folder,
            value=name,
            remedy="Give the folder that contains it (convert: --scans DIR).",
        )
    return last
