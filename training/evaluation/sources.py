"""The pictures that an agent is evaluated on, numbered, with ground truth.

Pictures can be read in any order, so the work can be split into shards and a picture can be drawn again for the page.
training.common.pictures makes pictures from cases.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ibis_agent.cases.case import Case, Problem, checked
from ibis_agent.cases.cases import read_cases, refuse
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.policy.card import ModelCard
from ibis_agent.scan.frame import Kind
from tqdm import tqdm

from training.common.pictures import PHANTOM_WINDOW, Choice, Group, Shown, Source, groups_of
from training.common.processes import Shard
from training.common.questions import question
from training.common.store import Kept, opened

SMALLEST = 0.0011  # share of the picture; smaller structures are neither asked for nor counted as absent
MOST_PHANTOMS = 100_000  # per seed; those of the next seed follow
# Prefixes of the TotalSegmentator labels that make up the structures.
ORGANS = {
    "liver": ("liver",),
    "spleen": ("spleen",),
    "left kidney": ("kidney_left",),
    "right kidney": ("kidney_right",),
    "aorta": ("aorta",),
    "spine": ("vertebrae",),
    "stomach": ("stomach",),
}


class Pictures(Protocol):
    """Numbered pictures to evaluate on.

    Attributes:
        identity: JSON values that must be the same when a run is resumed.
        problems: data that cannot be used, known before anything is evaluated.
        questions: default number of structures asked for per picture; None is all.
    """

    identity: dict[str, Any]
    problems: list[Problem]
    questions: int | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The unique name of picture `index`, also if it cannot be read."""
        ...

    def show(self, index: int) -> Shown:
        """Raises InputError for data that cannot be used."""
        ...

    def wording(self, structure: str, rng: np.random.Generator) -> str:
        """The wording of a question for a structure."""
        ...


class Phantoms:
    """Phantoms never trained on, oriented as Slicer shows them, in a soft-tissue window."""

    def __init__(self, count: int, seed: int, frame: Kind = "slice") -> None:
        self._count, self._seed, self._choice = count, seed, Choice(frame=frame)
        self.identity = {"kind": "phantoms", "pictures": count, "seed": seed}
        self.problems: list[Problem] = []
        self.questions: int | None = 2

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"phantom {self._seed}-{index}"

    def show(self, index: int) -> Shown:
        source = Source(Group(self.name(index), phantom=self._seed * MOST_PHANTOMS + index), self._choice)
        return _shown(source, source.places[0])

    def wording(self, structure: str, rng: np.random.Generator) -> str:
        return question(structure, rng)


class LabelledData:
    """Slices and pictures of cases.

    All scans are read once at the start, so that bad data is known before slow work; then one at a time. With a
    `store`, shards that start together read each scan only once, because each starts with its own.

    Attributes:
        scans: digest of each scan → its name.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        choice: Choice,
        problems: Sequence[Problem] = (),
        store: Path | None = None,
        shard: Shard | None = None,
    ) -> None:
        """Collects unusable data in `problems`. Scans in the `store` are not read."""
        self._store = store
        self.problems = list(problems)
        self.questions: int | None = None
        self._choice = choice
        self._groups = groups_of(cases)
        self._places: list[tuple[int, tuple[str, int]]] = []
        self._held: tuple[int, Source | Kept] | None = None
        self.scans: dict[str, str] = {}
        if store is not None and shard is not None and shard.count > 1:
            for number in shard.indices(len(self._groups)):
                with contextlib.suppress(InputError):  # reported below
                    self._read(number)
        for number, group in enumerate(tqdm(self._groups, desc="reading", mininterval=2, leave=False)):
            try:
                source = self._read(number)
            except InputError as error:
                file = str(group.cases[0].image)
                self.problems.append(Problem("unreadable", group.key, file, error.problem))
                continue
            self.problems += source.problems
            self._places += [(number, place) for place in source.places]
            if source.places:
                self.scans[source.scan] = group.key
        self.identity = {
            "kind": "cases",
            "pictures": len(self._places),
            "cases": _fingerprint(cases),
            "planes": list(choice.planes),
            "slices": choice.slices,
            "per_plane": choice.per_plane,
            "window": choice.window or choice.card_window,
            "orientation": choice.orientation,
            "frame": choice.frame,
        }

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        number, (plane, place) = self._places[index]
        key = self._groups[number].key
        return key if plane == "picture" else f"{key}/{plane}-{place:03d}"

    def show(self, index: int) -> Shown:
        number, place = self._places[index]
        return _shown(self._read(number), place)

    def wording(self, structure: str, rng: np.random.Generator) -> str:
        return f"Segment the {structure}"

    def _read(self, number: int) -> Source | Kept:
        if self._held is None or self._held[0] != number:
            self._held = None  # free its memory before the next scan is read
            self._held = (number, opened(self._groups[number], self._choice, self._store))
        return self._held[1]


def labelled_data(
    source: Path,
    names: Path | None,
    choice: Choice,
    strict: bool,
    store: Path | None = None,
    shard: Shard | None = None,
) -> LabelledData:
    """A folder or manifest of cases (ibis_agent.cases.cases).

    Raises InputError if nothing can be used, and with `strict` for any problem.
    """
    cases, problems = read_cases(source, names)
    found = LabelledData(cases, choice, problems, store, shard)
    if strict or not len(found):
        refuse(found.problems)
    if not len(found):
        raise InputError("shows no structure large enough to evaluate", file=source)
    return found


def labelled_scan(scan: Path, labels: Path, names: Path, card: ModelCard) -> LabelledData:
    """Every axial slice of one labelled CT, in the window that the demo models were trained on. Raises InputError."""
    choice = Choice(
        slices="all",
        least_area=SMALLEST,
        orientation=card.orientation.value,
        window=PHANTOM_WINDOW,
        frame=card.frame,
    )
    case = Case(scan.name, scan, labels, _organs(names))
    for problem in checked(case):
        if isinstance(problem, Problem):
            raise InputError(problem.text, file=problem.file, remedy="Check the path.")
    found = LabelledData([case], choice)
    if not len(found):
        refuse(found.problems)
    return found


def _shown(source: Source | Kept, place: tuple[str, int]) -> Shown:
    shown = source.show(place)
    if isinstance(shown, Problem):
        raise InputError(shown.text, file=shown.file)
    return shown


def _organs(names_file: Path) -> dict[str, tuple[int, ...]]:
    """Structure of ORGANS → its label values. Raises InputError."""
    remedy = 'It must be an object such as {"5": "liver", "1": "spleen"}.'
    names = read_json(names_file, remedy=remedy)
    if not isinstance(names, dict) or not all(number.isdecimal() for number in names):
        raise InputError("contains no label names", file=names_file, remedy=remedy)
    found = {
        organ: tuple(int(number) for number, name in names.items() if str(name).startswith(starts))
        for organ, starts in ORGANS.items()
    }
    found = {organ: numbers for organ, numbers in found.items() if numbers}
    if not found:
        remedy = f"Use names such as {', '.join(start for starts in ORGANS.values() for start in starts)}."
        raise InputError("names none of the structures to evaluate", file=names_file, remedy=remedy)
    return found


def _fingerprint(cases: Sequence[Case]) -> str:
    """SHA-256 of names and sizes of the cases' files, labels and windows."""
    parts = [
        [
            case.id,
            *_file(case.image),
            *_file(case.mask),
            sorted(case.labels.items()),
            case.window,
            case.reverse,
        ]
        for case in cases
    ]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


def _file(path: Path) -> tuple[str, int]:
    return path.name, path.stat().st_size
