"""The list of structures that the chosen policy knows: the ticked ones form the question, with one run for each."""

from __future__ import annotations

from collections.abc import Callable

import ibis_agent.policy as policies
import qt
from ibis_agent.engine.job import ModelSettings
from ibis_agent.errors import IbisError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.vocabulary import questions_in, structures_in

from .TickList import TickList


class StructuresMenu:
    """A submenu with a checkable list, which stays open while the user ticks.

    :param parent: the parent menu.
    :param ticked: called with the question for the ticked structures.
    """

    def __init__(self, parent, ticked: Callable[[str], None]) -> None:
        self._ticked = ticked
        self.menu = qt.QMenu("Several structures", parent)
        self.list = TickList(self.menu, self._onTicked)
        self.list.widget.setToolTip(
            "The structures that the policy knows. Each ticked structure becomes a separate segment."
        )

    def fill(self, settings: ModelSettings, question: str) -> bool:
        """List the structures of the policy and tick those in the question. Returns whether the policy has a list."""
        card = cardOf(settings)
        names = list(card.vocabulary) if card is not None else []
        try:
            named = structures_in(question, card.vocabulary) if names and question.strip() else []
        except IbisError:
            named = []
        self.list.fill([(name, name[:1].upper() + name[1:]) for name in names], named)
        return bool(names)

    def _onTicked(self) -> None:
        names = [f"the {name}" for name in self.list.ticked]
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
        self._ticked(f"Segment {listed}." if listed else "")


def cardOf(settings: ModelSettings) -> ModelCard | None:
    """The card of the chosen policy, read from its files; None if it cannot be read."""
    try:
        return policies.find(settings.policy, settings.model, settings.card or None).card
    except (IbisError, ImportError):  # Slicer's own Python may lack packages that the worker's Python has
        return None


def questionsFor(question: str, settings: ModelSettings) -> list[str]:
    """One question for each structure. A question that cannot be split is kept: the worker reports why."""
    card = cardOf(settings)
    try:
        return questions_in(question, card) if card is not None else [question]
    except IbisError:
        return [question]
