"""The pictures that questions are asked about: slices of cases, and phantoms, with their ground truth.

Pictures are cut by the agent's own code, in the orientation and window that it will see. Questions and clicks are in
trajectories.expert.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np
from ibis_agent.cases.case import ANY, Case, Problem
from ibis_agent.cases.data import LoadedCase, load_case
from ibis_agent.errors import IbisError, InputError
from ibis_agent.scan.checks import stem
from ibis_agent.scan.frame import Kind, find_frame
from ibis_agent.scan.geometry import Orientation, PictureGeometry, slice_geometry
from ibis_agent.scan.picture import Picture, apply_window, cut
from ibis_agent.scan.scan import Scan
from scipy import ndimage

from training.phantoms.phantom import STRUCTURES, random_slice

PHANTOM_WINDOW = (-160.0, 240.0)
# Above the seeds of measurements and of the demo models' training data (from 1 · 10⁹ and 2 · 10⁹).
PHANTOM_SEEDS = 3_000_000_000


@dataclass(frozen=True)
class Choice:
    """The slices and structures of a source to ask about.

    Attributes:
        planes: "axial", "coronal", "sagittal", or the file's own axes "x", "y", "z".
        slices: "shown" (all that show a structure), "all", or voxel indices as text.
        every: every Nth of them; per_plane: at most this many, evenly spread. Zero: no limit.
        structures: names; empty for all.
        joined: further structures of phantoms, each a union: ("both kidneys", ("left kidney", "right kidney")).
        mask_values: label values; empty for all.
        least_area: smallest structure to ask for, as a share of the picture.
        orientation: of the slices.
        window: (black, white) grey values; None for the case's own, or the agent's choice.
        card_window: the policy's window, used for CT and what may be CT if nothing else gives one.
        frame: what the models see of a scan's slice: the whole "slice", or the "body".
        reverse_mask: in masks of pictures, black is the structure.
    """

    planes: tuple[str, ...] = ("axial",)
    slices: str = "shown"
    every: int = 1
    per_plane: int = 0
    structures: tuple[str, ...] = ()
    joined: tuple[tuple[str, tuple[str, ...]], ...] = ()
    mask_values: tuple[int, ...] = ()
    least_area: float = 0.001
    orientation: str = Orientation.RADIOLOGICAL.value
    window: tuple[float, float] | None = None
    reverse_mask: bool = False
    card_window: tuple[float, float] | None = None
    frame: Kind = "slice"


@dataclass(eq=False)
class Shown:
    """One picture and what it shows.

    Attributes:
        key: unique in its source, such as "patient 3/axial-012".
        scan: digest of the scan's voxels, whatever its file is called.
        picture: as the agent cuts it.
        truths: structure → (H, W) bool, for those large enough to ask for.
        traces: the same for smaller ones, which are neither asked for nor absent.
        absent: labelled structures that this picture does not show.
        file, masks: the scan's file, and structure → (mask file, value or None); empty for phantoms.
        reverse: in the mask, black is the structure.
    """

    key: str
    picture: Picture
    truths: dict[str, np.ndarray]
    traces: dict[str, np.ndarray] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    file: Path | None = None
    masks: dict[str, tuple[Path, int | None]] = field(default_factory=dict)
    reverse: bool = False
    scan: str = ""


@dataclass(frozen=True)
class Group:
    """All cases of one scan, so that it is read and embedded only once; or one phantom."""

    key: str
    cases: tuple[Case, ...] = ()
    phantom: int | None = None


def groups_of(cases: Sequence[Case]) -> list[Group]:
    """The cases grouped by scan, in order. Every group has a unique key."""
    by_scan: dict[Path, list[Case]] = {}
    for case in cases:
        by_scan.setdefault(case.image.resolve(), []).append(case)
    groups: list[Group] = []
    taken: set[str] = set()
    for together in by_scan.values():
        key = together[0].id
        if len(together) > 1:
            parts = zip(*(each.id.split("/") for each in together), strict=False)
            alike = takewhile(lambda names: len(set(names)) == 1, parts)
            key = "/".join(names[0] for names in alike) or stem(together[0].image)
        number = 1
        while (name := key if number == 1 else f"{key}-{number}") in taken:
            number += 1
        taken.add(name)
        groups.append(Group(name, tuple(together)))
    return groups


def phantom_groups(count: int, seed: int) -> list[Group]:
    """`count` phantoms; different seeds share no phantom."""
    first = PHANTOM_SEEDS + seed * 10_000_000
    return [Group(f"phantom-{seed}-{n:05d}", phantom=first + n) for n in range(count)]


class Source:
    """A group that has been read, and its pictures one by one.

        source = Source(group, choice)
        source.problems            # what is wrong with its cases
        for place in source.places:
            shown = source.show(place)

    Attributes:
        places: (plane, index) of every chosen picture.
        scan: digest of the scan, see Shown.
    """

    def __init__(self, group: Group, choice: Choice) -> None:
        self.group, self.choice = group, choice
        self.problems: list[Problem] = []
        self.places: list[tuple[str, int]] = [("picture", 0)]
        self.scan = "" if group.phantom is None else f"phantom-{group.phantom}"
        if group.phantom is not None:
            return
        self._scan: Scan | None = None
        self._regions: dict[str, _Region] = {}
        self._absent: list[str] = []
        for case in group.cases:
            if choice.reverse_mask:
                case = dataclasses.replace(case, reverse=True)
            if not _wanted(case, choice):
                continue
            loaded, problems = load_case(case, scan=self._scan)
            self.problems += problems
            if loaded is not None:
                self._scan = loaded.scan
                self._take(loaded)
        if self._scan is None:
            self.places = []
            return
        self.scan = digest_of(self._scan)
        if self._scan.kind == "volume":
            self.places = [place for plane in choice.planes for place in self._chosen(plane)]

    def show(self, place: tuple[str, int]) -> Shown | Problem:
        """The picture at one of the `places`, or a Problem if it cannot be cut."""
        if self.group.phantom is not None:
            return dataclasses.replace(_phantom(self.group, self.choice), scan=self.scan)
        assert self._scan is not None
        plane, index = place
        flat = self._scan.kind == "picture"
        case = self.group.cases[0]
        name = self.group.key if flat else f"{self.group.key}/{plane}-{index:03d}"
        try:
            if flat:
                picture = cut(self._scan)
            else:
                window = self.choice.window or case.window or self._card_window(self._scan)
                turned = self.choice.orientation
                picture = cut(self._scan, plane, index, window, turned, frame=self.choice.frame)
        except IbisError as error:
            text = str(InputError(error.problem, value=error.value))
            return Problem("unreadable", name, str(case.image), text)
        truths = {each: region.in_picture(picture.geometry) for each, region in self._regions.items()}
        shown = _sorted_out(name, picture, truths, self._absent, self.choice.least_area)
        shown.scan = self.scan
        shown.file, shown.reverse = case.image, case.reverse or self.choice.reverse_mask
        shown.masks = {each: region.origin for each, region in self._regions.items()}
        return shown

    def _card_window(self, scan: Scan) -> tuple[float, float] | None:
        return self.choice.card_window if scan.window is None and scan.may_be_ct else None

    def _take(self, loaded: LoadedCase) -> None:
        boxes = _boxes(loaded.labels)
        for name, values in loaded.structures.items():
            if self.choice.mask_values:
                chosen = self.choice.mask_values
                values = chosen if ANY in values else tuple(value for value in values if value in chosen)
            if not values or (self.choice.structures and name not in self.choice.structures):
                continue
            found = [box for value, box in boxes.items() if ANY in values or value in values]
            if not found:
                continue
            box = _around(found)
            part = loaded.labels[box]
            inside = part != 0 if ANY in values else np.isin(part, values)
            number = values[0] if len(values) == 1 and values[0] != ANY else None
            region = _Region(loaded.labels.shape, box, inside, (loaded.case.mask, number))
            if name in self._regions:  # a second mask of the same structure
                region = region.joined(self._regions[name])
            self._regions[name] = region
        self._absent += [
            name
            for name in loaded.absent
            if name not in self._absent and (not self.choice.structures or name in self.choice.structures)
        ]

    def _chosen(self, plane: str) -> Iterator[tuple[str, int]]:
        assert self._scan is not None
        geometry = slice_geometry(
            self._scan.voxels.shape, self._scan.affine, plane, None, Orientation(self.choice.orientation)
        )
        count = self._scan.voxels.shape[geometry.axis]
        if self.choice.slices in ("shown", "all"):
            indices = list(range(count))
            if self.choice.slices == "shown":
                least = self.choice.least_area * geometry.height * geometry.width
                areas = [region.areas(geometry.axis) for region in self._regions.values()]
                indices = [n for n in indices if any(each[n] >= max(1, least) for each in areas)]
        else:
            indices = []
            for word in self.choice.slices.split(","):
                if 0 <= int(word) < count:
                    indices.append(int(word))
                else:
                    text = f"there is no {plane} slice {int(word)}, it has {count}"
                    file = str(self.group.cases[0].image)
                    self.problems.append(Problem("label", self.group.key, file, text, skipped=False))
        indices = indices[:: self.choice.every]
        most = self.choice.per_plane
        if most and len(indices) > most:
            indices = [indices[int((n + 0.5) * len(indices) / most)] for n in range(most)]
        return ((plane, index) for index in indices)


class _Region:
    """One structure's voxels, stored for their bounding box only."""

    def __init__(
        self,
        shape: tuple[int, ...],
        box: tuple[slice, ...],
        part: np.ndarray,
        origin: tuple[Path, int | None],
    ) -> None:
        self.shape, self.origin = shape, origin
        self._box, self._part = box, part

    def whole(self) -> np.ndarray:
        inside = np.zeros(self.shape, bool)
        inside[self._box] = self._part
        return inside

    def joined(self, other: _Region) -> _Region:
        """The union of both, with this one's origin."""
        box = _around([self._box, other._box])
        part = np.zeros([each.stop - each.start for each in box], bool)
        for region in (self, other):
            within = [
                slice(b.start - a.start, b.stop - a.start) for a, b in zip(box, region._box, strict=True)
            ]
            part[tuple(within)] |= region._part
        return _Region(self.shape, box, part, self.origin)

    def areas(self, axis: int) -> np.ndarray:
        """(n,) number of voxels in each of the n slices across an axis."""
        others = tuple(each for each in range(3) if each != axis)
        areas = np.zeros(self.shape[axis], int)
        areas[self._box[axis]] = self._part.sum(axis=others)
        return areas

    def in_picture(self, geometry: PictureGeometry) -> np.ndarray:
        """(H, W) bool."""
        if len(self.shape) == 2:
            return self.whole()
        thin = [1 if axis == geometry.axis else side for axis, side in enumerate(self.shape)]
        plane = np.zeros(thin, bool)
        begin, end = self._box[geometry.axis].start, self._box[geometry.axis].stop
        if begin <= geometry.index < end:
            box = list(self._box)
            box[geometry.axis] = slice(0, 1)
            at = geometry.index - begin
            plane[tuple(box)] = np.take(self._part, [at], axis=geometry.axis)
        shape = (thin[0], thin[1], thin[2])
        return np.ascontiguousarray(dataclasses.replace(geometry, shape=shape, index=0).extract(plane))


def within_frame(shown: Shown) -> Shown:
    """The picture cropped to its frame, if it has one, as in inference: clicks refer to what the policy sees."""
    frame = shown.picture.frame
    if frame is None:
        return shown

    def inside(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: cropped for name, mask in masks.items() if (cropped := frame.crop(mask).copy()).any()}

    rgb = np.ascontiguousarray(frame.crop(shown.picture.rgb))
    geometry = PictureGeometry.of_picture(*rgb.shape[:2])
    picture = dataclasses.replace(shown.picture, rgb=rgb, geometry=geometry, frame=None)
    truths, traces = inside(shown.truths), inside(shown.traces)
    return dataclasses.replace(shown, picture=picture, truths=truths, traces=traces, file=None, masks={})


def _boxes(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Value → bounding box of its voxels, for all values but zero, in one pass over the labels."""
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < 2**16:
        return {n: box for n, box in enumerate(ndimage.find_objects(labels), 1) if box is not None}
    values, places = np.unique(labels, return_inverse=True)  # large or negative values
    found = ndimage.find_objects(places.reshape(labels.shape) + 1)
    return {int(value): box for value, box in zip(values, found, strict=True) if value}


def _around(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The box around several boxes."""
    sides = zip(*boxes, strict=True)
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)


def digest_of(scan: Scan) -> str:
    """32 hexadecimal digits for the voxels of a scan, independent of its file and integer type."""
    digest = hashlib.blake2b(str(scan.voxels.shape).encode(), digest_size=16)
    for n in range(scan.voxels.shape[-1]):  # by slabs, in NIfTI's memory order, to copy no whole volume
        digest.update(np.asfortranarray(scan.voxels[..., n], dtype=np.float32).tobytes("F"))
    return digest.hexdigest()


def refuse_overlap(
    learned: Mapping[str, str], held: Mapping[str, str], file: str | None, remedy: str
) -> None:
    """Raises InputError if a held-out scan is also trained on. learned, held: digest of a scan → its name."""
    both = [digest for digest in held if digest in learned]
    if both:
        named = [f"{held[digest]} is {learned[digest]}" for digest in both[:3]]
        raise InputError(
            f"{len(both)} of {len(held)} held-out scans have the same voxels as training scans",
            file=file,
            value=", ".join(named) + (", …" if len(both) > 3 else ""),
            remedy=remedy,
        )


def _wanted(case: Case, choice: Choice) -> bool:
    """Whether a case can have anything to ask for; decided before its mask is read."""
    named = not choice.structures or any(name in choice.structures for name in case.structures)
    valued = not choice.mask_values or any(
        v in choice.mask_values or v == ANY for values in case.labels.values() for v in values
    )
    return named and valued


def _phantom(group: Group, choice: Choice) -> Shown:
    assert group.phantom is not None
    # In the published orientation, a scan in RAS order is mirrored.
    phantom = random_slice(group.phantom, mirrored=choice.orientation == Orientation.UPSTREAM.value)
    window = choice.window or choice.card_window or PHANTOM_WINDOW
    grey = apply_window(phantom.hu, window)
    frame = find_frame(phantom.hu, phantom.spacing) if choice.frame == "body" else None
    picture = Picture(
        np.repeat(grey[:, :, None], 3, 2), PictureGeometry.of_picture(*grey.shape), window, frame=frame
    )
    truths = {name: phantom.masks[name] for name in STRUCTURES}
    for name, parts in choice.joined:
        truths[name] = np.logical_or.reduce([phantom.masks[part] for part in parts])
    truths = {
        name: each for name, each in truths.items() if not choice.structures or name in choice.structures
    }
    return _sorted_out(group.key, picture, truths, [], choice.least_area)


def _sorted_out(
    key: str, picture: Picture, truths: dict[str, np.ndarray], absent: Sequence[str], least_area: float
) -> Shown:
    least = max(1.0, least_area * picture.rgb.shape[0] * picture.rgb.shape[1])
    areas = {name: int(truth.sum()) for name, truth in truths.items()}
    return Shown(
        key,
        picture,
        {name: truth for name, truth in truths.items() if areas[name] >= least},
        {name: truth for name, truth in truths.items() if 0 < areas[name] < least},
        [*(name for name in truths if not areas[name]), *absent],
    )
