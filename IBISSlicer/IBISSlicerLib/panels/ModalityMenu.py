"""The button beside the volume: the assumed modality, how it was determined, and a menu to change it."""

from __future__ import annotations

import qt

from ..Agent import Agent
from ..Errors import PlainError
from ..scene.Geometry import isColour
from ..scene.Modality import CHOICES, modalityFields, modalityWords, takeAs, takenAs

_HINT = "It determines the window/level that the agent sees. Click to set the modality of the scan."


class ModalityMenu:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    """

    def __init__(self, ui, agent: Agent) -> None:
        self.ui, self.agent = ui, agent
        self._menu = qt.QMenu(ui.modalityButton)
        ui.modalityButton.setMenu(self._menu)
        self._menu.connect("aboutToShow()", self._fill)

    def update(self) -> None:
        """Show the modality used by the open run, or the one that a question would use now."""
        button, run, node = self.ui.modalityButton, self.agent.current, self.ui.volumeSelector.currentNode()
        try:
            shown = run is not None or (
                node is not None and node.GetImageData() is not None and not isColour(node)
            )
            word, how = (
                run.modality
                if run is not None
                else modalityWords(modalityFields(node))
                if shown
                else ("", "")
            )
        except PlainError:  # the problem is shown elsewhere
            shown, word, how = False, "", ""
        button.setVisible(shown)
        button.setEnabled(run is None)
        button.setText(word)
        button.setToolTip(how if run is not None else f"{how} {_HINT}")

    def _fill(self) -> None:
        self._menu.clear()
        node = self.ui.volumeSelector.currentNode()
        taken = takenAs(node) if node is not None else None
        self._offer("", "From the file, or guessed from the grey values", not taken)
        for modality, name in CHOICES.items():
            self._offer(modality, f"{modality}: {name}", taken == modality)

    def _offer(self, modality: str, text: str, checked: bool) -> None:
        action = qt.QAction(text, self._menu)
        action.setCheckable(True)
        action.setChecked(checked)
        action.connect("triggered()", lambda: self._choose(modality))
        self._menu.addAction(action)

    def _choose(self, modality: str) -> None:
        node = self.ui.volumeSelector.currentNode()
        if node is not None and self.agent.current is None:
            takeAs(node, modality or None)
            self.update()
