"""The list of structures that the chosen policy knows: the ticked ones form the question, with one run for each."""

from __future__ import annotations

from collections.abc import Callable

import ibis_agent.policy as policies
import qt
from ibis_agent.engine.job import ModelSettings
from ibis_agent.errors import IbisError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.vocabulary import questions_in, structures_in

_MOST_SHOWN = 16  # visible structures; a longer list scrolls


class StructuresMenu:
    """A submenu with a checkable list, which stays open while the user ticks.

    :param parent: the parent menu. :param ticked: called with the question for the ticked structures.
    """

    def __init__(self, parent, ticked: Callable[[str], None]) -> None:
        self._ticked, self._filling = ticked, False
        self.menu = qt.QMenu("Several structures", parent)
        self.list = qt.QListWidget()
        self.list.setToolTip(
            "The structures that the policy knows. Each ticked structure becomes a separate segment."
        )
        self.list.connect("itemChanged(QListWidgetItem*)", self._onTicked)
        self._action = qt.QWidgetAction(self.menu)
        self._action.setDefaultWidget(self.list)
        self.menu.addAction(self._action)

    def fill(self, settings: ModelSettings, question: str) -> bool:
        """List the structures of the policy and tick those in the question. Returns whether the policy has a list."""
        card = cardOf(settings)
        names = list(card.vocabulary) if card is not None else []
        try:
            named = structures_in(question, card.vocabulary) if names and question.strip() else []
        except IbisError:
            named = []
        self._filling = True
        self.list.clear()
        for name in names:
            item = qt.QListWidgetItem(name[:1].upper() + name[1:])
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if name in named else qt.Qt.Unchecked)
            item.setData(qt.Qt.UserRole, name)
            self.list.addItem(item)
        if names:
            shown = min(len(names), _MOST_SHOWN)
            self.list.setFixedHeight(shown * self.list.sizeHintForRow(0) + 2 * self.list.frameWidth)
        self._filling = False
        return bool(names)

    def _onTicked(self, item) -> None:
        if self._filling:
            return
        items = [self.list.item(row) for row in range(self.list.count)]
        names = [f"the {each.data(qt.Qt.UserRole)}" for each in items if each.checkState() == qt.Qt.Checked]
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
