"""Message boxes and file dialogs: never shown, always recorded, answered by the test.

A box with one button is only recorded. A question, or a file dialog, takes the next queued answer; with none
queued the test fails, because a person would have been asked something the test did not foresee.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PySide6 import QtWidgets

from . import ctk_widgets, pythonqt


class UnansweredDialogError(RuntimeError):
    """The module asked the user something that the test has no answer for."""


@dataclass(frozen=True)
class Message:
    """One dialog that the user would have seen. `kind` is info, warning, error, question or a file dialog."""

    kind: str
    text: str
    title: str = ""
    details: str = ""


#: Every dialog since the host's last reset, oldest first.
shown: list[Message] = []
_answers: list[Any] = []


def answer(*replies: Any) -> None:
    """Queue replies: a button's name ("Ok", "Yes", "Cancel" …) for a question, a path for a file dialog."""
    _answers.extend(replies)


def reset() -> None:
    """Forget what was shown and what was queued."""
    shown.clear()
    _answers.clear()


def unused_answers() -> list[Any]:
    """Replies that nothing asked for: a test that ends with some expected a dialog that did not come."""
    return list(_answers)


def _next_answer(question: str) -> Any:
    if not _answers:
        raise UnansweredDialogError(f"A dialog asked, and the test has no answer queued: {question}")
    return _answers.pop(0)


def ask_for_path(what: str) -> str:
    """The path that the test queued for a file dialog."""
    shown.append(Message(what, ""))
    return str(_next_answer(what))


Box = QtWidgets.QMessageBox
Button = Box.StandardButton
KINDS = {Box.Icon.Information: "info", Box.Icon.Warning: "warning", Box.Icon.Critical: "error"}


def _decide(kind: str, text: str, title: str, details: str, buttons: Any) -> Any:
    choices = [button for button in Button if button in buttons and bin(button.value).count("1") == 1]
    if len(choices) > 1:
        kind = "question"
    shown.append(Message(kind, text, title, details))
    if len(choices) <= 1:
        return choices[0] if choices else Button.Ok
    reply = _next_answer(text)
    chosen = getattr(Button, reply) if isinstance(reply, str) else reply
    if chosen not in choices:
        raise UnansweredDialogError(f"{chosen} is not a button of: {text} ({choices})")
    return chosen


class _AnsweredBox:
    """exec() of a message box, without showing it."""

    def exec(self: Any) -> Any:
        buttons = Box.standardButtons(self)
        kind = KINDS.get(Box.icon(self), "question")
        return _decide(
            kind,
            Box.text(self),
            Box.windowTitle(self).strip(),
            Box.detailedText(self),
            buttons,
        )

    exec_ = exec


def _static(kind: str, default: Any) -> Any:
    def show(parent: Any, title: str, text: str, buttons: Any = default, *_: Any) -> Any:
        return _decide(kind, text, title, "", buttons)

    return staticmethod(show)


class QMessageBox(_AnsweredBox, QtWidgets.QMessageBox):
    """`qt.QMessageBox`."""

    cpp_class = True
    information = _static("info", Button.Ok)
    warning = _static("warning", Button.Ok)
    critical = _static("error", Button.Ok)
    question = _static("question", Button.Yes | Button.No)


class QFileDialog(QtWidgets.QFileDialog):
    """`qt.QFileDialog`: the static calls only."""

    cpp_class = True

    @staticmethod
    def getExistingDirectory(parent: Any = None, *_: Any) -> str:
        return ask_for_path("getExistingDirectory")

    @staticmethod
    def getOpenFileName(parent: Any = None, *_: Any) -> str:
        return ask_for_path("getOpenFileName")

    @staticmethod
    def getSaveFileName(parent: Any = None, *_: Any) -> str:
        return ask_for_path("getSaveFileName")

    def exec(self) -> Any:
        raise UnansweredDialogError("QFileDialog.exec is not simulated; use the static functions")

    exec_ = exec


class QInputDialog(QtWidgets.QInputDialog):
    """`qt.QInputDialog`: the static call for a text, which PythonQt answers with the text alone, empty on Cancel."""

    cpp_class = True

    @staticmethod
    def getText(parent: Any, title: str, label: str, *_: Any) -> str:
        return ask_for_path(label)


def install() -> None:
    """Use these classes wherever the facade hands out Qt's."""
    qt = pythonqt.install()
    qt.QMessageBox, qt.QFileDialog, qt.QInputDialog = QMessageBox, QFileDialog, QInputDialog
    ctk_widgets.ctkMessageBox.exec = _AnsweredBox.exec
    ctk_widgets.ctkMessageBox.exec_ = _AnsweredBox.exec
