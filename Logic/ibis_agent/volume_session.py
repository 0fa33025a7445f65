"""A volume run at the terminal: what was seen, how far it has grown, and an end that loses nothing.

The first Ctrl-C stops after the slice in hand and keeps what is there; a second one ends the program.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

from .errors import Cancelled, IbisError
from .found import Found
from .session import Stopped
from .terminal import Screen, ThinkingStream, one_line
from .volume_job import VolumeJob


class VolumeSession:
    """Takes a checked job through loading and working to its results.

    as_json: print one JSON object a line instead of text; the screen is then quiet.
    """

    def __init__(self, job: VolumeJob, screen: Screen, *, as_json: bool = False) -> None:
        self.job, self.screen, self.as_json = job, screen, as_json
        self._stop = False
        self._thinking = ThinkingStream()

    def load(self) -> None:
        """Say what is going to be done, and load the models. Whatever stops it leaves nothing behind."""
        screen = self.screen
        screen.line(screen.bold("IBIS agent") + screen.dim("  research use only, not for patients"))
        for term, value in self.job.description():
            screen.line(f"  {screen.dim(f'{term:<10}')} {one_line(value)}")
        try:
            with screen.passing("  loading the models …"):
                self.job.load()
        except BaseException:
            self.job.abandon()
            raise
        screen.line()

    def go(self) -> str:
        """Work until the run ends, write the results, and return its status.

        Raises Stopped after Ctrl-C, with what was done on the disk; IbisError, likewise.
        """
        run = self.job.run
        try:
            with self._stoppable():
                run.run(self._on_action, self._on_progress, self._on_text, lambda: self._stop)
        except (KeyboardInterrupt, Cancelled):
            if not run.actions:
                self.job.abandon()
                raise Stopped("stopped before the first look; nothing was written") from None
            written = self.job.finish()
            raise Stopped(f"stopped; what was done is kept in {written['trajectory'].parent}") from None
        except BaseException:
            with contextlib.suppress(IbisError):
                if run.actions:
                    self.job.finish()
            raise
        self._finish()
        return run.status

    def _finish(self) -> None:
        run, screen = self.job.run, self.screen
        written = self.job.finish()
        summary = self.job.summary(written)
        if self.as_json:
            print(json.dumps({"event": "done", **summary}), flush=True)
        screen.line()
        if run.answer:
            screen.line(f"  {screen.bold('answer')}  {one_line(run.answer)}")
        screen.line(f"  {one_line(run.reason)}")
        shown = [index for index, each in run.areas_mm2().items() if each]
        if shown:
            screen.line(f"  {run.volume_ml:.1f} mL in slices {shown[0]} to {shown[-1]}")
        for what, path in written.items():
            screen.line(f"  {screen.dim(f'{what:<10}')} {one_line(path)}")

    def _on_text(self, piece: str) -> None:
        self.screen.flow(self._thinking.feed(piece))

    def _on_action(self, action: Any) -> None:
        self._thinking = ThinkingStream()
        self.screen.end_flow()
        if self.screen.stream.isatty() and not self.screen.quiet:
            print("\033[K", end="")  # the line of the progress
        if self.as_json:
            event = {"event": "action", "number": action.number, "kind": action.kind, "slice": action.index}
            event |= {"by": action.by, "words": action.words, "clicks": len(action.clicks)}
            print(json.dumps({**event, "seconds": action.seconds}), flush=True)
        words = action.words if action.kind == "look" else f"slice {action.index}: {action.words}"
        self.screen.line(f"{action.number:>3}  {self.screen.mark(action.kind):<6}  {one_line(words)}")

    def _on_progress(self, progress: Any, found: Found) -> None:
        if self.as_json:
            event = {
                "event": "slice",
                "slice": progress.index,
                "done": progress.done,
                "total": progress.total,
            }
            print(json.dumps({**event, "seconds_left": round(progress.seconds_left, 2)}), flush=True)
            return
        text = f"  slice {progress.index}, {progress.done} of {progress.total} at the most"
        if self.screen.stream.isatty() and not self.screen.quiet:
            print(f"\033[K{text}, {progress.seconds_left:.0f} s left\r", end="", flush=True)

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """The first Ctrl-C asks the run to stop where it loses nothing."""

        def ask(signum: int, frame: object) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        try:
            before = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not the main thread: there is no Ctrl-C to hear
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
