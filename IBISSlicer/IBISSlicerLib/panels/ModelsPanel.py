"""The collapsed section about models: which ones, where they run, and whether they fit into memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import qt
import slicer
from ibis_agent.engine.job import ModelSettings
from ibis_agent.segmenter import is_address
from ibis_agent.segmenter.nninteractive.source import PREFIX, WEIGHTS_LICENCE, NnInteractiveAddress
from ibis_agent.segmenter.nninteractive.source import WHAT_IS_SENT as NNINTERACTIVE_IS_SENT

from ..Agent import Agent
from ..Errors import telling
from ..Signal import Signal
from ..worker import Settings
from .Texts import gigabytes

_DEVICES = (("Automatic", "auto"), ("GPU", "cuda"), ("CPU", "cpu"))
_PRECISIONS = (
    ("Automatic", "auto"),
    ("32 bit", "fp32"),
    ("16 bit (bf16)", "bf16"),
    ("16 bit (fp16)", "fp16"),
    ("8 bit (FP8)", "fp8"),
    ("4 bit", "int4"),
)
_DEMO_TEXT = "Demonstration model"
_OWN, _SERVER = "choose one's own", "choose a server"  # item data of entries that open a dialog
_POLICIES = (("My weights …", _OWN), ("A server …", _SERVER))
_SEGMENTERS = (("My weights …", _OWN), ("nnInteractive on a server …", _SERVER))
_RESEARCH_ONLY = "Research use only. Not a medical device."
_DEMO_NOTE = "Demonstration models: trained on phantoms and simple CT, not for patients."


class ModelsPanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    :param pythonChosen: called with the path of the chosen Python, empty for Slicer's own.
    :param say: shows a line to the user.
    """

    def __init__(self, ui, agent: Agent, pythonChosen, say) -> None:
        self.ui, self.agent, self._pythonChosen, self._say = ui, agent, pythonChosen, say
        self._fit = ""
        self._listed = ""  # the address of the server whose models are listed
        self.chosen = Signal()  # other models were chosen
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
        ui.modelSelector.connect("currentIndexChanged(int)", lambda row: self._onModel())
        ui.modelSelector.lineEdit().connect("editingFinished()", self._onModel)
        ui.modelsSection.connect("contentsCollapsed(bool)", self._onFolded)
        ui.pythonSelector.connect("currentIndexChanged(int)", self._onPython)
        ui.pythonButton.connect("clicked()", self.choosePython)
        ui.loadButton.connect("clicked()", lambda: agent.worker.load(wait=False))
        ui.unloadButton.connect("clicked()", lambda: agent.worker.unload(wait=False))
        ui.checkButton.connect("clicked()", self.check)
        agent.worker.changed.connect(self.update)
        agent.changed.connect(self.update)
        self.update()

    def fill(self) -> None:
        """Show the current choice."""
        ui, chosen = self.ui, self.agent.worker.client.settings
        _offer(ui.policySelector, _DEMO_TEXT, Settings.DEMO, chosen.policy)
        _offer(ui.segmenterSelector, _DEMO_TEXT, Settings.DEMO, chosen.segmenter)
        for selector, further in ((ui.policySelector, _POLICIES), (ui.segmenterSelector, _SEGMENTERS)):
            for text, data in further:
                if selector.findData(data) < 0:
                    selector.addItem(text, data)
        self._showModel()
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
        # Not in this section, which is usually collapsed.
        ui.footerLabel.setText(" ".join(filter(None, (_RESEARCH_ONLY, self._noteText()))))

    def check(self) -> None:
        """Ask whether the chosen policy fits into memory."""
        self._fit = "Estimating memory …"
        self.update()
        self.agent.worker.checkFit(self._onFit, self._onFitFailed)

    def choosePython(self) -> None:
        """Let the user choose the Python of an environment."""
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
        """The note of the chosen models, and the servers that receive data."""
        chosen = self.agent.worker.client.settings
        notes = [f"Images and questions are sent to {chosen.policy}."] if isServer(chosen.policy) else []
        if is_address(chosen.segmenter):
            notes.append(
                f"Slices and clicks are sent to {chosen.segmenter.removeprefix(PREFIX)}. "
                f"nnInteractive's weights: {WEIGHTS_LICENCE}."
            )
        if not isServer(chosen.policy):
            note = ((self.agent.worker.client.ready or {}).get("card") or {}).get("note", "")
            notes.append(_DEMO_NOTE if Settings.DEMO in (chosen.policy, chosen.segmenter) else note)
        return " ".join(filter(None, notes))

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
                f"Select {names[smaller[0]]} under Advanced."
                if smaller
                else "Use a smaller policy or another computer."
            )
            self._fit = f"{needs}, but only {gigabytes(info['free'])} are available. {remedy}"
        self.update()

    def _onFitFailed(self, text: str) -> None:
        self._fit = text
        self.update()

    def _onChosen(self, row: int) -> None:
        ui, before = self.ui, self.agent.worker.client.settings
        settings = replace(
            before, device=ui.deviceSelector.currentData, precision=ui.precisionSelector.currentData
        )
        policy = ui.policySelector.currentData
        if policy in (_OWN, _SERVER):
            policy = (self._askForFolder() if policy == _OWN else self._askForServer()) or before.policy
        if policy != before.policy:
            settings = replace(settings, policy=policy, model="")  # another server has other models
        segmenter, host = self._chosenSegmenter(before)
        settings = replace(settings, segmenter=segmenter, send_slices_to=host)
        self._fit = ""
        self.agent.worker.use(settings)
        self.fill()
        if settings != before:  # otherwise the latest message would be cleared
            self.chosen.emit()
        self._listModels()
        if settings.policy != Settings.DEMO and not isServer(settings.policy) and settings != before:
            self.check()

    def _onFolded(self, folded: bool) -> None:
        if not folded:  # expanding shows everything in the section
            self._showModel()
            self._listModels()

    def _listModels(self) -> None:
        """Ask the chosen server for its models, once, while the section is open."""
        address = self.agent.worker.client.settings.policy
        if not isServer(address) or self.ui.modelsSection.collapsed or not self.agent.usable:
            return
        if address != self._listed:
            self._listed = address
            self._fit = "Asking the server for its models …"
            self.update()
            self.agent.worker.listModels(
                lambda names: self._onListed(address, names), lambda text: self._onListed(address, [], text)
            )

    def _onListed(self, address: str, names: list[str], problem: str = "") -> None:
        if address != self.agent.worker.client.settings.policy:
            return
        selector = self.ui.modelSelector
        blocked = selector.blockSignals(True)
        selector.clear()
        for name in names:
            selector.addItem(name)
        selector.blockSignals(blocked)
        if problem:
            self._listed = ""  # ask again when the section is opened the next time
        if len(names) == 1 and not self.agent.worker.client.settings.model:
            self._useModel(names[0])
        self._showModel()
        several = f"The server has {len(names)} models. Select one."
        self._onFitFailed(
            problem or (several if len(names) > 1 and not self.agent.worker.client.settings.model else "")
        )

    def _showModel(self) -> None:
        selector, chosen = self.ui.modelSelector, self.agent.worker.client.settings
        model = chosen.model
        for widget in (self.ui.modelLabel, selector):
            widget.setVisible(isServer(chosen.policy) and not self.ui.modelsSection.collapsed)
        blocked = selector.blockSignals(True)
        selector.setCurrentIndex(selector.findText(model) if model else -1)
        selector.setEditText(model)
        selector.blockSignals(blocked)

    def _onModel(self) -> None:
        self._useModel(self.ui.modelSelector.currentText.strip())

    def _useModel(self, model: str) -> None:
        chosen = self.agent.worker.client.settings
        if isServer(chosen.policy) and model != chosen.model:
            self._fit = ""
            self.agent.worker.use(replace(chosen, model=model))

    def _onWindow(self, row: int) -> None:
        Settings.setUsesShownWindow(self.ui.windowSelector.currentData == "shown")

    def _onPython(self, row: int) -> None:
        self._pythonChosen(self.ui.pythonSelector.currentData)

    def _askForFolder(self) -> str:
        return qt.QFileDialog.getExistingDirectory(
            self.ui.policySelector, "Select the folder with the policy weights"
        )

    def _askForServer(self) -> str:
        """Ask for the address of a server and the permission to send pictures to it; empty if the user cancels."""
        label = "Address of an OpenAI-compatible server, for example http://localhost:8080/v1"
        address = qt.QInputDialog.getText(self.ui.policySelector, "Policy on a server", label).strip()
        if not address:
            return ""
        from ibis_agent.policy.remote.source import WHAT_IS_SENT, RemoteAddress

        with telling(self._say):
            server = RemoteAddress(address)
            if not server.needs_yes:
                return address
            if _mayBeSent(server.host, WHAT_IS_SENT):
                server.agree()
                return address
        return ""

    def _chosenSegmenter(self, before: ModelSettings) -> tuple[str, str]:
        """The segmenter, and the host that slices may go to for it; the previous ones if the user cancels."""
        chosen = self.ui.segmenterSelector.currentData
        if chosen == before.segmenter:
            return chosen, before.send_slices_to
        if chosen == _OWN:
            chosen = self._askForFile()
        elif chosen == _SERVER:
            chosen = self._askForNnInteractive()
        with telling(self._say):
            if chosen and not is_address(chosen):
                return chosen, ""
            server = NnInteractiveAddress(chosen) if chosen else None
            if server is not None and server.local:
                return chosen, ""
            if server is not None and _mayBeSent(server.host, NNINTERACTIVE_IS_SENT):
                return chosen, server.host
        return before.segmenter, before.send_slices_to

    def _askForNnInteractive(self) -> str:
        """The address of a server; empty if the user cancels."""
        label = (
            "Address of nninteractive-server, for example http://localhost:1527\n\n"
            f"License of nnInteractive's weights: {WEIGHTS_LICENCE}."
        )
        address = qt.QInputDialog.getText(self.ui.segmenterSelector, "nnInteractive", label).strip()
        return f"{PREFIX}{address.removeprefix(PREFIX)}" if address else ""

    def _askForFile(self) -> str:
        return qt.QFileDialog.getOpenFileName(
            self.ui.segmenterSelector,
            "Select a segmenter checkpoint",
            "",
            "Checkpoints (*.pt *.pth *.safetensors)",
        )


def _mayBeSent(host: str, what: str) -> bool:
    """Ask the user. Each choice of an address asks again."""
    return slicer.util.confirmOkCancelDisplay(
        f"{host} is another computer. It will receive {what}.\n\n"
        "Continue only if you are allowed to send this data there.",
        "IBISSlicer",
    )


def isServer(policy: str) -> bool:
    """Whether the policy is given by an address."""
    return policy.startswith(("http://", "https://"))


def _offer(selector, usualText: str, usual: str, chosen: str) -> None:
    """Offer the default and the user's own choice, which is shown by its last part."""
    blocked = selector.blockSignals(True)
    if selector.findData(usual) < 0:
        selector.addItem(usualText, usual)
    if selector.findData(chosen) < 0:
        selector.insertItem(1, _shown(chosen), chosen)
    selector.setCurrentIndex(selector.findData(chosen))
    selector.setToolTip(chosen if chosen != usual else usualText)
    selector.blockSignals(blocked)


def _shown(chosen: str) -> str:
    """A place as the list shows it: an address, or the last part of a path."""
    if is_address(chosen):
        return f"nnInteractive at {chosen.split('://')[-1]}"
    return chosen if isServer(chosen) else Path(chosen).name or chosen
