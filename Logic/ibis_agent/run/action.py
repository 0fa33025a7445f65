"""The actions of a run, and the callbacks of whoever watches it. No models, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ibis_agent.actions import Prompt, Terminate
from ibis_agent.errors import Cancelled
from ibis_agent.run.episode import Author, Step
from ibis_agent.segmenter.contract import Found

Kind = Literal["look", "click", "done", "grow", "review", "end"]
KINDS: tuple[Kind, ...] = ("look", "click", "done", "grow", "review", "end")
Stage = Literal["look", "work", "grow", "review", "finish", "end"]


@dataclass(frozen=True)
class Way:
    """One direction of a propagation: neighbouring slices, visited in order.

    Attributes:
        start: the slice it starts from, which is not visited itself.
        last: the last slice visited; `start` if there was none.
        ended: the object ends here; masks beyond it were removed.
    """

    start: int
    last: int
    ended: bool = False


@dataclass(frozen=True, eq=False)
class RunAction:
    """One action of a run.

    Attributes:
        number: from 1.
        kind: "look": the policy looked at a slice while it searched for the key slice; "click": a slice was prompted
            and is now an anchor; "done": the policy has finished the key slice; "grow": the mask was propagated to
            neighbouring slices; "review": a second look that changed nothing; "end": the agent has finished.
        index: the slice.
        by: who acted.
        words: a description for people.
        steps: the steps on that slice.
        clicks: all prompts of the slice after the action.
        ways: the slices visited by a "grow".
        touched: the slices whose mask changed or was removed.
        look: the number of the second look it belongs to, from 1; 0 for none.
        afresh: its clicks start without the previous mask of the slice.
        stopped: the propagation was stopped before its end.
        seconds: duration.
    """

    number: int
    kind: Kind
    index: int
    by: Author
    words: str = ""
    steps: tuple[Step, ...] = ()
    clicks: tuple[Prompt, ...] = ()
    ways: tuple[Way, ...] = ()
    touched: tuple[int, ...] = ()
    look: int = 0
    afresh: bool = False
    stopped: bool = False
    seconds: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether actions of this kind change masks."""
        return self.kind in ("click", "grow")

    @property
    def answer(self) -> str | None:
        """The answer of its last step; None unless that step is Terminate."""
        last = self.steps[-1].action if self.steps else None
        return last.answer if isinstance(last, Terminate) else None


@dataclass(frozen=True)
class Progress:
    """How far a propagation has got: slices done, their largest possible number, and the estimated seconds left."""

    index: int
    done: int
    total: int
    seconds_left: float


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Watch:
    """Callbacks of a run.

    Attributes:
        action: called with every RunAction once it is done.
        progress: called with Progress and Found for every propagated slice.
        text: called with the policy's reply in pieces.
        retry: called with the reason when a reply could not be parsed and the policy is asked again.
        cancelled: polled often; once it returns True, the work ends with Cancelled.
    """

    action: Callable[[RunAction], object] = _nothing
    progress: Callable[[Progress, Found], object] = _nothing
    text: Callable[[str], object] = _nothing
    retry: Callable[[str], object] = _nothing
    cancelled: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raise Cancelled if requested."""
        if self.cancelled():
            raise Cancelled()
