"""Keys for the panel's buttons. They work in the whole window, slice views too, while the module is shown."""

from __future__ import annotations

import qt

# Each is named in the button's tool tip as well. Escape is added by `Shortcuts`.
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
    :param panel: the widget that the keys belong to.
    :param ui: the widgets by name.
    :param stopPlacing: stops placing clicks and returns whether there was anything to stop; Escape does that first.
    """

    def __init__(self, panel, ui, stopPlacing) -> None:
        self._ui, self._stopPlacing = ui, stopPlacing
        self._shortcuts = []
        for keys, name in KEYS:
            shortcut = qt.QShortcut(panel)
            shortcut.setKey(qt.QKeySequence(keys))
            # A click in a slice view takes the focus there, so the panel alone is not enough.
            shortcut.setContext(qt.Qt.WindowShortcut)
            # click() does nothing on a disabled button: keys can do what the mouse could.
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
