"""What a reader has to know before trusting a run's result: told beside the answer, kept in the record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ibis_agent.mask.structures import another_structure, structure_in
from ibis_agent.policy.card import ModelCard
from ibis_agent.run.state import RunState
from ibis_agent.scan.region import region_of
from ibis_agent.scan.slices import Slices, Stack


def caveats(run: RunState) -> tuple[str, ...]:
    """The caveats of a run as it stands; empty where there are none.

    - the policy was not trained on scans of this kind;
    - a thought or an answer speaks of another structure than the question asks for;
    - slices of a volume are doubtful and nobody has looked again;
    - the mask reaches the end of the scan or of the range that was asked about.
    """
    card = run.policy.card if run.policy is not None else ModelCard()
    found = [text] if (text := unfamiliar(card, run.slices)) else []
    found += dict.fromkeys(_other_structures(run))
    if not run.alone and run.status == "ended":
        found += _doubtful(run)
        found += _ends(run)
    return tuple(found)


def unfamiliar(card: ModelCard, slices: Slices) -> str:
    """A warning where the card's policy was not trained on what the middle slice shows; "" where there is none.

    A photograph does not say what it shows, and a recorded picture without its scan only its plane.
    """
    if not isinstance(slices, Stack) and slices.first != slices.last:
        return ""
    picture = slices.picture((slices.first + slices.last) // 2)
    geometry = picture.geometry
    if geometry.plane == "picture":
        return ""
    values, modality, region = picture.values, picture.modality, ""
    if values is not None and not picture.ct:
        modality = modality or "a scan that does not look like CT"
    if values is not None and picture.ct and geometry.plane == "axial":
        region = region_of(values, (geometry.row_mm or 1.0, geometry.col_mm or 1.0))
    return card.outside(modality, geometry.plane, region)


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
