"""What a run consists of: its actions; and who watches it. No models, no torch."""

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
    """Slices that were visited one after the other.

    Attributes:
        start: where the way begins, not visited itself.
        last: the last slice visited, `start` if there was none.
        ended: the object ends here; what was known further on is gone.
    """

    start: int
    last: int
    ended: bool = False


@dataclass(frozen=True, eq=False)
class RunAction:
    """One thing that was done.

    Attributes:
        number: from 1.
        kind: "look" at a slice for the key slice; "click": a slice was worked on and is an anchor now; "done":
            the policy is done with the key slice; "grow": neighbouring slices were found again; "review": a
            second look that changed nothing; "end": the agent has nothing left to do.
        index: the slice.
        by: who acted.
        words: what was seen or why, for people.
        steps: on that slice.
        clicks: all clicks that the slice stands on after it.
        ways: the slices visited.
        touched: the slices that are known otherwise than before, or not any more.
        look: which second look it belongs to, from 1; 0 for none.
        afresh: its clicks begin without the mask that was there.
        stopped: the ways are not at their ends, somebody stopped them.
        seconds: it took.
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
        """Whether it is of a kind that changes masks."""
        return self.kind in ("click", "grow")

    @property
    def answer(self) -> str | None:
        """What its last step answered; None where that is not an end."""
        last = self.steps[-1].action if self.steps else None
        return last.answer if isinstance(last, Terminate) else None


@dataclass(frozen=True)
class Progress:
    """How far growing is: slices done, the most that there can be, and the seconds that those left may take."""

    index: int
    done: int
    total: int
    seconds_left: float


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Watch:
    """Who is told of what happens, and who may stop it.

    Attributes:
        action: gets every RunAction when it is done.
        progress: gets the Progress and what was Found, for every slice.
        text: gets the policy's reply in pieces.
        retry: gets the reason when a reply could not be read and the policy is asked again.
        cancelled: asked often; once it says True the work ends in Cancelled.
    """

    action: Callable[[RunAction], object] = _nothing
    progress: Callable[[Progress, Found], object] = _nothing
    text: Callable[[str], object] = _nothing
    retry: Callable[[str], object] = _nothing
    cancelled: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raises Cancelled if it was asked for."""
        if self.cancelled():
            raise Cancelled()
