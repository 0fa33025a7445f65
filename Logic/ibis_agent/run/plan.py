"""The state of a run and what comes next, derived from its actions alone. No models, no torch."""

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
    """The state of the search for the key slice.

    Attributes:
        known: looks by slice.
        wanted: the slice to look at next; None when the search is over.
    """

    known: dict[int, Look]
    wanted: int | None

    @property
    def best(self) -> Look | None:
        """The look to start from; None if nothing was seen."""
        return best(self.known)


class _Unknown(Exception):  # noqa: N818 - not a failure: the search needs a look that is missing
    """Its argument is the slice."""


def looks_of(
    actions: Sequence[RunAction], first: int, last: int, gap_mm: float, pixel_mm2: float, search: Search
) -> Looks:
    """The state of the search after the looks among `actions`. gap_mm: distance between slices."""
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
    """The first of `steps` as a look; no steps means a reply that could not be parsed."""
    step = steps[0] if steps else None
    return Look(index, step, 0.0 if step is None else area(step.mask) * pixel_mm2)


def seen_at(actions: Sequence[RunAction]) -> dict[int, Step]:
    """The steps of the looks that made a prompt, by slice."""
    steps = {each.index: each.steps[0] for each in actions if each.kind == "look" and each.steps}
    return {index: step for index, step in steps.items() if isinstance(step.action, Prompt)}


def key_of(actions: Sequence[RunAction]) -> int | None:
    """The slice of the first click."""
    return next((each.index for each in actions if each.kind == "click"), None)


def clicks_on(actions: Sequence[RunAction], index: int) -> tuple[Prompt, ...]:
    """All prompts of a slice after the actions."""
    made = [each.clicks for each in actions if each.kind == "click" and each.index == index]
    return made[-1] if made else ()


def steps_on(actions: Sequence[RunAction], index: int) -> list[Step]:
    """The steps on a slice, without second looks. Replacing a click drops the steps after it."""
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
    """Whether the policy is done with the key slice and no click followed there."""
    kinds = [each.kind for each in actions if each.index == key and each.kind in ("click", "done")]
    return bool(kinds) and kinds[-1] == "done"


def grown(actions: Sequence[RunAction]) -> bool:
    """Whether anything was propagated."""
    return any(each.kind == "grow" for each in actions)


def unfinished(actions: Sequence[RunAction]) -> dict[int, tuple[Way, ...]]:
    """The slices that have yet to be propagated from, with their ways so far; the next one comes first.

    Stopped propagations come first, the last stopped one before others, even if slices were corrected meanwhile.
    Then come slices clicked beyond the reach of a propagation, which ends at them.
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
    """The actions without the propagation at their end, including the parts before it was stopped."""
    kept = tuple(actions)
    while kept and kept[-1].kind == "grow" and kept[-1].index == actions[-1].index:
        kept = kept[:-1]
    return kept


def reached(start: int, end: int, ways: Sequence[Way]) -> int:
    """The last slice reached by ways from `start` towards `end`."""
    ahead = [way.last for way in ways if (way.last - start) * (end - start) > 0]
    return max(ahead, key=lambda n: abs(n - start), default=start)


def answer_of(actions: Sequence[RunAction]) -> str | None:
    """The policy's answer when it finished a slice; if it saw nothing, its most frequent answer."""
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
    """(first, last) of the slices of each action and each way."""
    spans = [(each.index, each.index) for each in actions]
    return spans + [(way.start, way.last) for each in actions for way in each.ways]
