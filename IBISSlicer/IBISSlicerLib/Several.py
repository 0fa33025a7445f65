"""Several structures, one question after the other: each is asked, run to its end, and accepted as a segment.

If a run needs the user, it waits. When the user accepts it, the next question follows; when the user discards it, the
remaining questions are dropped.

How a question is split into one for each structure is in ibis_agent.policy.vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import qt
from ibis_agent.errors import IbisError
from ibis_agent.mask.structures import name_for

from .Agent import Agent
from .Errors import PlainError, telling
from .scene.SceneRun import SceneRun
from .Signal import Signal


class Several:
    """
    :param agent: the Agent.
    :param say: shows a line to the user.

    ended: Signal(rest, text): the remaining questions, and a summary of the others.
    accept: adds the displayed mask to the chosen segmentation; set by the panel.
    byItself: whether the next question starts when one has finished; stopping and single steps turn it off.
    """

    def __init__(self, agent: Agent, say: Callable[[str], None]) -> None:
        self.agent, self._say = agent, say
        self.accept: Callable[[], None] = lambda: None
        self.ended = Signal()
        self.byItself = False
        self._questions: list[str] = []
        self._begun = 0  # the number of questions
        self._added = 0
        self._absent: list[str] = []
        self._doubts: list[str] = []  # warnings about the answers
        self._run: SceneRun | None = None
        self._ask: Callable[[str], SceneRun] | None = None
        self._settling = qt.QTimer()  # let the agent finish its current signal first
        self._settling.setSingleShot(True)
        self._settling.setInterval(0)
        self._settling.connect("timeout()", self._goOn)
        for signal in (agent.changed, agent.worker.changed):
            signal.connect(self._onChanged)

    @property
    def isOpen(self) -> bool:
        return bool(self._questions)

    @property
    def progress(self) -> str:
        """For example "2 of 3, then Spleen"; empty if there is only one question."""
        if not self._questions:
            return ""
        rest = self._questions[self._begun :]
        then = f", then {', '.join(map(name_for, rest))}" if rest else ""
        return f"{self._begun} of {len(self._questions)}{then}"

    def start(self, questions: list[str], ask: Callable[[str], SceneRun]) -> None:
        """Ask the first question; `byItself` decides whether the others follow. Raises what `ask` raises."""
        self.stop()
        self._run = ask(questions[0])
        if len(questions) > 1:
            self._questions, self._begun, self._ask = list(questions), 1, ask
            self._added, self._absent, self._doubts = 0, [], []

    def stop(self) -> None:
        """Drop the remaining questions."""
        self._questions, self._run, self._ask = [], None, None

    def cleanup(self) -> None:
        self._settling.stop()
        self.stop()

    def _onChanged(self) -> None:
        if self._questions:
            self._settling.start()

    def _goOn(self) -> None:
        run, agent = self.agent.current, self.agent
        if not self._questions or agent.isWorking:
            return
        if run is None and agent.accepted is self._run:
            if self._run.rows()[self._run.shown - 1]["area_px"]:
                self._added += 1
            else:
                self._absent.append(name_for(self._run.record.question))
            self._next()
        elif run is not self._run:  # the run was discarded, or another run was opened
            self._end(self._questions[self._begun :])
        elif self.byItself and run.record.status == "ended" and run.record.answer is not None:
            run.showLast()
            doubts = [f"{name_for(run.record.question)}: {each}" for each in run.record.caveats]
            before, self._doubts = self._doubts, self._doubts + doubts
            if run.rows()[-1]["area_px"]:
                self.accept()
            else:
                agent.conclude()
            if agent.current is run:  # it could not be accepted: the user decides
                self.byItself, self._doubts = False, before

    def _next(self) -> None:
        if self._begun == len(self._questions):
            self._end([])
            return
        assert self._ask is not None
        self._begun += 1
        try:
            self._run = self._ask(self._questions[self._begun - 1])
        except (PlainError, IbisError) as error:
            self._doubts.append(str(error))  # why the remaining questions are dropped
            self._end(self._questions[self._begun - 1 :])
            return
        with telling(self._say):
            if self.byItself:
                self.agent.run(wait=False)

    def _end(self, rest: list[str]) -> None:
        added, absent, doubts = self._added, self._absent, self._doubts
        self.stop()
        told = [f"Added {added} segments." if added != 1 else "Added 1 segment."] if added else []
        told += [f"Not found: {', '.join(absent)}."] if absent else []
        self.ended.emit(rest, " ".join([*told, *doubts]))
