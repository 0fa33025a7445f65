"""The Steps section: the steps with their thinking, placing clicks, and going back."""

from __future__ import annotations

from pathlib import Path

import qt

from ..Agent import Agent
from ..Errors import telling
from ..scene.ClickPlacement import BOX, EXCLUDE, INCLUDE, ClickPlacement
from .Texts import MISSING, STEP_FIRST, actionOf, measureOf, plain, readable, secondsOf, thoughtOf

_NUMBER, _THINKING, _AREA, _SLICE = range(4)


class StepsPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    :param icons: the folder with the icons.
    :param say: shows a line to the user.
    """

    def __init__(self, ui, agent: Agent, icons: Path, say) -> None:
        self.ui, self.agent, self._say = ui, agent, say
        self._icons = {path.stem: qt.QIcon(str(path)) for path in sorted(icons.glob("*.svg"))}
        self._placement = ClickPlacement()
        self._heard = ""
        self._count = 0
        self._filling = self._aiming = False
        header = ui.stepsTable.horizontalHeader()
        header.setStretchLastSection(False)
        for column in range(4):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
            ui.stepsTable.horizontalHeaderItem(column).setTextAlignment(qt.Qt.AlignLeft | qt.Qt.AlignVCenter)
        header.setSectionResizeMode(_THINKING, qt.QHeaderView.Stretch)
        header.setHighlightSections(False)
        header.connect("sectionResized(int,int,int)", self._onColumnResized)
        for button, name in (
            (ui.includeButton, "Include"),
            (ui.excludeButton, "Exclude"),
            (ui.boxButton, "Box"),
            (ui.undoButton, "Undo"),
            (ui.redoButton, "Redo"),
        ):
            button.setIcon(self._icons[name])
        ui.stepsTable.connect("itemSelectionChanged()", self._onSelected)
        self._tools = {INCLUDE: ui.includeButton, EXCLUDE: ui.excludeButton, BOX: ui.boxButton}
        for what, button in self._tools.items():
            button.connect("toggled(bool)", lambda on, what=what: self._onPlace(what, on))
        ui.backButton.connect("clicked()", lambda: self._do(lambda: agent.back(agent.current.shown)))
        ui.undoButton.connect("clicked()", lambda: self._do(agent.undo))
        ui.redoButton.connect("clicked()", lambda: self._do(agent.redo))
        ui.rejectButton.connect("clicked()", lambda: self._do(lambda: agent.reject(wait=False)))
        self._placement.placed.connect(self._onPlaced)
        self._placement.boxed.connect(self._onBoxed)
        self._placement.aimed.connect(self._onAimed)
        self._placement.changed.connect(self._onPlacementChanged)
        agent.changed.connect(self.update)
        agent.worker.changed.connect(self._onWorking)
        agent.textArrived.connect(lambda piece: self._hear(self._heard + piece))
        agent.retried.connect(lambda reason: self._hear(""))

    def cleanup(self) -> None:
        self._placement.remove()

    def stopPlacing(self) -> bool:
        """Stop placing clicks. Returns whether clicks were being placed."""
        placing = self._placement.what is not None
        self._placement.stop()
        return placing

    def update(self) -> None:
        """Update the list of steps."""
        self._filling = True
        try:
            self._fillTable()
        finally:
            self._filling = False
        run = self.agent.current
        if run is not None and run.marks is not None and self._onMoved not in run.marks.moved:
            run.marks.moved.connect(self._onMoved)
        if run is None:
            self._placement.stop()
        if len(self.agent.steps) != self._count:  # the streamed text has become a step: start the next one
            self._count, self._heard = len(self.agent.steps), ""
        self._showHeard()
        self._offer()

    def _fillTable(self) -> None:
        table, run, steps = self.ui.stepsTable, self.agent.viewed, self.agent.steps
        volume = run is not None and run.scope == "volume"
        table.setRowCount(len(steps))
        table.setColumnHidden(_SLICE, not volume)
        table.horizontalHeaderItem(_AREA).setText("mL" if volume else "mm²")
        before = run.begun if run is not None else None
        for row, step in enumerate(steps):
            texts = (
                str(step["number"]),
                thoughtOf(step),
                measureOf(step, before, volume),
                str(step["slice"] + 1) if volume else "",
            )
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                side = qt.Qt.AlignLeft if column == _THINKING else qt.Qt.AlignRight
                item.setTextAlignment(side | qt.Qt.AlignTop)
                table.setItem(row, column, item)
            table.item(row, _NUMBER).setIcon(self._icons[actionOf(step)])
            table.item(row, _NUMBER).setToolTip(plain(f"{actionOf(step)}{secondsOf(step)}"))
            before = step
        table.resizeRowsToContents()
        self._fitHeight()
        if run is not None and 0 < run.shown <= len(steps):
            table.setCurrentCell(run.shown - 1, _THINKING)
            table.scrollToItem(table.item(run.shown - 1, _THINKING))
        else:
            table.clearSelection()

    def _offer(self) -> None:
        ui, run = self.ui, self.agent.current
        record = run.record if run else None
        count = len(self.agent.steps)
        usable = self.agent.usable
        cut = usable and run is not None and run.isOpened
        first = STEP_FIRST if usable else MISSING
        if run is not None and run.marks is not None:
            run.marks.setMovable(usable)
        for button, possible, can, cannot in (
            (ui.includeButton, cut, "Click on the structure in a slice view to include it (Ctrl+I)", first),
            (
                ui.excludeButton,
                cut,
                "Click in a slice view on a region to exclude from the structure (Ctrl+E)",
                first,
            ),
            (
                ui.boxButton,
                cut,
                "Click on two opposite corners of a box around the structure, in a slice view",
                first,
            ),
            (
                ui.rejectButton,
                usable and bool(record) and record.can_reject(),
                "Remove the agent's last step, tell the agent, and let it try again (Ctrl+R)",
                "The last step was not made by the agent" if usable else MISSING,
            ),
            (
                ui.backButton,
                run is not None and bool(count) and run.shown < count,
                "Remove the steps after the selected one (Ctrl+B)",
                "Select an earlier step first",
            ),
            (ui.undoButton, bool(record) and record.can_undo(), "Undo (Ctrl+Z)", "Nothing to undo (Ctrl+Z)"),
            (ui.redoButton, bool(record) and record.can_redo(), "Redo (Ctrl+Y)", "Nothing to redo (Ctrl+Y)"),
        ):
            button.setEnabled(possible)
            button.setToolTip(can if possible else cannot)

    # The thinking in progress is shown in an extra row below the steps.

    def _hear(self, text: str) -> None:
        self._heard = text
        self._showHeard()

    def _showHeard(self) -> None:
        table, count = self.ui.stepsTable, len(self.agent.steps)
        text = readable(self._heard) if self.agent.isWorking else ""
        if not text:
            if table.rowCount != count:
                table.setRowCount(count)
                self._fitHeight()
            return
        if table.rowCount == count:
            table.setRowCount(count + 1)
            table.setItem(count, _NUMBER, qt.QTableWidgetItem("…"))
            thought = qt.QTableWidgetItem("")
            thought.setTextAlignment(qt.Qt.AlignLeft | qt.Qt.AlignTop)
            table.setItem(count, _THINKING, thought)
            for column in (_NUMBER, _THINKING, _AREA, _SLICE):
                if table.item(count, column) is None:
                    table.setItem(count, column, qt.QTableWidgetItem(""))
                table.item(count, column).setFlags(qt.Qt.ItemIsEnabled)  # there is no step to show yet
        table.item(count, _THINKING).setText(text)
        table.resizeRowToContents(count)
        self._fitHeight()
        table.scrollToBottom()

    def _onColumnResized(self, column: int, before: int, now: int) -> None:
        if column == _THINKING:
            self.ui.stepsTable.resizeRowsToContents()
            self._fitHeight()

    def _fitHeight(self) -> None:
        """Fit the table to its rows, but keep the space below it, so that no button moves."""
        table = self.ui.stepsTable
        rows = sum(table.rowHeight(row) for row in range(table.rowCount))
        edges = 2 * table.frameWidth + 2
        table.setMaximumHeight(max(table.minimumHeight, table.horizontalHeader().height + rows + edges))

    def _onWorking(self) -> None:
        if not self.agent.isWorking:
            self._heard = ""
        self._showHeard()
        self._offer()

    def _onSelected(self) -> None:
        if self._filling or self.agent.viewed is None:  # rows are being created: do not touch them
            return
        items = self.ui.stepsTable.selectedItems()
        number = self.ui.stepsTable.row(items[0]) + 1 if items else 0
        if 0 < number <= len(self.agent.steps) and self.agent.viewed.isAnotherThanShown(number):
            self.agent.show(number)

    def _do(self, act) -> None:
        self._say("")
        self._heard = ""
        with telling(self._say):
            act()

    def _onPlace(self, what: str, on: bool) -> None:
        if on:
            self._placement.start(what)
        elif self._placement.what == what:
            self._placement.stop()

    def _onPlacementChanged(self, placed: str | None) -> None:
        for what, button in self._tools.items():
            blocked = button.blockSignals(True)
            button.setChecked(what == placed)
            button.blockSignals(blocked)
        if self._aiming:  # remove an unfinished box
            self._aiming = False
            self._showMarks()

    def _onPlaced(self, ras, positive: bool) -> None:
        self._do(lambda: self.agent.addClick(ras, positive, wait=False))

    def _onAimed(self, corner, ras) -> None:
        if self.agent.current is not None and self.agent.current.isOpened:
            self._aiming = True
            self.agent.current.aimBox(corner, ras)

    def _onBoxed(self, corner, opposite) -> None:
        self._aiming = False
        self._do(lambda: self.agent.addBox(corner, opposite, wait=False))
        if not self.agent.isWorking:
            self._showMarks()

    def _onMoved(self, number: int, ras) -> None:
        self._do(lambda: self.agent.moveClick(number, ras, wait=False))
        if not self.agent.isWorking:  # it was refused: move the mark back
            self._showMarks()

    def _showMarks(self) -> None:
        if self.agent.current is not None:
            self.agent.current.show(self.agent.current.shown)
