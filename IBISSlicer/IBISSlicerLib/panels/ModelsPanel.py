"""The folded section about models: which ones, where they run, what they take, and whether they fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import qt

from ..Agent import Agent
from ..worker import Settings
from .Texts import gigabytes

_DEVICES = (("Automatic", "auto"), ("GPU", "cuda"), ("CPU", "cpu"))
_PRECISIONS = (
    ("Automatic", "auto"),
    ("32 bit", "fp32"),
    ("16 bit (bf16)", "bf16"),
    ("16 bit (fp16)", "fp16"),
    ("4 bit", "int4"),
)
_DEMO_TEXT = "Demonstration model"
_RESEARCH_ONLY = "Research use only. Not a medical device."
_DEMO_NOTE = "Demonstration models: trained on phantoms and simple CT, not for patients."


class ModelsPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    :param pythonChosen: called with the path of a Python that the person chose, empty for Slicer's own.
    """

    def __init__(self, ui, agent: Agent, pythonChosen) -> None:
        self.ui, self.agent, self._pythonChosen = ui, agent, pythonChosen
        self._fit = ""
        for text, value in _DEVICES:
            ui.deviceSelector.addItem(text, value)
        for text, value in _PRECISIONS:
            ui.precisionSelector.addItem(text, value)
        ui.windowSelector.addItem("Default of the policy", "policy")
        ui.windowSelector.addItem("As displayed", "shown")
        ui.windowSelector.setCurrentIndex(1 if Settings.usesShownWindow() else 0)
        self.fill()
        ui.windowSelector.connect("currentIndexChanged(int)", self._onWindow)
        for selector in (ui.policySelector, ui.segmenterSelector, ui.deviceSelector, ui.precisionSelector):
            selector.connect("currentIndexChanged(int)", self._onChosen)
        ui.pythonSelector.connect("currentIndexChanged(int)", self._onPython)
        ui.policyButton.connect("clicked()", self._onPolicyFolder)
        ui.segmenterButton.connect("clicked()", self._onSegmenterFile)
        ui.pythonButton.connect("clicked()", self.choosePython)
        ui.loadButton.connect("clicked()", lambda: agent.worker.load(wait=False))
        ui.unloadButton.connect("clicked()", lambda: agent.worker.unload(wait=False))
        ui.checkButton.connect("clicked()", self.check)
        agent.worker.changed.connect(self.update)
        agent.changed.connect(self.update)
        self.update()

    def fill(self) -> None:
        """Show what is chosen."""
        ui, chosen = self.ui, self.agent.worker.client.settings
        _offer(ui.policySelector, _DEMO_TEXT, Settings.DEMO, chosen.policy)
        _offer(ui.segmenterSelector, _DEMO_TEXT, Settings.DEMO, chosen.segmenter)
        _offer(ui.pythonSelector, "Slicer's own", "", Settings.python())
        for selector, value in ((ui.deviceSelector, chosen.device), (ui.precisionSelector, chosen.precision)):
            blocked = selector.blockSignals(True)
            selector.setCurrentIndex(max(selector.findData(value), 0))
            selector.blockSignals(blocked)

    def update(self) -> None:
        ui, client = self.ui, self.agent.worker.client
        loaded = client.ready is not None
        ui.loadButton.setEnabled(self.agent.usable and not self.agent.isWorking and not loaded)
        ui.unloadButton.setEnabled(loaded)
        ui.modelsStatusLabel.setText("\n".join(filter(None, (self._loadedText(), self._fit))))
        # Not in this section, which is folded most of the time.
        ui.footerLabel.setText(" ".join(filter(None, (_RESEARCH_ONLY, self._noteText()))))

    def check(self) -> None:
        """Ask whether the chosen policy fits."""
        self._fit = "Estimating memory …"
        self.update()
        self.agent.worker.checkFit(self._onFit, self._onFitFailed)

    def choosePython(self) -> None:
        """Let the person choose the Python of an environment."""
        path = qt.QFileDialog.getOpenFileName(
            self.ui.pythonButton, "Select the Python of an environment with PyTorch"
        )
        if path:
            self._pythonChosen(path)

    def _loadedText(self) -> str:
        client = self.agent.worker.client
        if client.ready is None:
            return "Models are not loaded. They load at the first step."
        memory = client.memory or {}
        if memory.get("used") is not None:
            used = f"{gigabytes(memory['used'])} used, {gigabytes(memory['free'])} free"
            return f"Models loaded on {memory['device']}: {used}."
        free = memory.get("free")
        return f"Models loaded on the CPU{f': {gigabytes(free)} of memory free' if free else ''}."

    def _noteText(self) -> str:
        """What the chosen policy is for, where somebody has said so."""
        chosen = self.agent.worker.client.settings
        note = ((self.agent.worker.client.ready or {}).get("card") or {}).get("note", "")
        return _DEMO_NOTE if Settings.DEMO in (chosen.policy, chosen.segmenter) else note

    def _onFit(self, info: dict) -> None:
        where = "GPU memory" if info["device"].startswith("cuda") else "memory"
        needs = f"{info['name']} needs about {gigabytes(info['needed'])} of {where}"
        if info["free"] is None:
            self._fit = f"{needs}. The available memory is unknown."
        elif info["loaded"] or info["needed"] <= info["free"]:
            self._fit = f"{needs}, {gigabytes(info['free'])} available: it fits."
        else:
            smaller = [name for name, fits in info["fits"].items() if fits]
            names = {value: text for text, value in _PRECISIONS}
            remedy = (
                f"Select {names[smaller[0]]}." if smaller else "Use a smaller policy or another computer."
            )
            self._fit = f"{needs}, but only {gigabytes(info['free'])} are available. {remedy}"
        self.update()

    def _onFitFailed(self, text: str) -> None:
        self._fit = text
        self.update()

    def _onChosen(self, row: int) -> None:
        ui = self.ui
        before = self.agent.worker.client.settings
        settings = replace(
            before,
            policy=ui.policySelector.currentData,
            segmenter=ui.segmenterSelector.currentData,
            device=ui.deviceSelector.currentData,
            precision=ui.precisionSelector.currentData,
        )
        self._fit = ""
        self.agent.worker.use(settings)
        if settings.policy != Settings.DEMO and settings != before:
            self.check()

    def _onWindow(self, row: int) -> None:
        Settings.setUsesShownWindow(self.ui.windowSelector.currentData == "shown")

    def _onPython(self, row: int) -> None:
        self._pythonChosen(self.ui.pythonSelector.currentData)

    def _onPolicyFolder(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(
            self.ui.policyButton, "Select the folder with the policy weights"
        )
        if folder:
            _offer(self.ui.policySelector, _DEMO_TEXT, Settings.DEMO, folder)
            self._onChosen(0)

    def _onSegmenterFile(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            self.ui.segmenterButton,
            "Select a segmenter checkpoint",
            "",
            "Checkpoints (*.pt *.pth *.safetensors)",
        )
        if path:
            _offer(self.ui.segmenterSelector, _DEMO_TEXT, Settings.DEMO, path)
            self._onChosen(0)


def _offer(selector, usualText: str, usual: str, chosen: str) -> None:
    """Offer the usual choice and the person's own, which is shown by its last part."""
    blocked = selector.blockSignals(True)
    if selector.findData(usual) < 0:
        selector.addItem(usualText, usual)
    if selector.findData(chosen) < 0:
        selector.addItem(Path(chosen).name or chosen, chosen)
    selector.setCurrentIndex(selector.findData(chosen))
    selector.setToolTip(chosen if chosen != usual else usualText)
    selector.blockSignals(blocked)
