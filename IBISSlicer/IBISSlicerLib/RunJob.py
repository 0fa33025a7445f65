"""A job of the open run: its messages from the worker update the record and the views."""

from __future__ import annotations

from collections.abc import Callable

from ibis_agent.engine.job import Job

from .scene.SceneRun import SceneRun


class RunJob(Job):
    """
    :param run: the run that the job belongs to.
    :param isOpen: whether this run is still the open one; if not, messages are ignored.
    :param changed: called when the run or its steps have changed.
    :param grew: called with the worker's event `slice` during propagation.
    :param ended: called when the job is done.
    :ivar made: the steps made by the job, in the form of SceneRun.rows.
    """

    def __init__(
        self,
        request: str,
        fields: dict,
        run: SceneRun,
        *,
        isOpen: Callable[[], bool],
        changed: Callable[[], None],
        grew: Callable[[dict], None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(
            request,
            fields,
            run.record.session,
            done=self._onDone,
            failed=self._onFailed,
            step=self._onStep,
            opened=self._onOpened,
            slice=self._onSlice,
        )
        self.made: list[dict] = []
        self._run, self._isOpen, self._changed, self._grew, self._ended = run, isOpen, changed, grew, ended
        # The state it is based on is read when its turn comes: another job may be finishing just now.
        self.prepare = lambda: {"after": run.record.after}

    def _onOpened(self, message: dict) -> None:
        self._run.opened(message["head"])

    def _onStep(self, message: dict) -> None:
        run = self._run
        if self._isOpen() and run.record.extend(message["after"], message["step"], message):
            self.made.append(run.rows()[-1])
            run.showLast()
            if run.scope == "volume" and self.made[-1].get("kind") != "grow":  # not after propagation
                run.reveal()
            run.save()
            self._changed()

    def _onSlice(self, message: dict) -> None:
        if self._isOpen():
            self._run.showSlice(message["slice"], message["known"])
            self._grew(message)

    def _onDone(self, message: dict) -> None:
        if not self._isOpen():
            return
        if not self.made:
            self._run.record.settle(message)
            self._run.save()
            self._changed()
        self._ended()

    def _onFailed(self, kind: str, text: str) -> None:
        if self._isOpen() and self._run.isInScene():  # undo unfinished propagation and dragged clicks
            self._run.show(self._run.shown)
