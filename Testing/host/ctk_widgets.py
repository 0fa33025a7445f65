"""`ctk`: stand-ins for the CTK widgets that a module's panel is made of.

Names, properties and signals follow CTK's headers (Libs/Widgets); the looks are plain Qt.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .refuse import NotSimulatedError
from .ui_files import standin

Property = QtCore.Property
UNLIMITED = 16777215


def _children(widget: Any) -> list[Any]:
    return [child for child in QtCore.QObject.children(widget) if isinstance(child, QtWidgets.QWidget)]


class _Folding:
    """Shows and hides the child widgets, remembering which of them were hidden by others."""

    def _fold(self, folded: bool) -> None:
        if folded:
            self._hidden = {
                id(c) for c in _children(self) if c.testAttribute(QtCore.Qt.WidgetAttribute.WA_WState_Hidden)
            }
            for child in _children(self):
                QtWidgets.QWidget.setVisible(child, False)
        else:
            for child in _children(self):
                if id(child) not in getattr(self, "_hidden", set()):
                    QtWidgets.QWidget.setVisible(child, True)


@standin
class ctkCollapsibleButton(_Folding, QtWidgets.QAbstractButton):
    """A section with a heading that folds; `checked` is the same as not `collapsed`."""

    contentsCollapsed = QtCore.Signal(bool)
    HEADING = 26

    def __init__(self, *arguments: Any) -> None:
        text = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        parent = arguments[-1] if arguments and not isinstance(arguments[-1], str) else None
        super().__init__(parent)
        QtWidgets.QAbstractButton.setText(self, text)
        QtWidgets.QAbstractButton.setCheckable(self, True)
        QtWidgets.QAbstractButton.setChecked(self, True)
        QtWidgets.QWidget.setContentsMargins(self, 0, self.HEADING, 0, 0)
        QtWidgets.QWidget.setSizePolicy(
            self, QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred
        )
        self.toggled.connect(self._on_toggled)

    def _on_toggled(self, shown: bool) -> None:
        self._fold(not shown)
        QtWidgets.QWidget.setMaximumHeight(self, UNLIMITED if shown else self.HEADING)
        self.contentsCollapsed.emit(not shown)

    def hitButton(self, position: Any) -> bool:
        return position.y() <= self.HEADING

    def sizeHint(self) -> Any:
        layout = QtWidgets.QWidget.layout(self)
        if layout is None or not QtWidgets.QAbstractButton.isChecked(self):
            return QtCore.QSize(120, self.HEADING)
        return layout.sizeHint()

    minimumSizeHint = sizeHint

    def paintEvent(self, event: Any) -> None:
        painter = QtGui.QPainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        width = QtWidgets.QWidget.rect(self).width()
        option.rect = QtCore.QRect(0, 0, width, self.HEADING - 4)
        style = QtWidgets.QWidget.style(self)
        style.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option, painter, self)
        open_ = QtWidgets.QAbstractButton.isChecked(self)
        arrow = QtWidgets.QStyle.PrimitiveElement
        option.rect = QtCore.QRect(6, 5, 12, 12)
        style.drawPrimitive(
            arrow.PE_IndicatorArrowDown if open_ else arrow.PE_IndicatorArrowRight, option, painter, self
        )
        text = QtWidgets.QAbstractButton.text(self)
        painter.drawText(24, 0, width - 28, self.HEADING - 4, QtCore.Qt.AlignmentFlag.AlignVCenter, text)
        painter.end()

    def setCollapsed(self, collapsed: bool) -> None:
        QtWidgets.QAbstractButton.setChecked(self, not collapsed)

    collapsed = Property(bool, lambda self: not QtWidgets.QAbstractButton.isChecked(self), setCollapsed)
    flat = Property(bool, lambda self: False, lambda self, value: None)
    contentsFrameShape = Property(int, lambda self: 0, lambda self, value: None)
    contentsLineWidth = Property(int, lambda self: 1, lambda self, value: None)


@standin
class ctkCollapsibleGroupBox(_Folding, QtWidgets.QGroupBox):
    """A group box whose tick folds it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        QtWidgets.QGroupBox.setCheckable(self, True)
        QtWidgets.QGroupBox.setChecked(self, True)
        self.toggled.connect(self._on_toggled)

    def _on_toggled(self, shown: bool) -> None:
        self._fold(not shown)
        QtWidgets.QWidget.setMaximumHeight(self, UNLIMITED if shown else 22)

    def setCollapsed(self, collapsed: bool) -> None:
        QtWidgets.QGroupBox.setChecked(self, not collapsed)

    collapsed = Property(bool, lambda self: not QtWidgets.QGroupBox.isChecked(self), setCollapsed)


@standin
class ctkPathLineEdit(QtWidgets.QWidget):
    """A path with a browse button. Filters and options are kept, not enforced."""

    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)
    cpp_signals = {
        "currentPathChanged(QString)": "currentPathChanged",
        "validInputChanged(bool)": "validInputChanged",
    }
    # ctkPathLineEdit::Filter follows QDir::Filter
    Dirs, Files, Drives, NoSymLinks, AllEntries = 0x001, 0x002, 0x004, 0x008, 0x007
    Readable, Writable, Executable, Modified, Hidden, System = 0x010, 0x020, 0x040, 0x080, 0x100, 0x200

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._values: dict[str, Any] = {"filters": 0x007, "label": "", "settingKey": "", "nameFilters": []}
        self._box = QtWidgets.QComboBox(self)
        self._box.setEditable(True)
        self._box.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._button = QtWidgets.QToolButton(self)
        self._button.setText("…")
        self._button.clicked.connect(self.browse)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._box)
        row.addWidget(self._button)
        self._box.editTextChanged.connect(lambda text: self.currentPathChanged.emit(text))

    def comboBox(self) -> Any:
        return self._box

    def setCurrentPath(self, path: str) -> None:
        self._box.setEditText(path)

    def browse(self) -> None:
        """Goes through the host's file dialogs, which answer what the test has queued."""
        from .dialogs import ask_for_path

        path = ask_for_path("ctkPathLineEdit.browse")
        if path:
            self.setCurrentPath(path)

    def addCurrentPathToHistory(self) -> None:
        path = self._box.currentText
        if path and self._box.findText(path) < 0:
            self._box.addItem(path)

    def _kept(name: str, kind: Any) -> Any:
        def write(self: Any, value: Any) -> None:
            self._values[name] = value
            if name == "showBrowseButton":
                self._button.setVisible(value)

        return Property(kind, lambda self: self._values.get(name, True), write)

    currentPath = Property(str, lambda self: self._box.currentText, setCurrentPath)
    label = _kept("label", str)
    filters = _kept("filters", int)
    options = _kept("options", int)
    settingKey = _kept("settingKey", str)
    nameFilters = _kept("nameFilters", "QStringList")
    showBrowseButton = _kept("showBrowseButton", bool)
    showHistoryButton = _kept("showHistoryButton", bool)
    sizeAdjustPolicy = _kept("sizeAdjustPolicy", int)
    minimumContentsLength = _kept("minimumContentsLength", int)

    def setFilters(self, value: int) -> None:
        self._values["filters"] = value

    def setNameFilters(self, value: Any) -> None:
        self._values["nameFilters"] = list(value)

    def setSettingKey(self, value: str) -> None:
        self._values["settingKey"] = value


@standin
class ctkComboBox(QtWidgets.QComboBox):
    """A combo box with a text for "nothing chosen"."""

    def setDefaultText(self, text: str) -> None:
        QtWidgets.QComboBox.setPlaceholderText(self, text)

    defaultText = Property(str, lambda self: QtWidgets.QComboBox.placeholderText(self), setDefaultText)


@standin
class ctkSliderWidget(QtWidgets.QWidget):
    """A slider and a spin box that show one number."""

    valueChanged = QtCore.Signal(float)
    cpp_signals = {"valueChanged(double)": "valueChanged"}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._spin = QtWidgets.QDoubleSpinBox(self)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._spin)
        self._spin.valueChanged.connect(lambda value: self.valueChanged.emit(value))

    def setValue(self, value: float) -> None:
        self._spin.setValue(value)

    value = Property(float, lambda self: self._spin.value, lambda self, v: self._spin.setValue(v))
    minimum = Property(float, lambda self: self._spin.minimum, lambda self, v: self._spin.setMinimum(v))
    maximum = Property(float, lambda self: self._spin.maximum, lambda self, v: self._spin.setMaximum(v))
    singleStep = Property(
        float, lambda self: self._spin.singleStep, lambda self, v: self._spin.setSingleStep(v)
    )
    decimals = Property(int, lambda self: self._spin.decimals, lambda self, v: self._spin.setDecimals(v))
    suffix = Property(str, lambda self: self._spin.suffix, lambda self, v: self._spin.setSuffix(v))


@standin
class ctkFittedTextBrowser(QtWidgets.QTextBrowser):
    """A text browser as high as its text."""


@standin
class ctkSearchBox(QtWidgets.QLineEdit):
    """A line edit for searching."""


class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box; the host answers it instead of showing it (see `dialogs`)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._kept: dict[str, Any] = {}

    def _value(name: str, kind: Any, default: Any) -> Any:
        return Property(
            kind, lambda self: self._kept.get(name, default), lambda self, v: self._kept.update({name: v})
        )

    dontShowAgain = _value("dontShowAgain", bool, False)
    dontShowAgainVisible = _value("dontShowAgainVisible", bool, False)
    dontShowAgainSettingsKey = _value("dontShowAgainSettingsKey", str, "")


class _CtkModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise NotSimulatedError(f"ctk.{name}")


def install() -> types.ModuleType:
    """Put `ctk` into sys.modules."""
    if "ctk" in sys.modules:
        return sys.modules["ctk"]
    ctk = _CtkModule("ctk", __doc__)
    for name, cls in list(globals().items()):
        if name.startswith("ctk"):
            setattr(ctk, name, cls)
    sys.modules["ctk"] = ctk
    return ctk
