"""The worker as used by the panel and scripts: run jobs one after another, wait without freezing Slicer, stop.

The jobs, and recovery after a crash, are in ibis_agent.engine.client; the process in WorkerProcess.py; the effect of a
step on the run in Agent.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import ibis_agent
import qt
import slicer
from ibis_agent.engine.client import WorkerClient
from ibis_agent.engine.job import Job, ModelSettings
from ibis_agent.engine.protocol import CANCELLED

from ..Errors import PlainError
from ..Signal import Signal
from . import Settings
from .WorkerProcess import WorkerProcess, defaultPython

_PATIENCE = 5000  # ms that the worker has to stop before it is terminated
# … if it must finish the current slice, which takes a large segmenter on a CPU a long time.
_GENTLE_PATIENCE = 30000


class JobError(PlainError):
    """A job that failed; the message says why."""


class Worker:
    """Owns the client and, through it, at most one process.

    Signals: `changed()` when its state has changed; `failed(kind, text)`; `logged(line)`.
    """

    def __init__(self) -> None:
        self.changed, self.failed, self.logged = Signal(), Signal(), Signal()
        self.arguments: list[str] = []
        self.client = WorkerClient(self._start, self.changed.emit, self._log)
        self.client.settings = Settings.models()
        self._process: WorkerProcess | None = None
        self._over = False

    @property
    def isWorking(self) -> bool:
        """Whether a job is in progress that someone is waiting for."""
        return self.client.waiting

    @property
    def isClicking(self) -> bool:
        """Whether a click of the user has not been answered yet."""
        return self.client.clicking

    def submit(self, job: Job, wait: bool) -> dict | None:
        """Run a job. With `wait`: returns its last message when it is done.

        :raises JobError: with `wait`, if it failed or was stopped.
        """
        outcome: list = []
        done, undone = job.done, job.failed

        def succeeded(message: dict) -> None:
            outcome.append(message)
            done(message)

        def failed(kind: str, text: str) -> None:
            outcome.append(JobError(text))
            undone(kind, text)
            if kind != CANCELLED:
                logging.error("IBISSlicer: %s", text)
                self.failed.emit(kind, text)

        job.done, job.failed = succeeded, failed
        self.client.submit(job)
        self.changed.emit()
        if not wait:
            return None
        self.waitUntil(lambda: bool(outcome))
        if not outcome:
            raise JobError("The worker process was shut down.")
        if isinstance(outcome[0], JobError):
            raise outcome[0]
        return outcome[0]

    def waitUntil(self, condition: Callable[[], bool]) -> None:
        """For scripts: Slicer stays responsive while the worker is busy. Also ends if the worker ends; otherwise a
        waiting script would keep Slicer from quitting.
        """
        while not condition() and not self._over:
            if self._process is not None:
                self._process.waitForBytes(20)
            slicer.app.processEvents()

    def stop(self, gently: bool = False, butClicks: bool = False) -> None:
        """Stop; for the user this is immediate. The process stops too, or is terminated after a few seconds.

        :param gently: let the current slice finish, and receive the results so far.
        :param butClicks: do not stop the user's clicks.
        """
        if self.isWorking:
            stop = self.client.stop if gently else self.client.cancel
            token = stop(but_clicks=butClicks)
            patience = _GENTLE_PATIENCE if gently else _PATIENCE
            qt.QTimer.singleShot(patience, lambda: self._endIfStuck(token))

    def use(self, settings: ModelSettings) -> None:
        """Use these models from the next step on, and remember them."""
        Settings.setModels(settings)
        self.client.settings = settings
        self.changed.emit()

    def load(self, wait: bool) -> None:
        self.submit(Job("load"), wait)

    def unload(self, wait: bool) -> None:
        self.stop()
        self.submit(Job("unload"), wait)

    def checkFit(self, told: Callable[[dict], None], failed: Callable[[str], None]) -> None:
        """Ask whether the chosen policy fits into memory; calls `told` with {"needed", "free", "fits", …} in bytes,
        or `failed` with the reason.
        """
        chosen = self.client.settings
        fields = {"policy": chosen.policy, "device": chosen.device, "precision": chosen.precision}
        job = Job("info", fields, done=lambda message: told(message["info"]))
        job.failed = lambda kind, text: failed(text)
        self.submit(job, wait=False)

    def listModels(self, told: Callable[[list[str]], None], failed: Callable[[str], None]) -> None:
        """Ask a server which models it offers; calls `told` with their names, or `failed` with the reason."""
        chosen = self.client.settings
        fields = {"policy": chosen.policy, "send_pictures_to": chosen.send_pictures_to}
        job = Job("models", fields, done=lambda message: told([str(name) for name in message["models"]]))
        job.failed = lambda kind, text: failed(text)
        self.submit(job, wait=False)

    def shutdown(self) -> None:
        """End the process and emit no more signals."""
        self._over = True
        for signal in (self.changed, self.failed, self.logged):
            signal.disconnectAll()
        self.client.shutdown()

    def _endIfStuck(self, token: int) -> None:
        if self.client.end_if_stuck(token):
            self._log(
                "The worker process did not stop and was terminated. The models load again at the next step."
            )

    def _start(self, onBytes: Callable[[bytes], None], onEnd: Callable[[str], None]) -> WorkerProcess:
        program = Settings.python() or defaultPython()
        packageFolder = Path(ibis_agent.__file__).parent.parent
        self._process = WorkerProcess(program, packageFolder, self.arguments, onBytes, onEnd, self._log)
        return self._process

    def _log(self, line: str) -> None:
        logging.debug("IBISSlicer worker: %s", line)
        self.logged.emit(line)
