"""Find, install and test the packages that the worker's Python needs for the chosen models.

Only on the main thread and at the user's request: nothing is installed or imported when the module opens. PyTorch is
installed by the PyTorch extension, which chooses the version for the GPU. The packages are tested by importing them in
the worker's Python, because importing PyTorch into Slicer can crash it and locks the files.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import qt
import slicer
from ibis_agent.segmenter import is_address
from ibis_agent.segmenter.nninteractive.source import REQUIREMENT as NNINTERACTIVE
from ibis_agent.segmenter.sam2 import ARCHIVE as SAM2_ARCHIVE
from ibis_agent.segmenter.sam2 import PIP_OPTIONS
from ibis_agent.segmenter.sam2 import REQUIREMENT as SAM2

from ..Errors import PlainError
from . import Settings

TORCH = "torch>=2.6"
SAM2_PYPI = "sam2>=1.1"  # used if Meta's archive cannot be reached; its Python files are the same
_PROOF = (
    "import sys\n"
    "sys.version_info >= (3, 10) or sys.exit(3)\n"
    "import torch, transformers, safetensors, nibabel, sam2.build_sam\n"
    "print(sys.version.split()[0], torch.__version__)"
)


class InstallError(PlainError):
    """An installation failed; the message says why and what to do."""


class RestartNeeded(InstallError):
    """Slicer must be restarted before the rest can be installed."""


class Installer:
    """:param requirementsFile: the requirements other than PyTorch and sam2."""

    def __init__(self, requirementsFile: str) -> None:
        self._file = Path(requirementsFile)
        self._process = None

    def missing(self) -> list[str]:
        """The requirements that are missing in Slicer's own Python; reads only metadata, in milliseconds."""
        missing = [each for each in (TORCH, *self._requirements()) if not _isInstalled(each)]
        return missing if _hasSam2() else [*missing, SAM2_PYPI]

    def install(self, log: Callable[[str], None]) -> None:
        """Install the missing packages. Blocks; `log` is called with lines to show, including pip's.

        :raises RestartNeeded: if the PyTorch extension had to be installed first.
        :raises InstallError: with the reason and what to do.
        """
        said = _Lines(log)
        try:
            if not _isInstalled(TORCH):
                log("Installing PyTorch. This takes a few minutes.")
                with redirect_stdout(said):
                    self._installTorch()
            others = [each for each in self._requirements() if not _isInstalled(each)]
            if others:
                log(f"Installing {', '.join(_name(each) for each in others)}.")
                with redirect_stdout(said):
                    _pipInstall(others)
            if not _hasSam2():
                source = SAM2 if _isReachable(SAM2_ARCHIVE) else SAM2_PYPI
                where = (
                    "Meta's repository"
                    if source == SAM2
                    else "PyPI (a third party's upload of the same code)"
                )
                log(f"Installing SAM 2 from {where}.")
                with _environment(SAM2_BUILD_CUDA="0"), redirect_stdout(said):
                    _pipInstall([*PIP_OPTIONS, source])
        except subprocess.CalledProcessError as error:
            raise _failed(said.reason or str(error)) from error
        except PlainError:
            raise
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise _failed(str(error)) from error
        importlib.invalidate_caches()

    def prove(self, python: str, told: Callable[[bool, str], None]) -> None:
        """Import everything in a process of that Python, and call `told(works, text)` when it has finished."""
        self.cancelProof()
        # Without a parent, Python would delete it while it still emits its last signals.
        process = qt.QProcess(slicer.app)
        process.setProcessChannelMode(qt.QProcess.MergedChannels)
        environment = slicer.app.startupEnvironment()
        for name in ("PYTHONHOME", "PYTHONPATH"):
            environment.remove(name)
        environment.insert("PYTHONIOENCODING", "utf-8")
        process.setProcessEnvironment(environment)
        self._process, self._told = process, told
        process.connect("finished(int,QProcess::ExitStatus)", self._onProofFinished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._onProofError)
        process.start(python, ["-c", _PROOF])

    def cancelProof(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.disconnect("finished(int,QProcess::ExitStatus)", self._onProofFinished)
            process.disconnect("errorOccurred(QProcess::ProcessError)", self._onProofError)
            process.kill()
            process.waitForFinished(1000)
            process.deleteLater()

    def _onProofFinished(self, exitCode: int, exitStatus: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        lines = process.readAllStandardOutput().data().decode("utf-8", "replace").strip().splitlines()
        process.deleteLater()
        last = lines[-1] if lines else "no output"
        if exitCode == 0:
            python, _, torch = last.partition(" ")
            self._told(True, f"Python {python}, PyTorch {torch}")
        elif exitCode == 3 and not lines:
            self._told(False, "This Python is older than 3.10.")
        else:
            self._told(False, f"The test failed: {_sentence(last)}")

    def _onProofError(self, error: int) -> None:
        if self._process is not None and error == qt.QProcess.FailedToStart:
            process, self._process = self._process, None
            process.deleteLater()
            self._told(False, "This file could not be started as a Python interpreter.")

    def _requirements(self) -> list[str]:
        lines = (line.split(" #")[0].strip() for line in self._file.read_text(encoding="utf-8").splitlines())
        required = [line for line in lines if line and not line.startswith("#")]
        return [*required, NNINTERACTIVE] if is_address(Settings.models().segmenter) else required

    def _installTorch(self) -> None:
        try:
            import PyTorchUtils
        except ModuleNotFoundError:
            model = slicer.app.extensionsManagerModel()
            if not model.installExtensionFromServer("PyTorch", False):
                raise InstallError(
                    "The PyTorch extension was not installed. Press Install to try again, or install it in the "
                    "Extensions Manager and restart Slicer."
                ) from None
            raise RestartNeeded(
                "The PyTorch extension was installed. Restart Slicer and press Install again to continue."
            ) from None
        floor = TORCH.removeprefix("torch")
        if PyTorchUtils.PyTorchUtilsLogic().installTorch(torchVersionRequirement=floor) is None:
            raise InstallError("PyTorch was not installed. Press Install to try again.")


def _slicerPackaging():
    """`slicer.packaging`, which Slicer has since 5.12, or None."""
    try:
        return importlib.import_module("slicer.packaging")
    except ModuleNotFoundError:
        return None


def _isInstalled(requirement: str) -> bool:
    packaging = _slicerPackaging()
    if packaging is not None:
        return bool(packaging.pip_check(requirement))
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _hasSam2() -> bool:
    """Installed under either name: Meta's package is called SAM-2, the one on PyPI sam2."""
    return _isInstalled("SAM-2>=1.0") or _isInstalled(SAM2_PYPI)


def _isReachable(address: str) -> bool:
    """Whether an address can be reached. Checked first, because Slicer shows its own dialog when pip fails."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10):
            return True
    except (OSError, ValueError):
        return False


def _pipInstall(arguments: list[str]) -> None:
    packaging = _slicerPackaging()
    if packaging is not None:
        packaging.pip_install(arguments, requester="IBISSlicer")
    else:
        slicer.util.pip_install(arguments)


class _Lines(io.TextIOBase):
    """Passes on printed lines, which include pip's log, and finds the reason of a failure.

    reason: the last line that begins with ERROR, otherwise the last line.
    """

    def __init__(self, heard: Callable[[str], None]) -> None:
        self._heard, self._out, self._rest = heard, sys.stdout, ""
        self.reason = ""

    def write(self, text: str) -> int:
        self._out.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            if line.startswith("ERROR") or not self.reason.startswith("ERROR"):
                self.reason = line
            self._heard(line)
        return len(text)

    def flush(self) -> None:
        self._out.flush()


def _failed(reason: str) -> InstallError:
    return InstallError(
        f"Installation failed: {_sentence(reason)} Check the network connection, the proxy settings and the free disk "
        "space, and press Install again. Packages that are already installed are kept."
    )


def _sentence(text: str) -> str:
    """The text with a full stop at the end."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _name(requirement: str) -> str:
    return requirement.split(">")[0].split("=")[0].split("<")[0]


def plainNames(requirements: list[str]) -> str:
    """Familiar names of packages, for one line."""
    known = {
        "torch": "PyTorch",
        "sam2": "SAM 2",
        "transformers": "Transformers",
        "nninteractive-client": "nnInteractive's client",
    }
    names = [_name(each) for each in requirements]
    shown = [known[name] for name in names if name in known]
    others = len(names) - len(shown)
    return ", ".join(
        shown + ([f"{others} more packages"] if others > 1 else ["1 more package"] if others else [])
    )


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
