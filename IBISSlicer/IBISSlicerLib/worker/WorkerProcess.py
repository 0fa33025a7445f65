"""The worker as a QProcess: which Python runs it, and how bytes are exchanged.

The messages are defined in ibis_agent.engine.protocol; what to do when the process ends is in ibis_agent.engine.client.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import qt
import slicer

# Processes that were asked to end but are still running.
_ending: list[WorkerProcess] = []
_waitsAtQuit = False

_SECONDS_AT_EXIT = 2.5


class WorkerProcess:
    """One running worker (an ibis_agent.engine.client.Transport).

    :param program: the Python that runs it; PythonSlicer, or the user's own.
    :param packageFolder: the folder that contains the package `ibis_agent`.
    :param arguments: further arguments for the worker.
    :param onBytes: called with the bytes from its stdout.
    :param onEnd: called once with the reason, for display.
    :param onLog: called with each line of its stderr.
    :raises OSError: if there is no such program.
    """

    def __init__(
        self,
        program: str,
        packageFolder: Path,
        arguments: list[str],
        onBytes: Callable[[bytes], None],
        onEnd: Callable[[str], None],
        onLog: Callable[[str], None],
    ) -> None:
        if not Path(program).is_file():
            raise FileNotFoundError(f"there is no Python at {program}")
        _waitAtQuit()
        self._onBytes, self._onEnd, self._onLog = onBytes, onEnd, onLog
        self._errorTail = b""
        self._lastError = ""
        self._ended = False
        # Owned by Slicer: an object owned by Python would be deleted on a reload, before the process could end cleanly.
        self._process = qt.QProcess(slicer.app)
        self._process.setProcessChannelMode(qt.QProcess.SeparateChannels)
        self._process.setProcessEnvironment(_environment())
        self._process.setWorkingDirectory(str(packageFolder))  # `-m` searches for the package there
        self._process.connect("readyReadStandardOutput()", self._onStandardOutput)
        self._process.connect("readyReadStandardError()", self._onStandardError)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onError)
        self._process.start(program, ["-u", "-m", "ibis_agent.engine", *arguments])

    def write(self, data: bytes) -> None:
        if self._process.state() != qt.QProcess.NotRunning:
            self._process.write(data)

    def waitForBytes(self, milliseconds: int) -> None:
        """Receive data for this long, without the application's event loop."""
        self._process.waitForReadyRead(milliseconds)

    def finish(self) -> None:
        self._stopListening()
        if self._process.state() != qt.QProcess.NotRunning:
            _ending.append(self)
            self._process.closeWriteChannel()

    def kill(self, pid: int | None) -> None:
        self._stopListening()
        self._process.kill()
        if pid is not None and pid != self._process.processId():  # a launcher had started it
            try:
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            except OSError:
                logging.debug("IBISSlicer: the worker %d had already ended", pid)
        _ending.append(self)

    def _stopListening(self) -> None:
        self._onBytes, self._onEnd = _ignore, _ignore
        self._process.disconnect("readyReadStandardOutput()", self._onStandardOutput)
        self._process.disconnect("readyReadStandardError()", self._onStandardError)

    def _onStandardOutput(self) -> None:
        self._onBytes(self._process.readAllStandardOutput().data())

    def _onStandardError(self) -> None:
        *lines, self._errorTail = (self._errorTail + self._process.readAllStandardError().data()).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._lastError = text
                self._onLog(text)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        if self._onEnd is not _ignore:
            self._onStandardOutput()
            self._onStandardError()
        if exitStatus == qt.QProcess.CrashExit:
            reason = "it crashed or was killed"
        else:
            reason = f"exit code {exitCode}"
        self._end(f"{reason}; its last error output: {self._lastError}" if self._lastError else reason)

    def _onError(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:  # the only error without a `finished` signal
            self._end(f"it did not start: {self._process.errorString()}")

    def _end(self, reason: str) -> None:
        if self in _ending:
            _ending.remove(self)
        self._process.deleteLater()
        if not self._ended:
            self._ended = True
            self._onEnd(reason)


def _waitAtQuit() -> None:
    """Connect once and permanently: Slicer unloads modules before this signal when it quits, so a slot that is
    disconnected in a module's `cleanup` would never be called.
    """
    global _waitsAtQuit
    if not _waitsAtQuit:
        _waitsAtQuit = True
        slicer.app.connect("aboutToQuit()", waitForEndingProcesses)


def waitForEndingProcesses() -> None:
    """Wait for ending workers when the application quits."""
    for process in tuple(_ending):
        if not process._process.waitForFinished(int(_SECONDS_AT_EXIT * 1000)):
            process._process.kill()
            process._process.waitForFinished(1000)  # Qt complains about processes that outlive it


def defaultPython() -> str:
    """PythonSlicer, which has Slicer's own environment. Slicer puts it on PATH, and `slicer.util` relies on this."""
    return shutil.which("PythonSlicer") or sys.executable


def _environment():
    """The environment before Slicer changed it: PythonSlicer adds what it needs, and another Python must not see it."""
    environment = slicer.app.startupEnvironment()
    for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONSAFEPATH"):
        environment.remove(name)
    environment.insert("PYTHONUNBUFFERED", "1")
    environment.insert("PYTHONIOENCODING", "utf-8")
    environment.insert("HF_HUB_OFFLINE", "1")
    environment.insert("TRANSFORMERS_OFFLINE", "1")
    environment.insert("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return environment


def _ignore(_: object) -> None:
    """Ignore the output of a process that was asked to end."""
