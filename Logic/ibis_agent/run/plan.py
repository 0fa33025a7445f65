"""What comes next in a run, and how it stands: told from its actions alone. No models, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ibis_agent.actions import Prompt
from ibis_agent.mask.masks import area
from ibis_agent.run.action import RunAction, Way
from ibis_agent.run.episode import Step
from ibis_agent.run.key_slice import Look, Search, best, search_slices


@dataclass(frozen=True)
class Looks:
    """The search for the key slice as far as it has got.

    Attributes:
        known: what was seen, by slice.
        wanted: the slice to look at next; None when the search is over.
    """

    known: dict[int, Look]
    wanted: int | None

    @property
    def best(self) -> Look | None:
        """Where to begin; None where nothing was seen."""
        return best(self.known)


class _Unknown(Exception):  # noqa: N818 - not a failure: the search asks for a slice that nobody has looked at
    """Carries the slice."""


def looks_of(
    actions: Sequence[RunAction], first: int, last: int, gap_mm: float, pixel_mm2: float, search: Search
) -> Looks:
    """Which slice the search wants, having seen the looks among `actions`."""
    made = (each for each in actions if each.kind == "look")
    known = {each.index: look_at(each.index, each.steps, pixel_mm2) for each in made}

    def look(index: int) -> Look:
        if index not in known:
            raise _Unknown(index)
        return known[index]

    try:
        for _ in search_slices(first, last, gap_mm, look, search):
            pass
    except _Unknown as unknown:
        return Looks(known, int(unknown.args[0]))
    return Looks(known, None)


def look_at(index: int, steps: Sequence[Step], pixel_mm2: float) -> Look:
    """The look that the first of `steps` was; no step: a reply that could not be read."""
    step = steps[0] if steps else None
    return Look(index, step, 0.0 if step is None else area(step.mask) * pixel_mm2)


def seen_at(actions: Sequence[RunAction]) -> dict[int, Step]:
    """The first clicks of the looks for the key slice, by slice."""
    steps = {each.index: each.steps[0] for each in actions if each.kind == "look" and each.steps}
    return {index: step for index, step in steps.items() if isinstance(step.action, Prompt)}


def key_of(actions: Sequence[RunAction]) -> int | None:
    """The slice of the first click."""
    return next((each.index for each in actions if each.kind == "click"), None)


def clicks_on(actions: Sequence[RunAction], index: int) -> tuple[Prompt, ...]:
    """All clicks that a slice stands on after the actions."""
    made = [each.clicks for each in actions if each.kind == "click" and each.index == index]
    return made[-1] if made else ()


def steps_on(actions: Sequence[RunAction], index: int) -> list[Step]:
    """The steps that a slice was worked on by, second looks left out; a click that was moved drops those after it."""
    steps: list[Step] = []
    for action in actions:
        if action.index == index and action.kind in ("click", "done") and not action.look:
            earlier = len(action.clicks) - 1 if action.kind == "click" else len(steps)
            while sum(isinstance(each.action, Prompt) for each in steps) > earlier:
                steps.pop()
            steps += action.steps[-1:]
    return [
        step if step.number == number else replace(step, number=number)
        for number, step in enumerate(steps, 1)
    ]


def worked_out(actions: Sequence[RunAction], key: int) -> bool:
    """Whether the policy is done with the key slice, and nobody has clicked there since."""
    kinds = [each.kind for each in actions if each.index == key and each.kind in ("click", "done")]
    return bool(kinds) and kinds[-1] == "done"


def grown(actions: Sequence[RunAction]) -> bool:
    """Whether anything has grown."""
    return any(each.kind == "grow" for each in actions)


def unfinished(actions: Sequence[RunAction]) -> dict[int, tuple[Way, ...]]:
    """The slices that the object has yet to be followed from, with the ways so far; what is next comes first.

    A growth that was stopped goes on, whatever was corrected meanwhile; the one stopped last before others. Then
    come the slices that were clicked ahead of a growth: it ends at them.
    """
    stopped: dict[int, tuple[Way, ...]] = {}
    ahead: dict[int, tuple[Way, ...]] = {}
    visited: set[int] = set()
    for each in actions:
        if each.kind == "click" and (stopped or not visited) and each.index not in visited:
            ahead[each.index] = ()
        elif each.kind == "grow":
            so_far = stopped.pop(each.index, ())
            ahead.pop(each.index, None)
            if each.stopped:
                stopped = {each.index: (*so_far, *each.ways), **stopped}
            visited.add(each.index)
            for way in each.ways:
                visited.update(range(min(way.start, way.last), max(way.start, way.last) + 1))
    return {**stopped, **ahead}


def before_growth(actions: Sequence[RunAction]) -> tuple[RunAction, ...]:
    """The actions without the growth that they end with, however often it was stopped and went on."""
    kept = tuple(actions)
    while kept and kept[-1].kind == "grow" and kept[-1].index == actions[-1].index:
        kept = kept[:-1]
    return kept


def reached(start: int, end: int, ways: Sequence[Way]) -> int:
    """Where ways from `start` towards `end` have got to."""
    ahead = [way.last for way in ways if (way.last - start) * (end - start) > 0]
    return max(ahead, key=lambda n: abs(n - start), default=start)


def answer_of(actions: Sequence[RunAction]) -> str | None:
    """What the policy answered when it was done with a slice; where it saw nothing, what it said most often."""
    said = [each.answer for each in actions if each.kind == "done"]
    if said:
        return said[-1]
    if actions and actions[-1].kind == "end" and key_of(actions) is None:
        answers = [each.answer for each in actions if each.answer is not None]
        return max(answers, key=answers.count) if answers else None
    return None


def why_nothing(actions: Sequence[RunAction]) -> str:
    """Why there is no key slice, for people."""
    looks = [each for each in actions if each.kind == "look"]
    if all(each.answer is None for each in looks):
        return "No slice gave a mask to start from."
    where = ", ".join(str(n) for n in sorted({each.index for each in looks}))
    return f"The policy did not see it in any of the slices {where}."


def spans_of(actions: Sequence[RunAction]) -> list[tuple[int, int]]:
    """First and last of the slices that actions were on or went through."""
    spans = [(each.index, each.index) for each in actions]
    return spans + [(way.start, way.last) for each in actions for way in each.ways]
