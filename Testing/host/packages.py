"""Installing Python packages: `slicer.packaging`, `PyTorchUtils`, and a PythonSlicer that can be run.

Nothing is installed. The fakes record what was asked for, in order, and a successful "installation" switches
PythonSlicer to an interpreter that has the packages, if the test names one; so that a check by importing in a
subprocess tells the truth. PythonSlicer is a launcher here as in Slicer: it runs the interpreter as a child,
so that killing it leaves the child behind.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from packaging.requirements import Requirement

from .refuse import NotSimulatedError

#: What Slicer 5.12 brings along in its own Python (its SuperBuild/External_python-*.cmake), with versions
#: near those it ships.
BUNDLED = {
    "numpy": "2.4.6",
    "scipy": "1.17.0",
    "simpleitk": "2.5.3",
    "pydicom": "3.0.1",
    "pillow": "12.1.1",
    "requests": "2.32.5",
    "packaging": "26.0",
    "dicomweb-client": "0.60.1",
    "pip": "26.0",
    "setuptools": "82.0.0",
    "wheel": "0.46.3",
}


class Packages:
    """What is "installed" in Slicer's Python, what was asked for, and what an installation shall do."""

    def __init__(self, temporary: Path) -> None:
        self.installed: dict[str, str] = {}
        #: every request: ("pip", ["a>=1"]) or ("torch", [">=2.6"])
        self.requests: list[tuple[str, list[str]]] = []
        #: set to make the next installations fail with this pip log
        self.failure: str | None = None
        #: interpreter that has what gets installed; PythonSlicer becomes it after a successful installation
        self.provided_by: Path | None = None
        self._folder = temporary / "bin"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._interpreter = self._folder / "interpreter"
        self.launcher = self._folder / "PythonSlicer"
        self.launcher.write_text(
            # A shell takes stdin away from what it runs in the background, unless it is handed over.
            '#!/bin/sh\nexec 3<&0\n"$(cat "$(dirname "$0")/interpreter")" "$@" <&3 3<&- &\nexec 3<&-\nwait $!\n',
            encoding="utf-8",
        )
        self.launcher.chmod(0o755)
        self.reset()

    def reset(self) -> None:
        """A fresh Slicer: nothing installed, PythonSlicer without torch."""
        self.installed = dict(BUNDLED)
        self.requests, self.failure, self.provided_by = [], None, None
        self._interpreter.write_text(str(Path(sys.prefix) / "bin" / "python"))

    def _install(
        self,
        kind: str,
        requirements: list[str],
        log: Callable[[str], None] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.requests.append((kind, [*options, *requirements]))
        if self.failure is not None:
            for line in self.failure.splitlines():
                print(line)
                if log is not None:
                    log(line)
            # As slicer.util.logProcessOutput does it: not the text, but the file that it was read from.
            read = io.StringIO()
            raise subprocess.CalledProcessError(1, ["pip", "install", *requirements], read)
        for text in requirements:
            requirement = Requirement(text)
            line = f"Successfully installed {requirement.name} (simulated)"
            print(line)
            if log is not None:
                log(line)
            floors = [
                clause.version for clause in requirement.specifier if clause.operator in (">=", "==", "~=")
            ]
            self.installed[requirement.name.lower()] = floors[0] if floors else "1.0"
        if self.provided_by is not None:
            self._interpreter.write_text(str(self.provided_by))

    def satisfied(self, requirement: Requirement) -> bool:
        """Is it installed in a version that fits (markers are taken into account)?"""
        if requirement.marker is not None and not requirement.marker.evaluate():
            return True
        version = self.installed.get(requirement.name.lower())
        return version is not None and requirement.specifier.contains(version, prereleases=True)


#: Options of pip that are understood here; others are refused, since what they do would not be imitated.
PIP_OPTIONS = ("--no-deps", "--no-build-isolation")


def _pip_arguments(value: Any) -> tuple[list[str], list[str]]:
    """(options, requirements) of what `pip_install` takes: a pip command line, as a text or as a list."""
    arguments = value.split() if isinstance(value, str) else [str(one) for one in value]
    options = [one for one in arguments if one.startswith("-")]
    if set(options) - set(PIP_OPTIONS):
        raise NotSimulatedError(f"pip install {' '.join(options)}")
    wanted = [one for one in arguments if not one.startswith("-")]
    for one in wanted:
        Requirement(one)  # pip would refuse what this cannot read
    return options, wanted


def _requirements(value: Any) -> list[Requirement]:
    if isinstance(value, str):
        value = value.split()
    elif isinstance(value, Requirement):
        value = [value]
    return [one if isinstance(one, Requirement) else Requirement(one) for one in value]


def make_packaging_module(packages: Packages) -> types.ModuleType:
    """`slicer.packaging` (Slicer 5.12) on the recorded packages."""
    module = types.ModuleType("slicer.packaging", __doc__)

    def load_requirements(path: Any) -> list[Requirement]:
        lines = [line.split(" #")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]

    def pip_check(req: Any) -> bool:
        return all(packages.satisfied(one) for one in _requirements(req))

    def pip_install(
        requirements: Any,
        constraints: Any = None,
        no_deps_requirements: Any = None,
        skip_packages: Any = None,
        blocking: bool = True,
        show_progress: bool = True,
        requester: str | None = None,
        logCallback: Callable[[str], None] | None = None,
        completedCallback: Callable[[int], None] | None = None,
    ) -> Any:
        if not isinstance(requirements, (str, list)):
            raise ValueError("pip_install requirement input must be string or list")
        options, wanted = _pip_arguments(requirements)
        extra = _pip_arguments(no_deps_requirements or [])[1]
        try:
            packages._install("pip", wanted + extra, logCallback, options)
        except subprocess.CalledProcessError:
            if blocking:
                raise
            if completedCallback is not None:
                completedCallback(1)
            return None
        if completedCallback is not None:
            completedCallback(0)
        return [] if skip_packages else None

    def pip_ensure(
        requirements: Any,
        constraints: Any = None,
        skip_packages: Any = None,
        prompt_install: bool = True,
        prompt_restart: bool = True,
        requester: str | None = None,
        skip_in_testing: bool = True,
        show_progress: bool = True,
    ) -> Any:
        missing = [one for one in _requirements(requirements) if not packages.satisfied(one)]
        if not missing or (skip_in_testing and slicer.app.testingEnabled()):
            return None
        names = "\n".join(f"- {one}" for one in missing)
        question = f"{len(missing)} Python packages need to be installed. Continue?"
        if prompt_install and not slicer.util.confirmOkCancelDisplay(question, requester, detailedText=names):
            raise RuntimeError("User declined package installation")
        return pip_install(
            [str(one) for one in missing], constraints, None, skip_packages, requester=requester
        )

    for thing in (load_requirements, pip_check, pip_install, pip_ensure):
        setattr(module, thing.__name__, thing)
    return module


def make_pytorch_utils(packages: Packages) -> types.ModuleType:
    """`PyTorchUtils`, the module of the PyTorch extension."""
    module = types.ModuleType("PyTorchUtils", __doc__)

    class PyTorchUtilsLogic:
        """Only what concerns installing; torch itself is never imported in this process."""

        @staticmethod
        def torchInstalled() -> bool:
            return "torch" in packages.installed

        def installTorch(
            self,
            askConfirmation: bool = False,
            forceComputationBackend: str | None = None,
            torchVersionRequirement: str | None = None,
            torchvisionVersionRequirement: str | None = None,
        ) -> Any:
            if askConfirmation and not slicer.util.confirmOkCancelDisplay(
                "PyTorch will be downloaded and installed"
            ):
                return None
            packages._install("torch", ["torch" + (torchVersionRequirement or "")])
            return types.SimpleNamespace(__version__=packages.installed["torch"])

    module.PyTorchUtilsLogic = PyTorchUtilsLogic  # type: ignore[attr-defined]
    return module


class Extensions:
    """The Extensions Manager's state: which extensions there are after the next start."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages

    def add_pytorch(self) -> None:
        """As after installing the PyTorch extension and a restart."""
        sys.modules["PyTorchUtils"] = make_pytorch_utils(self._packages)
        slicer.app.extensionsManagerModel()._installed.append("PyTorch")

    def remove_all(self) -> None:
        sys.modules.pop("PyTorchUtils", None)
        slicer.app.extensionsManagerModel()._installed.clear()
        slicer.app.extensionsManagerModel()._requested.clear()

    @property
    def requested(self) -> list[str]:
        """Extensions that the module asked the manager to install."""
        return slicer.app.extensionsManagerModel()._requested


def install(packages: Packages) -> None:
    """Publish `slicer.packaging` and put PythonSlicer on PATH, where Slicer has it."""
    module = make_packaging_module(packages)
    sys.modules[module.__name__] = module
    slicer.packaging = module
    os.environ["PATH"] = f"{packages.launcher.parent}{os.pathsep}{os.environ.get('PATH', '')}"
