"""Questions for rollouts: about phantoms or cases, drawn by number so that a resumed run draws the same.

    tasks = phantom_tasks(count=200, seed=1)
    tasks.draw(8, np.random.default_rng([seed, update]))      # eight questions, about one for an absent structure
    tasks.every(per_picture=2, seed=1)                        # a fixed list, for evaluation

Phantoms are made when first needed. The slices of cases are cut at the start, one scan at a time, and kept packed
in memory, or in a store on disk (training.common.store).
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ibis_agent.cases.case import Problem
from ibis_agent.cases.cases import read_cases
from ibis_agent.errors import InputError
from tqdm import tqdm

from training.common.pictures import Choice, Group, Shown, Source, groups_of, phantom_groups, within_frame
from training.common.questions import question
from training.common.store import Kept, opened
from training.rollouts.roller import Question

PHANTOM = Choice()


class Tasks:
    """Pictures that questions are asked about, each made by a function.

    Attributes:
        identity: SHA-256 of the pictures and their ground truth; empty if the settings determine them.
        scans: digest of each scan → its name.
    """

    def __init__(
        self,
        pictures: Sequence[Callable[[], Shown]],
        identity: str = "",
        scans: Mapping[str, str] | None = None,
    ) -> None:
        if not pictures:
            raise InputError("there is no picture to ask about", remedy="Give more phantoms or cases.")
        self._pictures = list(pictures)
        self.identity = identity
        self.scans = dict(scans or {})

    def __len__(self) -> int:
        return len(self._pictures)

    def draw(self, count: int, rng: np.random.Generator, absent: float = 0.125) -> list[Question]:
        """`count` random questions, a share `absent` of them about structures that the picture does not show.

        Raises InputError if the pictures have nothing to ask for.
        """
        found: list[Question] = []
        misses = 0
        while len(found) < count:
            shown = self.shown(int(rng.integers(len(self))))
            asked = _ask(shown, rng, there=bool(rng.random() >= absent))
            if asked is not None:
                found.append(asked)
            else:
                misses += 1
            if misses > 1000 + 10 * count:
                raise InputError("the pictures show nothing that could be asked for")
        return found

    def every(self, per_picture: int, seed: int, absent: int = 1) -> list[Question]:
        """For each picture, `per_picture` questions about structures it shows, and `absent` about others."""
        found: list[Question] = []
        for number in range(len(self)):
            rng = np.random.default_rng([seed, number])
            shown = self.shown(number)
            there = [str(name) for name in rng.permutation(list(shown.truths))[:per_picture]]
            missing = [str(name) for name in rng.permutation(shown.absent)[:absent]]
            found += [_about(shown, name, rng) for name in (*there, *missing)]
        return found

    def shown(self, number: int) -> Shown:
        """Picture `number`, cropped to what the policy sees."""
        return within_frame(self._pictures[number]())


def phantom_tasks(count: int, seed: int, first: int = 0, choice: Choice = PHANTOM) -> Tasks:
    """Phantoms `first` … `first + count − 1` of a seed; different seeds share no phantom."""
    groups = phantom_groups(first + count, seed)[first:]
    pictures = [functools.cache(functools.partial(_phantom, group, choice)) for group in groups]
    return Tasks(pictures, "", {f"phantom-{group.phantom}": group.key for group in groups})


def case_tasks(manifest: Path, choice: Choice | None = None, store: Path | None = None) -> Tasks:
    """The pictures of a manifest or a folder of cases. Prints what cannot be used.

    With a `store` they stay on disk, and scans that it already has are not read.

    Raises InputError if there is nothing to ask about.
    """
    cases, problems = read_cases(manifest)
    pictures: list[Callable[[], Shown]] = []
    scans: dict[str, str] = {}
    digest = hashlib.sha256()
    for group in tqdm(groups_of(cases), desc="reading", mininterval=2, leave=False):
        source = opened(group, choice or Choice(), store)
        problems += source.problems
        if source.places:
            scans[source.scan] = group.key
        if isinstance(source, Kept):
            digest.update(source.digest.encode())
            pictures += [functools.partial(_of, source, place) for place in source.usable]
            continue
        for place in source.places:
            shown = source.show(place)
            if isinstance(shown, Problem):
                problems.append(shown)
            else:
                small = _Small(shown)
                small.digest(digest.update)
                pictures.append(small.whole)
    for problem in problems:
        print(f"{problem.kind}: {problem}", file=sys.stderr)
    return Tasks(pictures, digest.hexdigest(), scans)


def _of(source: Kept, place: tuple[str, int]) -> Shown:
    shown = source.show(place)
    assert isinstance(shown, Shown)
    return shown


class _Small:
    """A picture packed in memory: grey pictures as one channel, masks as bits."""

    def __init__(self, shown: Shown) -> None:
        rgb = shown.picture.rgb
        grey = bool((rgb == rgb[:, :, :1]).all())
        self._pixels = np.ascontiguousarray(rgb[:, :, :1] if grey else rgb)
        self._bits = {name: np.packbits(truth) for name, truth in shown.truths.items()}
        picture = replace(shown.picture, rgb=self._pixels)
        self._bare = replace(shown, picture=picture, truths={}, traces={})

    def whole(self) -> Shown:
        """The picture as it was, without traces."""
        height, width, channels = self._pixels.shape
        rgb = np.repeat(self._pixels, 3, axis=2) if channels == 1 else self._pixels
        truths = {
            name: np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)
            for name, bits in self._bits.items()
        }
        return replace(self._bare, picture=replace(self._bare.picture, rgb=rgb), truths=truths)

    def digest(self, update: Callable[[bytes], object]) -> None:
        """Feed all that a question could be made of to a hash's `update`."""
        update(f"{self._bare.key} {self._pixels.shape} {list(self._bits)} {self._bare.absent}".encode())
        update(self._pixels.tobytes())
        for bits in self._bits.values():
            update(bits.tobytes())


def _phantom(group: Group, choice: Choice) -> Shown:
    shown = Source(group, choice).show(("picture", 0))
    assert isinstance(shown, Shown)
    return shown


def _ask(shown: Shown, rng: np.random.Generator, there: bool) -> Question | None:
    names = list(shown.truths) if there else shown.absent
    return _about(shown, str(rng.choice(names)), rng) if names else None


def _about(shown: Shown, name: str, rng: np.random.Generator) -> Question:
    truth = shown.truths.get(name)
    empty = np.zeros(shown.picture.rgb.shape[:2], bool)
    return Question(
        shown.key, shown.picture.rgb, name, question(name, rng), empty if truth is None else truth
    )
