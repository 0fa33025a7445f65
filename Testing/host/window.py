"""The main window: the module's panel beside three slice views, and a strip that says what this is.

`qSlicerMainWindow` by name, so that `slicer.util.mainWindow()` finds it; only the status bar and the module
selector are imitated.
"""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtWidgets

CAPTION = "Simulated Slicer host (not 3D Slicer): real MRML and slice views, stand-in widgets. Looks differ."


PANEL_WIDTH = 420


class ModuleSelector(QtWidgets.QToolBar):
    """`slicer.util.moduleSelector()`."""

    cpp_class = True

    def __init__(self, window: Any) -> None:
        super().__init__(window)
        self._switch: Any = None
        self._selected = ""

    def selectModule(self, name: str) -> None:
        self._switch(name)

    selectedModule = QtCore.Property(str, lambda self: self._selected)


class MainWindow(QtWidgets.QMainWindow):
    """Panel left, views right, caption on top."""

    cpp_class = True

    def __init__(self, slice_widgets: list[Any]) -> None:
        super().__init__()
        QtCore.QObject.setObjectName(self, "qSlicerMainWindow")
        QtWidgets.QWidget.setWindowTitle(self, "Simulated Slicer host")
        self._caption = QtWidgets.QLabel(CAPTION)
        self._caption.setStyleSheet("background: #333; color: white; padding: 4px 8px;")
        self._panel = QtWidgets.QScrollArea()
        self._panel.setWidgetResizable(True)
        self._panel.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        views = QtWidgets.QWidget()
        views.setStyleSheet("background: black;")
        grid = QtWidgets.QGridLayout(views)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        red, yellow, green = slice_widgets
        grid.addWidget(red, 0, 0, 2, 1)
        grid.addWidget(yellow, 0, 1)
        grid.addWidget(green, 1, 1)
        grid.setColumnStretch(0, 3)
        grid.setColumnStretch(1, 2)
        middle = QtWidgets.QHBoxLayout()
        middle.addWidget(self._panel)
        middle.addWidget(views, 1)
        central = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(central)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._caption)
        column.addLayout(middle, 1)
        QtWidgets.QMainWindow.setCentralWidget(self, central)
        self._bar = QtWidgets.QStatusBar()
        QtWidgets.QMainWindow.setStatusBar(self, self._bar)
        self._selector = ModuleSelector(self)
        self._selector.hide()
        self._set_panel_width(PANEL_WIDTH)

    def _set_panel_width(self, width: int) -> None:
        self._panel.setFixedWidth(width)

    def _show_panel(self, panel: Any) -> None:
        self._panel.takeWidget()
        if panel is not None:
            self._panel.setWidget(panel)
            panel.show()
            # Slicer's panel takes the width that its contents need; with room for the scroll bar.
            needed = QtWidgets.QWidget.minimumSizeHint(panel).width()
            bar = self._panel.verticalScrollBar().sizeHint.width()
            self._set_panel_width(max(PANEL_WIDTH, needed + bar + 4))

    def moduleSelector(self) -> Any:
        return self._selector
