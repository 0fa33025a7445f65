"""The module's sources, read and not run: what must hold in a Slicer that these tests do not have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from host import source_check

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "IBISSlicer"
SOURCES = sorted(MODULE.rglob("*.py"))
IN_SLICER_AT_FILE_SCOPE = {
    "__future__", "ast", "collections", "contextlib", "dataclasses", "html", "importlib", "io", "json", "logging",
    "os", "pathlib", "re", "signal", "shutil", "subprocess", "sys", "tempfile", "time", "types", "typing", "urllib",
    "uuid", "weakref",  # standard library
    "ctk", "numpy", "qt", "slicer", "vtk",  # Slicer
    "IBISSlicerLib", "ibis_agent",  # ours
}  # fmt: skip


def listed(cmake: Path) -> set[str]:
    """The files that a CMakeLists.txt names in its lists of scripts and resources."""
    text = re.sub(r"#.*", "", cmake.read_text(encoding="utf-8"))
    names = re.findall(r"set\(\w+_(?:SCRIPTS|RESOURCES)(.*?)\)", text, re.DOTALL)
    return {name.replace("${MODULE_NAME}", "IBISSlicer") for block in names for name in block.split()}


def tracked(folder: str) -> set[str]:
    """The files of a folder that git knows, relative to it."""
    told = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."],
        cwd=ROOT / folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(told.stdout.split())


@pytest.mark.parametrize("folder", ["IBISSlicer", "Logic"])
def test_cmake_lists_every_file_and_no_other(folder: str) -> None:
    files = {name for name in tracked(folder) if name != "CMakeLists.txt" and "Screenshots" not in name}
    assert listed(ROOT / folder / "CMakeLists.txt") == files


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_module_can_be_read_by_the_python_of_slicer_5_8(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert future or path.name == "__init__.py", "annotations must not be evaluated on Python 3.9"


def test_importing_the_module_s_file_does_nothing_but_define(tmp_path: Path) -> None:
    tree = ast.parse((MODULE / "IBISSlicer.py").read_text(encoding="utf-8"))
    for node in tree.body:
        constant = isinstance(node, ast.Assign) and all(
            isinstance(target, ast.Name) and target.id.isupper() for target in node.targets
        )
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        definition = isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
        assert constant or docstring or definition, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert not str(node.module).startswith(("IBISSlicerLib", "ibis_agent")), f"line {node.lineno}"


def test_nothing_works_only_with_pyside() -> None:
    assert source_check(MODULE) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_what_slicer_has_is_imported_at_file_scope(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(str(node.module))
    assert {name.split(".")[0] for name in names} <= IN_SLICER_AT_FILE_SCOPE


def test_slicers_process_never_gets_torch_through_the_agents_package() -> None:
    used = set()
    for path in SOURCES:
        used |= set(
            re.findall(r"^\s*(?:from|import) (ibis_agent[\w.]*)", path.read_text("utf-8"), re.MULTILINE)
        )
    code = f"import {', '.join(sorted(used))}, sys; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "Logic", capture_output=True, text=True)
    assert told.stdout.strip() == "[]", told.stderr


# A room may import what is named here; Agent and Several stand between the panels and the two other rooms.
ROOMS = {
    "panels": {"panels", "Agent", "Several", "scene", "worker"},
    "scene": {"scene"},
    "worker": {"worker"},
}
GROUND = {"Errors", "Signal"}


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_the_module_import_one_way(room: str) -> None:
    for path in sorted((MODULE / "IBISSlicerLib" / room).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        others = set(re.findall(r"^ *from \.\.(\w+)", text, re.MULTILINE))
        assert others <= ROOMS[room] | GROUND, path.name
        assert "IBISSlicerLib" not in text.replace("`IBISSlicerLib", ""), (
            f"{path.name}: import relative names"
        )


def test_the_wiring_stays_thin() -> None:
    assert len((MODULE / "IBISSlicer.py").read_text(encoding="utf-8").splitlines()) < 300


def test_every_widget_that_the_code_names_is_in_the_ui_file() -> None:
    ui = ElementTree.parse(MODULE / "Resources" / "UI" / "IBISSlicer.ui")
    there = {widget.get("name") for widget in ui.iter("widget")}
    for path in SOURCES:
        for name in re.findall(r"\bui\.(\w+)", path.read_text(encoding="utf-8")):
            assert name in there, f"{path.name}: ui.{name}"


def test_every_mrml_widget_of_the_ui_file_gets_the_scene() -> None:
    ui = ElementTree.parse(MODULE / "Resources" / "UI" / "IBISSlicer.ui")
    needy = {w.get("name") for w in ui.iter("widget") if str(w.get("class")).startswith("qMRML")} - {
        "IBISSlicer"
    }
    connected = {
        connection.findtext("receiver")
        for connection in ui.iter("connection")
        if connection.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
    }
    assert needy == connected


def test_shortcuts_are_told_in_tool_tips() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    keys = re.findall(
        r'\("((?:Ctrl|Escape)[^"]*)", "',
        (MODULE / "IBISSlicerLib" / "panels" / "Shortcuts.py").read_text("utf-8"),
    )
    assert keys
    for key in {key.replace("Return", "Enter").replace("Escape", "Esc") for key in keys} - {"Ctrl+Shift+Z"}:
        assert f"({key})" in texts, key


def test_research_use_only_stands_in_panel_and_help() -> None:
    assert "Research use only" in (MODULE / "Resources" / "UI" / "IBISSlicer.ui").read_text(encoding="utf-8")
    assert "Research use only" in (MODULE / "IBISSlicer.py").read_text(encoding="utf-8")
