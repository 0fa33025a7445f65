"""The notice at the top of the panel: which packages are missing, and how to install them. Hidden if none are."""

from __future__ import annotations

import logging

import slicer

from ..Errors import PlainError
from ..Signal import Signal
from ..worker import Settings
from ..worker.Install import Installer, RestartNeeded, plainNames
from ..worker.WorkerProcess import defaultPython


class InstallPanel:
    """
    :param ui: the widgets by name.
    :param installer: the Installer.
    :param usableChanged: called with whether the required packages are available.
    :param openExample: opens the example; None if there is none.
    """

    def __init__(self, ui, installer: Installer, usableChanged, openExample) -> None:
        self.ui, self._installer, self._usableChanged = ui, installer, usableChanged
        self.pythonChanged = Signal()  # another Python will run the worker
        ui.installButton.connect("clicked()", self.onInstall)
        ui.installLogEdit.setVisible(False)
        ui.exampleButton.setVisible(openExample is not None)
        if openExample is not None:
            ui.exampleButton.connect("clicked()", openExample)
        self.update()

    def cleanup(self) -> None:
        self._installer.cancelProof()

    def update(self, note: str = "") -> None:
        """Check which packages are missing, from metadata only, and show it in one line."""
        missing = [] if Settings.python() else self._installer.missing()
        self.ui.noticeFrame.setVisible(bool(missing or note))
        self.ui.installButton.setVisible(bool(missing))
        text = f"Required packages are not installed: {plainNames(missing)}." if missing else ""
        self.ui.noticeLabel.setText(note or text)
        self._usableChanged(not missing)

    def onInstall(self) -> None:
        self.ui.installLogEdit.setVisible(True)
        self.ui.installLogEdit.setPlainText("")
        self.ui.installButton.setEnabled(False)
        try:
            self._installer.install(self._log)
        except RestartNeeded as error:
            self.update(str(error))
            if slicer.util.confirmOkCancelDisplay(f"{error} Restart now?", "IBISSlicer"):
                slicer.util.restart()
        except PlainError as error:
            logging.error("IBISSlicer: %s", error)
            self.update(str(error))
        else:
            self._log("Testing the installation …")
            self._installer.prove(defaultPython(), self._onProved)
        finally:
            self.ui.installButton.setEnabled(True)

    def usePython(self, path: str) -> None:
        """Use this Python if it has the required packages; empty means Slicer's own."""
        if not path:
            Settings.setPython("")
            self.update()
            self.pythonChanged.emit()
            return
        self.update("Testing this Python …")
        self._installer.prove(path, lambda works, text: self._onPythonProved(path, works, text))

    def _onProved(self, works: bool, text: str) -> None:
        self._log(text)
        self.update("" if works else f"{text} Press Install to try again.")
        if works:
            self.ui.installLogEdit.setVisible(False)

    def _onPythonProved(self, path: str, works: bool, text: str) -> None:
        if works:
            Settings.setPython(path)
        self.update("" if works else f"{path} cannot be used. {text}")
        self.pythonChanged.emit()

    def _log(self, line: str) -> None:
        self.ui.installLogEdit.appendPlainText(line)
        slicer.app.processEvents()
