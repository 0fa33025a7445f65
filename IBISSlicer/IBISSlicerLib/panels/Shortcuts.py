"""Keys for the panel's buttons. They work while the panel or something in it has the focus, and nowhere else."""

from __future__ import annotations

import qt

# Each is named in the button's tool tip as well.
KEYS = (
    ("Ctrl+Return", "runButton"),
    ("Ctrl+Enter", "runButton"),
    ("Ctrl+Shift+Return", "stepButton"),
    ("Ctrl+Shift+Enter", "stepButton"),
    ("Escape", "stopButton"),
    ("Ctrl+Z", "undoButton"),
    ("Ctrl+Y", "redoButton"),
    ("Ctrl+Shift+Z", "redoButton"),
    ("Ctrl+B", "backButton"),
    ("Ctrl+R", "rejectButton"),
    ("Ctrl+I", "includeButton"),
    ("Ctrl+E", "excludeButton"),
)


def installShortcuts(panel, ui) -> list:
    """Connect the keys; returns the shortcuts, which live as long as the panel."""
    shortcuts = []
    for keys, name in KEYS:
        shortcut = qt.QShortcut(panel)
        shortcut.setKey(qt.QKeySequence(keys))
        shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
        # click() does nothing on a disabled button: keys can do what the mouse could.
        shortcut.connect("activated()", getattr(ui, name).click)
        shortcuts.append(shortcut)
    return shortcuts
