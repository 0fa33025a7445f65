"""A checkable list in a menu, which stays open while the user ticks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import qt

_MOST_SHOWN = 16  # visible entries; a longer list scrolls


class TickList:
    """
    :param menu: the menu that the list is added to.
    :param changed: called when the user has ticked or unticked an entry.
    """

    def __init__(self, menu, changed: Callable[[], None]) -> None:
        self._changed, self._filling = changed, False
        self.widget = qt.QListWidget()
        self.widget.connect("itemChanged(QListWidgetItem*)", lambda item: self._onChanged())
        self._action = qt.QWidgetAction(menu)
        self._action.setDefaultWidget(self.widget)
        menu.addAction(self._action)

    @property
    def keys(self) -> list[str]:
        return [item.data(qt.Qt.UserRole) for item in self._items()]

    @property
    def ticked(self) -> list[str]:
        """The keys of the ticked entries."""
        return [item.data(qt.Qt.UserRole) for item in self._items() if item.checkState() == qt.Qt.Checked]

    def fill(self, entries: Iterable[tuple[str, str]], ticked: Collection[str]) -> None:
        """Show these entries, (key, text), in place of the earlier ones."""
        self._filling = True
        self.widget.clear()
        for key, text in entries:
            item = qt.QListWidgetItem(text)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if key in ticked else qt.Qt.Unchecked)
            item.setData(qt.Qt.UserRole, key)
            self.widget.addItem(item)
        if self.widget.count:
            shown = min(self.widget.count, _MOST_SHOWN)
            self.widget.setFixedHeight(shown * self.widget.sizeHintForRow(0) + 2 * self.widget.frameWidth)
        self._filling = False

    def tickOnly(self, keys: Collection[str]) -> None:
        self._filling = True
        for item in self._items():
            wanted = item.data(qt.Qt.UserRole) in keys
            item.setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)
        self._filling = False
        self._changed()

    def _items(self) -> list:
        return [self.widget.item(row) for row in range(self.widget.count)]

    def _onChanged(self) -> None:
        if not self._filling:
            self._changed()
