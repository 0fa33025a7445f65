"""Questions for rollouts: about phantoms or cases, drawn by number so that a resumed run draws the same.

    tasks = phantom_tasks(count=200, seed=1)
    tasks.draw(8, np.random.default_rng([seed, update]))      # eight questions, seven about what is there
    tasks.every(per_picture=2, seed=1)                        # a fixed list, for measuring

Pictures are made when they are first needed and kept. Rollouts over them are in rollouts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ibis_agent.errors import InputError

from training.cases import Problem, read_cases
from training.pictures import Choice, Shown, Source, groups_of, phantom_groups
from training.questions import question
from training.rollouts import Question

PHANTOM = Choice()


class Tasks:
    """Pictures that questions are asked about, as (source, place) pairs."""

    def __init__(self, places: Sequence[tuple[Source, tuple[str, int]]]) -> None:
        if not places:
            raise InputError("there is no picture to ask about", mend="Give more phantoms or cases.")
        self._places = list(places)
        self._shown: dict[int, Shown] = {}

    def __len__(self) -> int:
        return len(self._places)

    def draw(self, count: int, rng: np.random.Generator, absent: float = 0.125) -> list[Question]:
        """`count` questions; the share `absent` of them about structures that the picture does not show."""
        found: list[Question] = []
        misses = 0
        while len(found) < count:
            shown = self.shown(int(rng.integers(len(self))))
            asked = _ask(shown, rng, there=bool(rng.random() >= absent)) if shown is not None else None
            if asked is not None:
                found.append(asked)
            else:
                misses += 1
            if misses > 1000 + 10 * count:
                raise InputError("the pictures show nothing that could be asked for")
        return found

    def every(self, per_picture: int, seed: int, absent: int = 1) -> list[Question]:
        """Of each picture so many questions about what is there, and about what is not."""
        found: list[Question] = []
        for number in range(len(self)):
            rng = np.random.default_rng([seed, number])
            shown = self.shown(number)
            if shown is None:
                continue
            there = [str(name) for name in rng.permutation(list(shown.truths))[:per_picture]]
            missing = [str(name) for name in rng.permutation(shown.absent)[:absent]]
            found += [_about(shown, name, rng) for name in (*there, *missing)]
        return found

    def shown(self, number: int) -> Shown | None:
        """Picture `number`; None where it cannot be cut."""
        if number not in self._shown:
            source, place = self._places[number]
            shown = source.show(place)
            if isinstance(shown, Problem):
                return None
            self._shown[number] = shown
        return self._shown[number]


def phantom_tasks(count: int, seed: int, first: int = 0) -> Tasks:
    """Phantoms `first` … `first + count − 1` of a seed; no other seed has any of them."""
    groups = phantom_groups(first + count, seed)[first:]
    return Tasks([(Source(group, PHANTOM), ("picture", 0)) for group in groups])


def case_tasks(manifest: Path, choice: Choice | None = None) -> Tasks:
    """The pictures of a manifest or a folder of cases. Raises InputError where none can be used."""
    cases, problems = read_cases(manifest)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    sources = [Source(group, choice or Choice()) for group in groups_of(cases)]
    return Tasks([(source, place) for source in sources for place in source.places])


def _ask(shown: Shown, rng: np.random.Generator, there: bool) -> Question | None:
    names = list(shown.truths) if there else shown.absent
    return _about(shown, str(rng.choice(names)), rng) if names else None


def _about(shown: Shown, name: str, rng: np.random.Generator) -> Question:
    truth = shown.truths.get(name)
    empty = np.zeros(shown.picture.rgb.shape[:2], bool)
    return Question(
        shown.key, shown.picture.rgb, name, question(name, rng), empty if truth is None else truth
    )
