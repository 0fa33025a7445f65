"""Pictures in a record: PNG in base64, their geometry, and their orientation. No torch here."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ibis_agent.fields import Fields
from ibis_agent.mask.masks import MOST_PIXELS
from ibis_agent.policy.card import ModelCard
from ibis_agent.scan.body_region import Subject
from ibis_agent.scan.frame import frame_from
from ibis_agent.scan.geometry import Orientation, PictureGeometry, slice_geometry
from ibis_agent.scan.picture import Picture


class RecordedPictures(Mapping[int, Picture]):
    """The pictures of a record by slice, decoded on demand, because a volume has many.

    All are checked at the beginning, and only the last one used is kept decoded.
    """

    def __init__(self) -> None:
        self._fields: dict[int, Fields] = {}
        self._last: tuple[int, Picture] | None = None

    def add(self, fields: Fields) -> Picture:
        """Check and add a recorded picture. Raises InputError naming the field."""
        picture = picture_from_json(fields)
        self._fields[picture.geometry.index] = fields
        self._last = picture.geometry.index, picture
        return picture

    def __getitem__(self, index: int) -> Picture:
        if self._last is None or self._last[0] != index:
            self._last = index, picture_from_json(self._fields[index])
        return self._last[1]

    def __iter__(self) -> Iterator[int]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, index: object) -> bool:
        return index in self._fields


def picture_to_json(
    picture: Picture, source: str = "", orientation: str | None = None, png: bool = True
) -> dict[str, Any]:
    """A picture in the form of the record: PNG in base64, and its geometry.

    png: False leaves out the pixels.
    """
    return {
        "source": source,
        "geometry": picture.geometry.to_json(),
        "frame": None if picture.frame is None else picture.frame.to_json(),
        "window": None if picture.window is None else list(picture.window),
        "orientation": orientation or orientation_of(picture.geometry),
        "height": picture.rgb.shape[0],
        "width": picture.rgb.shape[1],
        "sha256": _sha256(picture.rgb),
        **({"png": _to_png(picture.rgb)} if png else {}),
        **({"notes": list(picture.notes)} if picture.notes else {}),
    }


def picture_from_json(record: Any) -> Picture:
    """The reverse of `picture_to_json`. Raises InputError naming the field."""
    fields = record if isinstance(record, Fields) else Fields(record)
    height, width = fields.whole("height", 1), fields.whole("width", 1)
    if height * width > MOST_PIXELS:
        raise fields.error("height", f"describes a picture of more than {MOST_PIXELS} pixels")
    values = dict(fields.inside("geometry").values)
    geometry = fields.checked(lambda: PictureGeometry.from_json(values), "geometry")
    if (geometry.height, geometry.width) != (height, width):
        raise fields.error("geometry", f"does not match a picture of {height} × {width}")
    window = fields.value("window", None)
    if window is not None:
        low, high = (each.plain_number() for each in fields.list_of("window", count=2))
        window = (low, high)
        if not low < high:
            raise fields.error("window", "must be two increasing numbers")
    rgb = _from_png(fields, height, width)
    if fields.text("sha256") != _sha256(rgb):
        raise fields.error("sha256", "does not match the picture: it was changed")
    frame = frame_from(fields)
    if frame is not None and (frame.height, frame.width) != (height, width):
        raise fields.error("frame", f"does not match a picture of {height} × {width}")
    notes = fields.value("notes", None) or []
    told = tuple(str(note) for note in notes if isinstance(note, str))
    return Picture(rgb, geometry, window, told, frame)


def subject_to_json(subject: Subject) -> dict[str, str]:
    """The known values, stored with the picture of a slice or the description of a volume."""
    return {name: value for name, value in dataclasses.asdict(subject).items() if value}


def subject_from_json(record: Any) -> Subject:
    """The reverse of `subject_to_json`. Raises InputError naming the field."""
    fields = record if isinstance(record, Fields) else Fields(record)
    return Subject(fields.text("modality", ""), fields.text("region", ""))


def orientation_of(geometry: PictureGeometry, card: ModelCard | None = None) -> str | None:
    """ "radiological", "upstream", or None for a photograph and for other orientations.

    Some files (LAS) look the same either way; then it is the orientation of the policy's card.
    """
    if geometry.plane == "picture":
        return None
    first = Orientation.RADIOLOGICAL if card is None else card.orientation
    for orientation in sorted(Orientation, key=lambda each: each is not first):
        plane = "xyz"[geometry.axis]
        usual = slice_geometry(geometry.shape, geometry.affine, plane, geometry.index, orientation)
        turned = (geometry.row_axis, geometry.col_axis, geometry.flip_rows, geometry.flip_cols)
        if turned == (usual.row_axis, usual.col_axis, usual.flip_rows, usual.flip_cols):
            return orientation.value
    return None


def orientation_from(fields: Fields) -> str | None:
    if fields.value("orientation", None) is None:
        return None
    return fields.choice("orientation", [each.value for each in Orientation])


def _sha256(rgb: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).hexdigest()


def _to_png(rgb: np.ndarray) -> str:
    from PIL import Image

    buffer, grey = io.BytesIO(), rgb[..., 0]
    one = bool((rgb == grey[..., None]).all())  # three equal channels need twice the time and space
    Image.fromarray(np.ascontiguousarray(grey if one else rgb)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_png(fields: Fields, height: int, width: int) -> np.ndarray:
    from PIL import Image

    try:
        data = base64.b64decode(fields.text("png"), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # The header contains the size: compare it before decoding.
            if image.size != (width, height):
                raise fields.error("png", f"is not a picture of {height} × {width}")
            rgb = np.array(image.convert("RGB"))
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise fields.error("png", "is not a PNG in base64") from error
    rgb.setflags(write=False)
    return rgb
