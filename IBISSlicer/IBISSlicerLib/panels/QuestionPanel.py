"""The Question section: volume, slice, question, and the buttons that make the agent act."""

from __future__ import annotations

import time
from typing import Any

import qt
import slicer

from ..Agent import Agent
from ..Errors import PlainError, telling
from ..scene.Geometry import ObliqueViewError, alignView, isColour, shownWindow, sliceOfView
from ..scene.NewRun import COLOUR_SLICES_ONLY
from ..Several import Several
from ..worker import Settings
from .BeginPanel import BeginPanel
from .ModalityMenu import ModalityMenu
from .StructuresMenu import StructuresMenu, questionsFor
from .Texts import MISSING, countedFromOne


class QuestionPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    :param openRecorded: called to open a recorded run from the examples menu.
    """

    def __init__(self, ui, agent: Agent, openRecorded) -> None:
        self.ui, self.agent, self._openRecorded = ui, agent, openRecorded
        self._begun = 0.0
        self._note = ""
        self._geometry = ""  # why the slice in the view cannot be used
        self._offered: list[str] = []  # IDs of the slice nodes in the list
        self._tags: list[tuple[Any, int]] = []
        self._clock = qt.QTimer()
        self._clock.setInterval(500)
        self._clock.connect("timeout()", self._showStatus)
        self._settling = qt.QTimer()  # many nodes may be added or removed before we need to update
        self._settling.setSingleShot(True)
        self._settling.setInterval(0)
        self._settling.connect("timeout()", self._onSettled)
        self._modality = ModalityMenu(ui, agent)
        self.begin = BeginPanel(ui, agent)
        self._questions = qt.QMenu(ui.questionsButton)
        ui.questionsButton.setMenu(self._questions)
        self.structures = StructuresMenu(self._questions, self.setQuestion)
        self.several = Several(agent, self.say)
        self.several.ended.connect(self._onSeveralEnded)
        # Fixed height of two lines: buttons must not move under the mouse. Longer text can be scrolled.
        ui.statusBox.setFixedHeight(2 * ui.statusLabel.fontMetrics().lineSpacing() + 4)
        ui.scopeSelector.addItem("Current slice", "slice")
        ui.scopeSelector.addItem("Whole volume", "volume")
        ui.scopeSelector.connect("currentIndexChanged(int)", self._onScopeChanged)
        ui.firstSpinBox.connect("valueChanged(int)", self._onFirstChanged)
        ui.lastSpinBox.connect("valueChanged(int)", self._onLastChanged)
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onVolumeChanged)
        ui.viewSelector.connect("currentIndexChanged(int)", self._onViewChanged)
        ui.alignButton.connect("clicked()", self._onAlign)
        ui.questionEdit.connect("textChanged()", self.update)
        ui.stepButton.connect("clicked()", self.onStep)
        ui.runButton.connect("clicked()", self.onRun)
        ui.stopButton.connect("clicked()", self.onStop)
        self._questions.connect("aboutToShow()", self._fillQuestions)
        agent.changed.connect(self._onRunChanged)
        agent.worker.changed.connect(self._onWorking)
        agent.worker.failed.connect(self._onFailed)
        agent.retried.connect(
            lambda reason: self.say(f"The agent's reply could not be read ({reason}). Asking again …")
        )
        self._observeViews()

    def cleanup(self) -> None:
        self._clock.stop()
        self._settling.stop()
        self.several.cleanup()
        self.begin.cleanup()
        for node, tag in self._tags:
            node.RemoveObserver(tag)
        self._tags.clear()

    def enter(self) -> None:
        """The panel is shown: update it from the views."""
        self._fillViews()
        self.update()

    def preselect(self) -> None:
        """Select the background volume of the selected view, which is the likely choice."""
        sliceNode = self._sliceNode()
        logic = slicer.app.applicationLogic().GetSliceLogic(sliceNode) if sliceNode else None
        background = logic.GetBackgroundLayer().GetVolumeNode() if logic else None
        if background is not None and background.IsA("vtkMRMLScalarVolumeNode"):
            self.ui.volumeSelector.setCurrentNode(background)

    def say(self, text: str) -> None:
        """Show a line below the buttons until the next change."""
        self._note = text
        self._showStatus()

    def onStep(self) -> None:
        self.several.byItself = False
        self._act(lambda: self.agent.step(wait=False))

    def onRun(self) -> None:
        self.several.byItself = True
        self._act(lambda: self.agent.run(wait=False))

    def onStop(self) -> None:
        self.several.byItself = False
        self.agent.stop()
        self.say("Stopped.")

    def setQuestion(self, text: str) -> None:
        self.ui.questionEdit.setPlainText(text)

    def update(self) -> None:
        """Enable the buttons that can be used now; the tooltips of the others say why not."""
        ui, agent = self.ui, self.agent
        run = agent.current
        asking = run is None
        asked = (ui.volumeSelector, ui.viewSelector, ui.questionsButton, ui.scopeSelector)
        for widget in (*asked, ui.firstSpinBox, ui.lastSpinBox):
            widget.setEnabled(asking)
        ui.questionEdit.setReadOnly(not asking)
        volume = ui.scopeSelector.currentData == "volume"
        ui.rangeBox.setVisible(volume)
        ui.sliceLabel.setVisible(not volume)
        self._showSlice()
        self._modality.update()
        obstacle = self._obstacle()
        for button, text in (
            (ui.stepButton, "Let the agent think and click once (Ctrl+Shift+Enter)"),
            (ui.runButton, "Let the agent work until it finishes or needs your input (Ctrl+Enter)"),
        ):
            button.setEnabled(not obstacle and not agent.isWorking)
            button.setToolTip(obstacle or text)
        ui.stopButton.setEnabled(agent.isWorking)
        ui.stopButton.setToolTip("Stop immediately. The steps so far are kept. (Esc)")
        self._showStatus()

    def _obstacle(self) -> str:
        """Why the agent cannot act now; empty if it can."""
        run = self.agent.current
        if not self.agent.usable:
            return MISSING
        if run is not None:
            ended = run.record.status == "ended"
            return "The run has ended. Place a click, go back, or accept the mask." if ended else ""
        if self.ui.volumeSelector.currentNode() is None:
            return "Load a volume and select it first."
        if not self.ui.questionEdit.plainText.strip():
            return "Enter a question first."
        return self._geometry

    def _act(self, act) -> None:
        self._note = ""
        with telling(self.say):
            if self.agent.current is None:
                self._ask()
            act()

    def _ask(self) -> None:
        volumeNode = self.ui.volumeSelector.currentNode()
        window = shownWindow(volumeNode) if Settings.usesShownWindow() and volumeNode else None
        sliceNode = self._sliceNode()
        scope, first, last = self.ui.scopeSelector.currentData, *self._range()
        slices = (first, last) if scope == "volume" else None
        questions = questionsFor(self.ui.questionEdit.plainText, self.agent.worker.client.settings)
        starts = dict(zip(questions, self.begin.starts(questions), strict=True))
        # With several structures, the start of one may be excluded from the others.
        exclude = {
            each: [s for s in self.begin.exclude if len(starts) == 1 or s != starts[each]] for each in starts
        }
        places: list = []  # of the first question: the others are about the same slice, even if the view has moved

        def ask(question: str):
            axis, index = (places[0].axis, places[0].index) if places else (2, None)
            run = self.agent.ask(
                volumeNode, question, sliceNode=None if places else sliceNode, axis=axis, index=index,
                window=window, scope=scope, slices=slices, start=starts[question], exclude=exclude[question],
            )  # fmt: skip
            places.append(run.place)
            return run

        self.several.start(questions, ask)

    def _onSeveralEnded(self, rest: list[str], text: str) -> None:
        if rest:
            self.setQuestion(" ".join(rest))
        text = countedFromOne(text)
        self.say(" ".join(filter(None, (text, f"{len(rest)} not asked yet." if rest else ""))))

    def _onFailed(self, kind: str, text: str) -> None:
        self.say(text)

    def _onRunChanged(self) -> None:
        run, self._note = self.agent.current, ""
        if run is not None:
            if self.ui.questionEdit.plainText.strip() != run.record.question:
                self.setQuestion(run.record.question)
            if run.volumeNode is not None:
                self.ui.volumeSelector.setCurrentNode(run.volumeNode)
            self.ui.scopeSelector.setCurrentIndex(self.ui.scopeSelector.findData(run.scope))
        self.update()

    def _onWorking(self) -> None:
        working = self.agent.isWorking
        if working and not self._clock.isActive():
            self._begun = time.monotonic()
            self._note = ""
            self._clock.start()
        elif not working and self._clock.isActive():
            self._clock.stop()
        self.update()

    def _showStatus(self) -> None:
        text = self._note or self._status()
        self.ui.statusLabel.setText(text)
        self.ui.statusLabel.setToolTip(text)  # the label has room for two lines

    def _status(self) -> str:
        client, run = self.agent.worker.client, self.agent.current
        if self.agent.isWorking:
            seconds = f" {time.monotonic() - self._begun:.0f} s"
            if client.state == "starting":
                return f"Starting the worker process …{seconds}"
            if client.state == "loading":
                return f"{client.loading or 'Loading the models …'}{seconds}"
            return f"The agent is thinking …{seconds}{self._place()}"
        if run is None:
            return self._geometry
        if run.record.status == "paused":
            return f"{run.record.reason} Place a click, or press Step to ask again."
        if run.record.rejected:
            return "Step rejected. Press Step to let the agent try again."
        if run.record.status == "ended" and run.record.answer is not None:
            told = map(countedFromOne, run.record.caveats)
            return " ".join(["Finished. Accept the mask, or correct it.", *told])
        return run.record.reason

    def _place(self) -> str:
        return f" ({self.several.progress})" if self.several.isOpen else ""

    def _onScopeChanged(self, row: int) -> None:
        self.update()

    def _range(self) -> tuple[int, int]:
        """First and last slice as voxel indices."""
        return int(self.ui.firstSpinBox.value) - 1, int(self.ui.lastSpinBox.value) - 1

    def _onFirstChanged(self, value: int) -> None:
        if self.ui.lastSpinBox.value < value:
            self.ui.lastSpinBox.setValue(value)

    def _onLastChanged(self, value: int) -> None:
        if self.ui.firstSpinBox.value > value:
            self.ui.firstSpinBox.setValue(value)

    def _offerRange(self, count: int) -> None:
        """Select all slices if the stack has changed; otherwise keep the chosen range."""
        if int(self.ui.lastSpinBox.maximum) != count:
            for box in (self.ui.firstSpinBox, self.ui.lastSpinBox):
                box.setRange(1, count)
            self.ui.firstSpinBox.setValue(1)
            self.ui.lastSpinBox.setValue(count)

    def _sliceNode(self):
        return slicer.mrmlScene.GetNodeByID(self.ui.viewSelector.currentData or "")

    def _observeViews(self) -> None:
        scene = slicer.mrmlScene
        for event in (
            scene.NodeAddedEvent,
            scene.NodeRemovedEvent,
            scene.EndImportEvent,
            scene.EndCloseEvent,
        ):
            self._tags.append((scene, scene.AddObserver(event, self._onSceneChanged)))
        self._fillViews()

    def _onSceneChanged(self, caller, event) -> None:
        self._settling.start()

    def _onSettled(self) -> None:
        self._fillViews()
        if not self.agent.current and self.ui.volumeSelector.currentNode() is None:
            self.preselect()
        self.update()

    def _fillViews(self) -> None:
        chosen = self.ui.viewSelector.currentData
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            if not any(known is node for known, _ in self._tags):
                self._tags.append((node, node.AddObserver("ModifiedEvent", self._onSliceModified)))
        nodes = _sliceNodes()
        if [node.GetID() for node in nodes] == self._offered:
            return
        self._offered = [node.GetID() for node in nodes]
        blocked = self.ui.viewSelector.blockSignals(True)
        self.ui.viewSelector.clear()
        for node in nodes:
            self.ui.viewSelector.addItem(f"{node.GetOrientation()} ({node.GetName()})", node.GetID())
        self.ui.viewSelector.setCurrentIndex(max(self.ui.viewSelector.findData(chosen), 0) if nodes else -1)
        self.ui.viewSelector.blockSignals(blocked)

    def _onSliceModified(self, caller, event) -> None:
        row = self.ui.viewSelector.findData(caller.GetID())
        # Nodes remain in the scene when a layout hides their views.
        if bool(caller.IsMappedInLayout()) != (row >= 0):
            self._settling.start()
        if row >= 0:
            self.ui.viewSelector.setItemText(row, f"{caller.GetOrientation()} ({caller.GetName()})")
        if caller is self._sliceNode() and self.agent.current is None:
            before = self._geometry
            self._showSlice()
            if self._geometry != before:
                self.update()

    def _onVolumeChanged(self, node) -> None:
        self.update()

    def _onViewChanged(self, row: int) -> None:
        self.update()

    def _onAlign(self) -> None:
        alignView(self._sliceNode(), self.ui.volumeSelector.currentNode())
        self.update()

    def _showSlice(self) -> None:
        """Show which slice the view displays, or why it cannot be used."""
        run, oblique, text, self._geometry = self.agent.current, False, "", ""
        volumeNode, sliceNode = self.ui.volumeSelector.currentNode(), self._sliceNode()
        if run is not None:
            text = f"{run.place.index + 1} of {run.place.count}"
        elif volumeNode is not None and sliceNode is not None:
            try:
                place = sliceOfView(sliceNode, volumeNode)
                text = f"{place.index + 1} of {place.count}"
                self._offerRange(place.count)
                if self.ui.scopeSelector.currentData == "volume" and isColour(volumeNode):
                    self._geometry = COLOUR_SLICES_ONLY
            except PlainError as error:
                self._geometry, oblique = str(error), isinstance(error, ObliqueViewError)
        self.ui.sliceLabel.setText(text)
        self.ui.alignButton.setVisible(oblique)

    def _fillQuestions(self) -> None:
        self._questions.clear()
        recent = Settings.recentQuestions()
        for question in recent:
            self._addQuestion(question)
        if recent:
            self._questions.addSeparator()
        for question in Settings.EXAMPLES:
            if question not in recent:
                self._addQuestion(question)
        self._questions.addSeparator()
        if self.structures.fill(self.agent.worker.client.settings, self.ui.questionEdit.plainText):
            self._questions.addMenu(self.structures.menu)
        action = qt.QAction("Open recorded run (trajectory.json) …", self._questions)
        action.connect("triggered()", self._onOpenRecorded)
        self._questions.addAction(action)

    def _onOpenRecorded(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            self.ui.questionsButton, "Open recorded run", "", "Runs (*.json)"
        )
        if path:
            self._openRecorded(path)

    def _addQuestion(self, question: str) -> None:
        action = qt.QAction(question, self._questions)
        action.connect("triggered()", lambda: self.setQuestion(question))
        self._questions.addAction(action)


def _sliceNodes() -> list:
    """The slice views of the layout, in order."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    shown = [node for node in nodes if node.IsMappedInLayout()]
    return shown or nodes
