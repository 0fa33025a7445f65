"""A simulated Slicer to test a scripted module in, without Slicer.

Real, from the slicer-core wheel: the MRML scene and nodes, the module logics, storage nodes, slice logics,
displayable managers, the interactor style that turns mouse events into markups, and `slicer.util`. Imitated
on PySide6: `qt`, `ctk`, the qMRML widgets, `slicer.app`, the scripted-module base classes, parameter nodes
and package installation. What is not imitated is refused, never invented.

What passing here does not prove: that Slicer finds and builds the module, how PythonQt treats enums and
object ownership, how the real widgets look and behave, the layout manager, 3D views, the Segment Editor,
DICOM, the Extensions Manager, and other versions of Qt and Python than those installed here. Every screenshot
says so.

`import host` itself needs neither Slicer nor Qt; `host.start()` does.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .refuse import NotSimulatedError
from .source_check import source_check

if TYPE_CHECKING:
    from .session import Host

__all__ = ["NotSimulatedError", "agent_python", "missing_parts", "source_check", "start"]

_host: Host | None = None


def missing_parts() -> str:
    """Why the host cannot run in this Python, or an empty text."""
    for module, package in (("slicer", "slicer-core"), ("PySide6", "PySide6-Essentials")):
        if importlib.util.find_spec(module) is None:
            return f"the simulated Slicer host needs {package} (make venv-host, then run with .venv-host)"
    return ""


def agent_python() -> Path | None:
    """An interpreter that has the agent's packages: $IBIS_AGENT_PYTHON, or .venv beside the sources."""
    named = os.environ.get("IBIS_AGENT_PYTHON")
    if named:
        return Path(named)
    root = Path(__file__).resolve().parents[2]
    found = root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return found if found.exists() else None


def start() -> Host:
    """The simulated Slicer of this process; the first call takes a few seconds."""
    global _host
    if _host is None:
        # Before Qt and VTK are imported: no display is needed.
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        if ctypes.util.find_library("EGL"):
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        from .session import Host

        _host = Host()
    return _host
