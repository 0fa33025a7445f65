"""The section where a person watches and corrects: the steps, what was thought, and the ways back."""

from __future__ import annotations

from pathlib import Path

import qt

from ..Agent import Agent
from ..Errors import telling
from ..scene.ClickPlacement import ClickPlacement
from .Texts import (
    MISSING,
    actionOf,
    areaOf,
    changeOf,
    plain,
    readable,
    secondsOf,
    thoughtOf,
    volumeChangeOf,
    volumeOf,
)

_FIRST = "Let the agent make a step first"
_NUMBER, _THINKING, _AREA, _CHANGE, _SECONDS, _SLICE = range(6)


class StepsPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    :param icons: the folder with the icons.
    :param say: shows a line to the person.
    """

    def __init__(self, ui, agent: Agent, icons: Path, say) -> None:
        self.ui, self.agent, self._say = ui, agent, say
        self._icons = {
            name: qt.QIcon(str(icons / f"{name}.svg"))
            for name in ("Include", "Exclude", "Finished", "Followed")
        }
        self._placement = ClickPlacement()
        self._heard = ""
        self._count = 0
        self._filling = False
        header = ui.stepsTree.header()
        header.setStretchLastSection(False)
        for column in range(6):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(_THINKING, qt.QHeaderView.Stretch)
        ui.includeButton.setIcon(self._icons["Include"])
        ui.excludeButton.setIcon(self._icons["Exclude"])
        ui.stepsTree.connect("itemSelectionChanged()", self._onSelected)
        ui.includeButton.connect("toggled(bool)", lambda on: self._onPlace(True, on))
        ui.excludeButton.connect("toggled(bool)", lambda on: self._onPlace(False, on))
        ui.backButton.connect("clicked()", lambda: self._do(lambda: agent.back(agent.current.shown)))
        ui.undoButton.connect("clicked()", lambda: self._do(agent.undo))
        ui.redoButton.connect("clicked()", lambda: self._do(agent.redo))
        ui.rejectButton.connect("clicked()", lambda: self._do(lambda: agent.reject(wait=False)))
        self._placement.placed.connect(self._onPlaced)
        self._placement.changed.connect(self._onPlacementChanged)
        agent.changed.connect(self.update)
        agent.worker.changed.connect(self._onWorking)
        agent.textArrived.connect(self._onText)
        agent.retried.connect(lambda reason: self._hear(""))

    def cleanup(self) -> None:
        self._placement.remove()

    def leave(self) -> None:
        """The panel is hidden: the mouse must not place clicks any more."""
        self._placement.stop()

    def update(self) -> None:
        """Show the steps as they are."""
        self._filling = True
        try:
            self._fillTree()
        finally:
            self._filling = False
        run = self.agent.current
        if run is not None and run.marks is not None and self._onMoved not in run.marks.moved:
            run.marks.moved.connect(self._onMoved)
        if run is None:
            self._placement.stop()
        if len(self.agent.steps) != self._count:  # what was heard is a step now: the next thought begins
            self._count, self._heard = len(self.agent.steps), ""
        self._showThought()
        self._offer()

    def _fillTree(self) -> None:
        tree, run = self.ui.stepsTree, self.agent.current
        tree.clear()
        before = None
        volume = run is not None and run.scope == "volume"
        tree.setColumnHidden(_SLICE, not volume)
        tree.headerItem().setText(_AREA, "mL" if volume else "mm²")
        for step in self.agent.steps:
            item = qt.QTreeWidgetItem(tree)
            texts = (
                str(step["number"]),
                " ".join(thoughtOf(step).split()),
                volumeOf(step) if volume else areaOf(step),
                volumeChangeOf(step, before) if volume else changeOf(step, before),
                secondsOf(step),
                str(step["slice"] + 1) if volume else "",
            )
            for column, text in enumerate(texts):
                item.setText(column, text)
            for column in (_AREA, _CHANGE, _SECONDS, _SLICE):
                item.setTextAlignment(column, qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            item.setIcon(_NUMBER, self._icons[actionOf(step)])
            item.setToolTip(_NUMBER, actionOf(step))
            item.setToolTip(_THINKING, plain(thoughtOf(step)))
            if run.shown == step["number"]:
                tree.setCurrentItem(item)
            before = step

    def _offer(self) -> None:
        ui, run = self.ui, self.agent.current
        record = run.record if run else None
        count = len(self.agent.steps)
        usable = self.agent.usable
        cut = usable and run is not None and run.isOpened
        first = _FIRST if usable else MISSING
        if run is not None and run.marks is not None:
            run.marks.setMovable(usable)
        for button, possible, can, cannot in (
            (ui.includeButton, cut, "Click in the slice on what belongs to it (Ctrl+I)", first),
            (ui.excludeButton, cut, "Click in the slice on what does not belong to it (Ctrl+E)", first),
            (
                ui.rejectButton,
                usable and bool(record) and record.can_reject(),
                "Take the agent's last step back, tell it so, and let it try again (Ctrl+R)",
                "The last step is not the agent's" if usable else MISSING,
            ),
            (
                ui.backButton,
                bool(count) and run.shown < count,
                "Drop the steps after the selected one (Ctrl+B)",
                "Select an earlier step first",
            ),
            (ui.undoButton, bool(record) and record.can_undo(), "Undo (Ctrl+Z)", "There is nothing to undo"),
            (ui.redoButton, bool(record) and record.can_redo(), "Redo (Ctrl+Y)", "There is nothing to redo"),
        ):
            button.setEnabled(possible)
            button.setToolTip(can if possible else cannot)

    def _showThought(self) -> None:
        streaming = self.agent.isWorking and bool(self._heard)
        if streaming:
            text = readable(self._heard)
        else:
            run = self.agent.current
            shown = run.shown if run else 0
            text = thoughtOf(self.agent.steps[shown - 1]) if 0 < shown <= len(self.agent.steps) else ""
        if self.ui.thoughtEdit.plainText != text:
            self.ui.thoughtEdit.setPlainText(text)
            self.ui.thoughtEdit.moveCursor(qt.QTextCursor.End if streaming else qt.QTextCursor.Start)

    def _hear(self, text: str) -> None:
        self._heard = text
        self._showThought()

    def _onText(self, piece: str) -> None:
        self._hear(self._heard + piece)

    def _onWorking(self) -> None:
        if not self.agent.isWorking:
            self._heard = ""
        self._showThought()
        self._offer()

    def _onSelected(self) -> None:
        if self._filling or self.agent.current is None:  # rows are being deleted: do not touch them
            return
        items = self.ui.stepsTree.selectedItems()
        if not items:
            return
        number = self.ui.stepsTree.indexOfTopLevelItem(items[0]) + 1
        if number != self.agent.current.shown:
            self.agent.show(number)

    def _do(self, act) -> None:
        self._say("")
        self._heard = ""
        with telling(self._say):
            act()

    # Clicks

    def _onPlace(self, positive: bool, on: bool) -> None:
        if on:
            self._placement.start(positive)
        elif self._placement.sign is positive:
            self._placement.stop()

    def _onPlacementChanged(self, sign: bool | None) -> None:
        for button, own in ((self.ui.includeButton, True), (self.ui.excludeButton, False)):
            blocked = button.blockSignals(True)
            button.setChecked(sign is own)
            button.blockSignals(blocked)

    def _onPlaced(self, ras, positive: bool) -> None:
        self._do(lambda: self.agent.addClick(ras, positive, wait=False))

    def _onMoved(self, number: int, ras) -> None:
        self._do(lambda: self.agent.moveClick(number, ras, wait=False))
        if not self.agent.isWorking:  # it was refused: the mark goes back
            self._showMarks()

    def _showMarks(self) -> None:
        if self.agent.current is not None:
            self.agent.current.show(self.agent.current.shown)
