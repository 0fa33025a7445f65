"""Keyboard shortcuts for the panel's buttons. They work in the whole main window, including the slice views."""

from __future__ import annotations

import qt

# The button's tooltip also names its key. Escape is added by `Shortcuts`.
KEYS = (
    ("Ctrl+Return", "runButton"),
    ("Ctrl+Enter", "runButton"),
    ("Ctrl+Shift+Return", "stepButton"),
    ("Ctrl+Shift+Enter", "stepButton"),
    ("Ctrl+Z", "undoButton"),
    ("Ctrl+Y", "redoButton"),
    ("Ctrl+Shift+Z", "redoButton"),
    ("Ctrl+B", "backButton"),
    ("Ctrl+R", "rejectButton"),
    ("Ctrl+I", "includeButton"),
    ("Ctrl+E", "excludeButton"),
    ("Escape", "stopButton"),
)


class Shortcuts:
    """
    :param panel: the widget that owns the shortcuts.
    :param ui: the widgets by name.
    :param stopPlacing: stops placing clicks and returns whether clicks were being placed; Escape does that first.
    """

    def __init__(self, panel, ui, stopPlacing) -> None:
        self._ui, self._stopPlacing = ui, stopPlacing
        self._shortcuts = []
        for keys, name in KEYS:
            shortcut = qt.QShortcut(panel)
            shortcut.setKey(qt.QKeySequence(keys))
            # A click in a slice view moves the focus there, so the panel alone is not enough.
            shortcut.setContext(qt.Qt.WindowShortcut)
            # click() does nothing on a disabled button, as with the mouse.
            act = self._onEscape if keys == "Escape" else getattr(ui, name).click
            shortcut.connect("activated()", act)
            shortcut.setEnabled(False)
            self._shortcuts.append(shortcut)

    def setEnabled(self, enabled: bool) -> None:
        for shortcut in self._shortcuts:
            shortcut.setEnabled(enabled)

    def _onEscape(self) -> None:
        if not self._stopPlacing():
            self._ui.stopButton.click()
