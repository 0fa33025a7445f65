"""The agent in Slicer without any widget: ask, step, go back, correct, accept.

Brings together the worker (Worker.py), the run in the scene (SceneRun.py), the jobs between the two (RunJob.py) and
their results (Results.py). `IBISSlicerLogic` is this class; its docstring shows a whole session.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import slicer
from ibis_agent.errors import IbisError
from ibis_agent.mask.measurements import Measurements

from .Errors import PlainError
from .Results import Results
from .RunJob import RunJob
from .scene.NewRun import newRun
from .scene.RecordedRun import openRecordedRun
from .scene.SavedRuns import openLastRun, writeSavedReview
from .scene.SceneRun import SceneRun
from .scene.SceneWatch import SceneWatch
from .Signal import Signal
from .worker import Settings
from .worker.Worker import Worker
from .worker.WorkerProcess import waitForEndingProcesses

_BUSY = "Another run is open. Accept or discard it first."


class AgentError(PlainError):
    """An action that failed, with a message for the user."""


_agents: weakref.WeakSet[Agent] = weakref.WeakSet()  # those of the panel and of scripts


class Agent:
    """One question at a time, in one worker process.

    Signals: `changed()` when the run, its steps or what is shown has changed; `textArrived(piece)` while the policy
    writes, `retried(reason)` when it has to write again; `grew(message)` for every slice while a mask is
    propagated through a volume (the worker's event `slice`). `worker` has its own signals.

    Methods that need the models take `wait`: True (for scripts and the console) returns when the job is done and
    raises a PlainError if it failed; False returns at once, and the signals report the result.
    """

    def __init__(self) -> None:
        self.changed, self.textArrived, self.retried, self.grew = Signal(), Signal(), Signal(), Signal()
        self.current: SceneRun | None = None
        self.accepted: SceneRun | None = None  # the last accepted run, for review until the next question
        self.worker = Worker()
        self.worker.failed.connect(self._onFailed)
        self._usable = True
        self._goOn = False  # whether the next step starts when one is done
        self.results = Results()
        self._watch = SceneWatch(self._letGo, self._onNodeRemoved)
        _agents.add(self)
        logging.getLogger("PIL").setLevel(logging.INFO)  # its debug messages would fill Slicer's error log
        slicer.app.connect("aboutToQuit()", self._onQuit)

    @property
    def usable(self) -> bool:
        """Whether the required packages are installed, as far as the panel knows; scripts may try anyway."""
        return self._usable

    @usable.setter
    def usable(self, usable: bool) -> None:
        self._usable = usable
        self.changed.emit()

    @property
    def isWorking(self) -> bool:
        """Whether a step, or something it needs, is in progress."""
        return self.worker.isWorking

    @property
    def steps(self) -> list[dict]:
        """The steps so far, as in trajectories; those of a volume in the same form.

        After the mask was accepted, they can be reviewed until the next question.
        """
        return self.viewed.rows() if self.viewed else []

    @property
    def viewed(self) -> SceneRun | None:
        """The displayed run: the open one, otherwise the last accepted one."""
        return self.current or self.accepted

    @property
    def hasMask(self) -> bool:
        """Whether there is a mask to export: that of the open run, or the last accepted one."""
        return bool(self.steps) if self.current is not None else self.results.hasSegment

    @property
    def measured(self) -> Measurements | None:
        """The measurements of the last accepted segment."""
        return self.results.measured

    @property
    def measuresTable(self):
        """The vtkMRMLTableNode with a row for each accepted segment."""
        return self.results.table

    def ask(self, volumeNode, question: str, **options) -> SceneRun:
        """Start a run about one slice or a volume. Nothing is loaded or computed until `step` or `run`.

        :param options: which slice or slices and how they are shown, see scene.NewRun.newRun.
        :raises AgentError: if a question is open already, or this one cannot be asked.
        """
        if self.current is not None:
            raise AgentError(_BUSY)
        try:
            run = newRun(volumeNode, question, **options)
        except (PlainError, IbisError) as error:
            raise AgentError(str(error)) from error
        Settings.rememberQuestion(run.record.question)
        return self._open(run)

    def step(self, wait: bool = True) -> dict | None:
        """Let the policy act once. With `wait`, returns the new step, or None (see `current.record`)."""
        record = self._run().record
        if record.status == "ended":
            raise AgentError(f"The run has ended: {record.reason} Place a click or go back to continue.")
        fields = {"rejected": record.rejected["uid"]} if record.rejected else {}
        return self._do("step", fields, wait)

    def run(self, wait: bool = True) -> str:
        """Let the policy act until it finishes or needs a person. Returns the status."""
        failures: list[str] = []

        def failed(kind: str, text: str) -> None:
            failures.append(text)

        self.worker.failed.connect(failed)
        try:
            self.step(wait=False)
            self._goOn = True
            if wait:
                self.worker.waitUntil(lambda: not self.isWorking)
        finally:
            self.worker.failed.disconnect(failed)
        if failures:
            raise AgentError(failures[0])
        return self._run().record.status

    def stop(self) -> None:
        """Stop the current work; for the user this is immediate, and the results so far are kept.

        Propagation through a volume stops after the current slice, and its slices are kept.
        """
        self._halt()

    def addClick(self, ras, positive: bool = True, wait: bool = True) -> dict | None:
        """Add the user's click at a point in world coordinates (RAS mm); for a volume, on any slice."""
        return self._click(lambda run: run.places.clickFields(ras, positive), wait)

    def addBox(self, corner, opposite, wait: bool = True) -> dict | None:
        """Add the user's box, given by two opposite corners in world coordinates (RAS mm) in one slice."""
        return self._click(lambda run: run.places.boxFields(corner, opposite), wait)

    def moveClick(self, number: int, ras, wait: bool = True) -> dict | None:
        """Move the click of step `number`. It becomes the user's click; later ones on its slice are removed."""
        return self._click(lambda run: run.moveFields(number, ras), wait)

    def spread(self, index: int, wait: bool = True) -> dict | None:
        """Propagate again from a clicked slice of the volume: update the slices that depend on its clicks."""
        self._halt(butClicks=True)
        return self._do("spread", {"slice": index}, wait)

    def back(self, number: int) -> None:
        """Keep the first `number` steps; 0 is before the first."""
        self._change(lambda record: record.back(number))

    def undo(self) -> None:
        """Undo the last change; if clicks of the user have not been answered yet, only those."""
        clicking = self.worker.isClicking
        self._change(lambda record: None if clicking else record.undo())

    def redo(self) -> None:
        self._change(lambda record: record.redo())

    def reject(self, wait: bool = True) -> dict | None:
        """Undo the last step, tell the policy, and let it act again."""
        self._change(lambda record: record.reject())
        return self.step(wait)

    def show(self, number: int) -> None:
        """Show the mask and the clicks as they were after step `number`."""
        run = self.viewed or self._run()
        run.show(number)
        run.setVisible(True)
        run.reveal()
        if run is self.current:
            run.save()
        self.changed.emit()

    def accept(self, segmentationNode=None, segmentId: str = "", name: str = "", show3D: bool = False) -> str:
        """Add the displayed mask to a segmentation and close the question. Returns the segment's ID.

        :param segmentationNode: None creates a new one beside the volume.
        :param segmentId: the segment to add to; empty creates a new one.
        :param name: of a new segment; empty uses a name from question and answer.
        """
        segmentId = self.results.accept(self._interrupt(), segmentationNode, segmentId, name, show3D)
        self.conclude()
        return segmentId

    def conclude(self) -> None:
        """Close the question without adding a segment; its record stays in the scene."""
        run = self._interrupt()
        run.record.finish()
        run.finish()
        self.accepted = run
        self._close(run)

    def discard(self) -> None:
        """Close the question and remove all its nodes from the scene."""
        self._remove(self._interrupt())

    def export(self, path: str) -> Path:
        """Write the mask of the open run, or the last accepted one, as .seg.nrrd, NIfTI or NRRD."""
        return self.results.export(self.current, path)

    def exportDicom(self, folder: str) -> None:
        """Write the segmentation with the accepted mask as DICOM SEG."""
        if self.current is not None:
            raise AgentError("Accept the mask first: DICOM SEG export needs it in the volume's study.")
        self.results.exportDicom(folder)

    def writeReview(self, path: str, textNode=None) -> None:
        """Write the review page of the open run, or of a run saved in the scene."""
        if textNode is not None:
            writeSavedReview(textNode, path)
        else:
            self._run().writeReview(path)

    def reopen(self, takeOver: bool = False) -> bool:
        """Open the run saved in a scene. No model is loaded until it is continued.

        The panel does this whenever a scene is loaded. A script with a separate logic calls it with `takeOver`: then
        the current owner of the run, usually the panel, releases it. Otherwise a run that is in use is left alone.
        """

        def isFree(textNode) -> bool:
            holders = [each for each in _agents if each.current and each.current.textNode is textNode]
            for holder in holders if takeOver else ():
                holder._letGo()
            return takeOver or not holders

        if self.current is None:
            run = openLastRun(isFree)
            if run is not None:
                self._open(run).setVisible(True)
                run.reveal()
        return self.current is not None

    def openRecorded(self, path: str) -> None:
        """Open a run that was recorded elsewhere (trajectory.json), to review or continue it."""
        if self.current is not None:
            raise AgentError(_BUSY)
        run = self._open(openRecordedRun(path))
        slicer.util.setSliceViewerLayers(background=run.volumeNode, fit=True)
        run.reveal()

    def shutdown(self) -> None:
        """Stop the worker and release the scene, which is not changed."""
        slicer.app.disconnect("aboutToQuit()", self._onQuit)
        self._watch.stop()
        self._goOn = False
        for signal in (self.changed, self.textArrived, self.retried, self.grew):
            signal.disconnectAll()
        self.worker.shutdown()
        if self.current is not None:
            self.current.forget()
            self.current = None
        self._forgetAccepted()
        _agents.discard(self)

    def _open(self, run: SceneRun) -> SceneRun:
        self.current = run
        self._forgetAccepted()
        self.worker.client.open(run.record.session, run.describe)
        self.changed.emit()
        return run

    def _run(self) -> SceneRun:
        if self.current is None:
            raise AgentError("No run is open. Enter a question and press Step.")
        return self.current

    def _halt(self, butClicks: bool = False) -> None:
        self._goOn = False
        growing = self.current is not None and self.current.scope == "volume"
        self.worker.stop(gently=growing, butClicks=butClicks)

    def _interrupt(self) -> SceneRun:
        """The open run, after stopping the current work: the user's actions come first."""
        self._goOn = False
        self.worker.stop()
        return self._run()

    def _click(self, fieldsOf: Callable, wait: bool) -> dict | None:
        """Send the user's click: it interrupts the current work, except for earlier clicks."""
        self._halt(butClicks=True)
        run = self._run()
        if not run.isOpened:
            raise AgentError("Press Step before you place clicks: the agent has not received the slice yet.")
        try:
            fields = fieldsOf(run)
        except IbisError as error:
            raise AgentError(f"The click was ignored: {error}") from error
        return self._do("add", fields, wait)

    def _change(self, change: Callable) -> None:
        run = self._interrupt()
        change(run.record)
        run.showLast()
        run.save()
        self.changed.emit()

    def _do(self, request: str, fields: dict, wait: bool) -> dict | None:
        """Run a job of the open run. With `wait`, returns its last step."""
        run = self._run()
        job = RunJob(
            request, fields, run, isOpen=lambda: self.current is run, changed=self.changed.emit,
            grew=self.grew.emit, ended=self._onDone,
        )  # fmt: skip
        job.text, job.retry = self.textArrived.emit, self.retried.emit
        self.worker.submit(job, wait)
        return job.made[-1] if job.made else None

    def _onDone(self) -> None:
        if self._goOn and self._run().record.status == "ready":
            self.step(wait=False)
        else:
            self._goOn = False

    def _onFailed(self, kind: str, text: str) -> None:
        self._goOn = False

    def _remove(self, run: SceneRun) -> None:
        self.current = None  # first, because removing its nodes calls _onNodeRemoved
        run.remove(record=True)
        self._close(run)

    def _close(self, run: SceneRun) -> None:
        self.current = None
        self.worker.client.close(run.record.session)
        self.changed.emit()

    def _forgetAccepted(self) -> None:
        """Stop displaying the accepted run; its record stays in the scene."""
        run, self.accepted = self.accepted, None
        if run is not None and slicer.mrmlScene.IsClosing():
            run.forget()
        elif run is not None:
            run.remove(record=False)

    def _letGo(self) -> None:
        """The scene is being closed, or another agent takes over the run."""
        self._forgetAccepted()
        if self.current is not None:
            run = self._interrupt()
            self.current = None
            run.forget()
            self._close(run)

    def _onNodeRemoved(self) -> None:
        """A node was deleted. Without its own nodes a run is over; without its volume it can continue."""
        accepted, run = self.accepted, self.current
        if accepted is not None and not accepted.isInScene():
            self._forgetAccepted()
            self.changed.emit()
        if run is None:
            return
        if not run.isInScene():
            self._remove(self._interrupt())
        elif run.volumeNode is None and not run.isOpened:
            self.stop()

    def _onQuit(self) -> None:
        """Slicer quits: only agents of scripts still exist, because the panel's is shut down with its module."""
        self.shutdown()
        waitForEndingProcesses()
