"""Reads a module's sources for what works with PySide6, and so in the host, but not with Slicer's PythonQt.

A lint, not a proof: it goes by names and knows only the cases below. What the host refuses when the code
runs (unknown signals, typos in attributes, `label.text()`) is checked here only where it is plain to see.
Needs neither Qt nor Slicer.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

QT_ROOTS = {"qt", "QtCore", "QtGui", "QtWidgets", "ctk"}
BINDINGS = {"PySide6", "PySide2", "PyQt5", "PyQt6", "shiboken6", "__feature__"}
#: Not in Slicer's Python; the worker has them. `imp` is gone since Python 3.12.
FOREIGN = {"torch", "torchvision", "transformers", "tokenizers", "safetensors", "sam2", "nibabel", "imp"}
PYSIDE_NAMES = {"Signal", "Slot", "Property", "SIGNAL", "SLOT", "QtCore", "QtWidgets", "QtGui"}
QT5_ONLY = {"QRegExp", "QTextCodec", "QDesktopWidget", "QSignalMapper", "QStringRef"}
QT6_ONLY = {"checkStateChanged", "startCommand", "globalPosition", "QStringConverter", "idClicked"}
#: Qt properties of widgets: attributes in PythonQt.
PROPERTIES = {
    "text", "plainText", "currentText", "currentIndex", "currentPath", "count", "rowCount", "columnCount",
    "currentRow", "value", "minimum", "maximum", "checked", "enabled", "visible", "collapsed", "toolTip",
    "placeholderText", "objectName", "width", "height", "readOnly",
}  # fmt: skip


def source_check(path: str | Path) -> list[str]:
    """Findings ("file:line: what and why") for one .py file or every one below a folder."""
    root = Path(path)
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    found = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        found += [f"{file}:{line}: {text}" for line, text in sorted(set(_findings(tree)))]
    return found


def _chain(node: ast.AST) -> list[str]:
    """["qt", "Qt", "Checked"] for qt.Qt.Checked; empty when it is not a plain chain of names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return []
    return [*reversed([*names, node.id])]


def _is_qt(node: ast.AST) -> bool:
    chain = _chain(node)
    return len(chain) > 1 and chain[0] in QT_ROOTS


def _is_ui(node: ast.AST) -> bool:
    """self.ui.name, ui.name, widget.ui.name …"""
    chain = _chain(node)
    return len(chain) >= 2 and chain[-2] == "ui"


def _findings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    translates = any(
        isinstance(node, ast.ImportFrom) and any(alias.asname == "_" for alias in node.names)
        for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from _imports(node)
        elif isinstance(node, ast.Attribute):
            yield from _attribute(node)
        elif isinstance(node, ast.Call):
            yield from _call(node)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(_is_qt(side) for side in sides) and any(_is_number(side) for side in sides):
                yield node.lineno, "an enum compared with a number: write the enum's name"
        elif isinstance(node, ast.With):
            for item in node.items:
                if isinstance(item.context_expr, ast.Call) and _is_qt(item.context_expr.func):
                    yield node.lineno, "Qt objects are not context managers in PythonQt"
        elif isinstance(node, ast.Name) and node.id == "_" and isinstance(node.ctx, ast.Store) and translates:
            yield node.lineno, "assigning to _ hides the translation function of the same name"


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool)


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, str]]:
    relative = isinstance(node, ast.ImportFrom) and node.level > 0
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    for name in names:
        top = name.split(".")[0]
        if top in BINDINGS:
            yield node.lineno, f"import {name}: Slicer has PythonQt, imported as qt"
        if top in FOREIGN and not relative:
            yield node.lineno, f"import {name}: not in Slicer's Python; it belongs into the worker"


def _attribute(node: ast.Attribute) -> Iterator[tuple[int, str]]:
    chain = _chain(node)
    if node.attr in QT6_ONLY:
        yield node.lineno, f"{node.attr}: Slicer's Qt 5.15 does not have it"
    if not chain or chain[0] not in QT_ROOTS:
        return
    if len(chain) == 2 and chain[1] in PYSIDE_NAMES:
        yield node.lineno, f"{'.'.join(chain)}: PySide6 only"
    if len(chain) == 2 and chain[1] in QT5_ONLY:
        yield node.lineno, f"{'.'.join(chain)}: not in Qt 6"
    if len(chain) == 4 and all(name[:1].isupper() for name in chain[1:]):
        yield node.lineno, f"{'.'.join(chain)}: scoped enum, write {'.'.join((*chain[:2], chain[3]))}"
    if len(chain) == 4 and chain[3] in ("value", "name"):
        yield node.lineno, f"{'.'.join(chain)}: enums have no .{chain[3]} in PythonQt"


def _call(node: ast.Call) -> Iterator[tuple[int, str]]:
    function = node.func
    keywords = [keyword.arg for keyword in node.keywords if keyword.arg]
    if keywords and (_is_qt(function) or (isinstance(function, ast.Attribute) and _is_ui(function.value))):
        yield node.lineno, f"keyword {', '.join(keywords)}: PythonQt takes none"
    if isinstance(function, ast.Name) and node.args:
        argument = node.args[0]
        if function.id == "int" and _is_qt(argument):
            yield node.lineno, "int() of an enum: write the enum's name"
        if function.id == "bytes" and isinstance(argument, ast.Call):
            called = _chain(argument.func)
            if called and called[-1].startswith("readAll"):
                yield node.lineno, "bytes() of a QByteArray: use .data()"
    if (
        isinstance(function, ast.Attribute)
        and not node.args
        and function.attr in PROPERTIES
        and _is_ui(function.value)
    ):
        yield node.lineno, f"{'.'.join(_chain(function))}(): a property in PythonQt, drop the brackets"
