"""The part of a slice that the models see: the patient's body with a margin, or the whole slice.

In a picture with much air and table, the patient would be small for a small policy. A frame is found once for a range
of slices, so that neighbours stay comparable. It only crops: clicks and masks are converted exactly in both
directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.errors import InputError
from ibis_agent.fields import Fields

Kind = Literal["slice", "body"]  # the values allowed in a model card
KINDS: tuple[Kind, ...] = ("slice", "body")
AIR = -250.0  # HU threshold between air, foam, clothes and the body
MARGIN = 0.04  # fraction of the body's larger side
LEAST_SHARE = 0.02  # fraction of the slice: a smaller "body" is noise, and the whole slice is shown
WORKING_SIDE = 160  # pixels: larger slices are reduced to this size for finding the body
MOST_SLICES = 24  # slices of a range that are examined
BRIDGE_MM = 7.0  # mm; thinner connections are cut: table, clothes, arms that touch the body
BRIDGE_SHARE = 0.018  # the same as a fraction of the slice's larger side, if the pixel size is unknown
LUNG = 3.0  # times the bridge width: deep enough for lung, but not for a gap beside an arm or above a table
_SURELY_AIR, _SHARE_OF_AIR = -500.0, 0.02  # a range with this much below this HU value is CT


@dataclass(frozen=True)
class Frame:
    """Rows `top` to `bottom` and columns `left` to `right` (exclusive) of a slice of (height, width) pixels."""

    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int

    def __post_init__(self) -> None:
        rows, columns = 0 <= self.top < self.bottom <= self.height, 0 <= self.left < self.right <= self.width
        if not rows or not columns:
            raise InputError("the frame is not inside the slice", value=self)

    @classmethod
    def whole(cls, height: int, width: int) -> Frame:
        """The frame of the whole slice."""
        return cls(0, 0, height, width, height, width)

    @property
    def is_whole(self) -> bool:
        return (self.top, self.left, self.bottom, self.right) == (0, 0, self.height, self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the frame."""
        return self.bottom - self.top, self.right - self.left

    def prompt_inward(self, prompt: Prompt) -> Prompt:
        """Convert a click or box from slice to frame coordinates. Raises InputError for a box outside the frame."""
        return _moved(prompt, self.inward)

    def prompt_outward(self, prompt: Prompt) -> Prompt:
        """Convert a click or box from frame to slice coordinates."""
        return _moved(prompt, self.outward)

    def clicks_inward(self, clicks: Sequence[Prompt]) -> list[Prompt]:
        """Convert clicks from slice to frame coordinates."""
        return [self.prompt_inward(each) for each in clicks]

    def to_json(self) -> dict[str, int]:
        """Plain values, for records; `frame_from` reads them."""
        return dataclasses.asdict(self)

    def crop(self, values: np.ndarray) -> np.ndarray:
        """Crop (height, width, …) to the frame; a view. Raises InputError for another size."""
        if values.shape[:2] != (self.height, self.width):
            raise InputError(
                "the frame belongs to a slice of another size", value=f"{self} and {values.shape[:2]}"
            )
        return values[self.top : self.bottom, self.left : self.right]

    def paste(self, values: np.ndarray) -> np.ndarray:
        """Pad a cropped array to (height, width, …) with zeros. Raises InputError for another size."""
        if values.shape[:2] != self.shape:
            raise InputError("the array does not fit the frame", value=f"{values.shape[:2]} and {self.shape}")
        whole = np.zeros((self.height, self.width, *values.shape[2:]), dtype=values.dtype)
        whole[self.top : self.bottom, self.left : self.right] = values
        return whole

    def inward(self, x: float, y: float) -> tuple[float, float]:
        """Convert a normalised point from slice to frame; one outside is moved to the edge."""
        return (
            _mapped(x, self.width, self.left, self.right, inward=True),
            _mapped(y, self.height, self.top, self.bottom, inward=True),
        )

    def outward(self, x: float, y: float) -> tuple[float, float]:
        """Convert a normalised point from frame to slice: it stays on the same pixel."""
        return (
            _mapped(x, self.width, self.left, self.right, inward=False),
            _mapped(y, self.height, self.top, self.bottom, inward=False),
        )


def find_frame(
    slices: np.ndarray, spacing: tuple[float, float] | None = None, threshold: float | None = None
) -> Frame:
    """One frame around the body in all `slices`.

    Args:
        slices: (H, W) or (N, H, W) grey values of one range: HU, MR signal or a picture's grey.
        spacing: (row, column) mm, if known.
        threshold: values above are body; None takes AIR where the values are HU, otherwise a threshold between dark
            and bright (Otsu).

    The body is the largest connected part of each slice after cutting thin connections, so that table, clothes and
    separate arms stay outside. Dark regions inside belong to it: lungs behind a thin wall, a dark liver in MR. If no
    body is found, the frame is the whole slice. Raises InputError for an array of another form.
    """
    stack = slices[None] if slices.ndim == 2 else slices
    if stack.ndim != 3 or not stack.size:
        raise InputError("a frame needs slices of (H, W) pixels", value=slices.shape)
    count, height, width = stack.shape
    step = max(1, -(-max(height, width) // WORKING_SIDE))
    every = np.unique(np.linspace(0, count - 1, min(count, MOST_SLICES)).round().astype(int))
    small = np.nan_to_num(stack[every, ::step, ::step].astype(np.float32))
    limit = body_threshold(small) if threshold is None else threshold
    if spacing is None:
        reach = BRIDGE_SHARE * max(height, width) / step
    else:
        reach = BRIDGE_MM / (step * float(np.mean(spacing)))
    deep = LUNG * reach if limit == AIR else 0.0
    boxes = [box for each in small if (box := _body_box(_filled(each > limit, deep), reach)) is not None]
    if not boxes:
        return Frame.whole(height, width)
    found = np.array(boxes)
    top, left = found[:, :2].min(0) * step
    bottom, right = found[:, 2:].max(0) * step
    margin = round(MARGIN * max(bottom - top, right - left))
    return Frame(
        max(0, int(top) - margin),
        max(0, int(left) - margin),
        min(height, int(bottom) + margin),
        min(width, int(right) + margin),
        height,
        width,
    )


def body_threshold(values: np.ndarray) -> float:
    """The threshold between background and body: AIR if some values are air in HU, otherwise from the values
    themselves.

    MR and pictures: half-way between the background and Otsu's threshold (Otsu 1979, IEEE Trans. SMC 9:62), because
    fat or muscle may be dark.
    """
    if np.mean(values < _SURELY_AIR) > _SHARE_OF_AIR:
        return AIR
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.0)))
    if low >= high:
        return high
    counts, edges = np.histogram(np.clip(values, low, high), 128)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    total = np.cumsum(counts * middles)
    apart = (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return low + 0.5 * (float(middles[int(np.argmax(below * above * apart))]) - low)


def _filled(above: np.ndarray, deep: float) -> np.ndarray:
    """Fill enclosed regions that are deeper than `deep` pixels."""
    from scipy import ndimage  # not installed everywhere

    enclosed = ndimage.binary_fill_holes(above) & ~above
    if not enclosed.any():
        return above
    holes, count = ndimage.label(enclosed)
    depths = ndimage.maximum(ndimage.distance_transform_edt(enclosed), holes, np.arange(1, count + 1))
    return above | np.isin(holes, 1 + np.flatnonzero(np.asarray(depths) > deep))


def _body_box(above: np.ndarray, reach: float) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of the largest part thicker than twice `reach` pixels; None if there is no body."""
    from scipy import ndimage

    if above.all():
        return 0, 0, *above.shape
    # The slice's edge is not the end of the body, which may continue beyond it.
    labels, count = ndimage.label(ndimage.distance_transform_edt(above) > reach)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    core = labels == int(sizes.argmax())
    body = above & (ndimage.distance_transform_edt(~core) <= reach + 1)
    if body.sum() < LEAST_SHARE * above.size:
        return None
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _mapped(value: float, size: int, first: int, last: int, *, inward: bool) -> float:
    """Convert one normalised coordinate into or out of the frame; the int() rule gives the same pixel."""
    inside = last - first
    if inward:
        exact, count = (value * size - first) / inside, inside
        pixel = min(max(min(max(int(value * size), 0), size - 1) - first, 0), inside - 1)
    else:
        exact, count = (value * inside + first) / size, size
        pixel = min(max(int(value * inside), 0), inside - 1) + first
    # Rounding may move a point on a pixel's edge to the neighbour: then use the middle of the pixel.
    return exact if int(exact * count) == pixel and 0 <= exact <= 1 else (pixel + 0.5) / count


def frame_from(fields: Fields) -> Frame | None:
    """The "frame" of a record's picture or volume; None if the models saw all of it.

    Raises InputError naming the field.
    """
    if fields.value("frame", None) is None:
        return None
    inside = fields.inside("frame")
    sides = [inside.whole(each.name, 0) for each in dataclasses.fields(Frame)]
    return inside.checked(lambda: Frame(*sides))


def _moved(prompt: Prompt, move: Callable[[float, float], tuple[float, float]]) -> Prompt:
    if isinstance(prompt, Box):
        return Box(*move(prompt.x0, prompt.y0), *move(prompt.x1, prompt.y1))
    assert isinstance(prompt, Click)
    x, y = move(prompt.x, prompt.y)
    return replace(prompt, x=x, y=y)
