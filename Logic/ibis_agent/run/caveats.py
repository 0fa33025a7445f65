"""Warnings about a run's result, shown beside the answer and kept in the record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ibis_agent.mask.structures import another_structure, structure_in
from ibis_agent.run.state import RunState


def caveats(run: RunState) -> tuple[str, ...]:
    """The caveats of a run in its present state:

    - the policy was not trained on scans of this kind;
    - a reply names a different structure from the question;
    - slices of a volume are doubtful and had no second look;
    - the mask reaches the first or last slice of the scan, or of the range asked about.
    """
    found = [run.unfamiliar] if run.unfamiliar else []
    found += dict.fromkeys(_other_structures(run))
    if not run.alone and run.status == "ended":
        found += _doubtful(run)
        found += _ends(run)
    return tuple(found)


def _other_structures(run: RunState) -> Iterator[str]:
    asked = structure_in(run.question)
    steps = (step for action in run.actions for step in action.steps if step.by == "policy")
    said = [text for step in steps for text in (step.thinking, getattr(step.action, "answer", "") or "")]
    for text in said:
        other = another_structure(run.question, text)
        if other is not None and asked is not None:
            yield f"The reply is about the {other.key}, but the question asks for the {asked.key}."


def _doubtful(run: RunState) -> Iterator[str]:
    left = sorted(doubt.index for doubt in run.doubts())
    if left:
        yield f"Doubtful: {_in_ranges(left)}."


def _ends(run: RunState) -> Iterator[str]:
    for index, end, word in ((run.slices.first, 0, "first"), (run.slices.last, len(run.slices) - 1, "last")):
        if run.mask(index).any():
            whole = "scan" if index == end else "range"
            yield f"The mask reaches the {word} slice of the {whole} ({index}): the structure may continue beyond it."


def _in_ranges(numbers: Iterable[int]) -> str:
    """ "slices 3 to 7 and 12", or "slice 4"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(each[0]) if len(each) == 1 else f"{each[0]} to {each[-1]}" for each in runs]
    many = len(runs) > 1 or len(runs[0]) > 1
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"slice{'s' if many else ''} {listed}"
