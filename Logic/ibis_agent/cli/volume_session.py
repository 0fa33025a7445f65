"""A volume run at the terminal: what was seen, how far it has grown, the person's word, an end that loses nothing.

The first Ctrl-C stops after the slice in hand and keeps what is there; a second one ends the program.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator

from ibis_agent.cli import terminal
from ibis_agent.cli.session import Stopped
from ibis_agent.cli.terminal import Add, Back, Do, Replace, Screen, ThinkingStream, one_line
from ibis_agent.cli.volume_job import VolumeJob
from ibis_agent.errors import Cancelled, IbisError, InputError
from ibis_agent.run.volume_actions import Progress, VolumeAction, Watch
from ibis_agent.segmenter.contract import Found

HELP = """\
     Enter       go on with the agent          b [n]       back by one action, or by n
     57 + x y    your own positive click on slice 57, without the number on the slice of the last action
     57 - x y    your own negative click there u / r       undo / redo the last change of masks
     57.2 + x y  move the second click of slice 57; the later ones there go
     57 g        find the neighbours of slice 57 again, until they come out as they were
     all         let the agent go on to its end            a / q       accept, or stop here: keep everything
     x           reject: take back, and tell the agent so  d           discard and end, ? this help
     x to the right and y down from 0 to 1; or pixels, column then row:  57 + 91 48 px"""
_MOVED = re.compile(r"(\d{1,9})\.(\d{1,9})\s*([+-].*)", re.ASCII)
_AGAIN = re.compile(r"(\d{1,9})?\s*g(?:row)?", re.ASCII)


class VolumeSession:
    """Takes a checked job through loading and working to its results.

    by_hand: wait for the person after each action.
    as_json: print one JSON object a line instead of text; the screen is then quiet.
    """

    def __init__(
        self, job: VolumeJob, screen: Screen, *, by_hand: bool = False, as_json: bool = False
    ) -> None:
        self.job, self.screen, self.by_hand, self.as_json = job, screen, by_hand, as_json
        self._stop = False
        self._thinking = ThinkingStream()
        self._watch = Watch(
            self._on_action, self._on_progress, self._on_text, self._on_retry, lambda: self._stop
        )

    def load(self) -> None:
        """Say what is going to be done, and load the models. Whatever stops it leaves nothing behind."""
        screen, resumed = self.screen, self.job.resumed
        try:
            if resumed is not None and resumed.head.get("status") == "ended" and not self.by_hand:
                raise InputError(
                    "the run to resume has ended",
                    file=self.job.asked.base.resume,
                    value=resumed.head.get("reason"),
                    remedy="Go back in it, or correct it, with --step.",
                )
            screen.line(screen.bold("IBIS agent") + screen.dim("  research use only, not for patients"))
            for term, value in self.job.description():
                screen.line(f"  {screen.dim(f'{term:<10}')} {one_line(value)}")
            with screen.passing("  loading the models …"):
                self.job.load()
        except BaseException:
            self.job.abandon()
            raise
        for note in self.job.notes:
            screen.line(f"  {screen.warn('note')}       {one_line(note)}")
        screen.line()

    def go(self) -> str:
        """Work until the run ends, or as the person says; write the results, and return the status.

        Raises Stopped after Ctrl-C, with what was done on the disk; IbisError, likewise.
        """
        run = self.job.run
        try:
            if self.by_hand:
                kept = self._with_the_person()
            else:
                kept = True
                with self._stoppable():
                    run.run(self._watch)
        except (KeyboardInterrupt, Cancelled):
            raise Stopped(self._keep()) from None
        except BaseException:
            with contextlib.suppress(IbisError):
                if run.actions:
                    self.job.finish()
                else:
                    self.job.abandon()
            raise
        if kept:
            self._finish()
        else:
            self.job.abandon()
            self.screen.line("  discarded, nothing was kept")
        return run.status

    def _keep(self) -> str:
        """Make sure that what was done is on the disk, and say where."""
        self.screen.end_flow()
        if not self.job.run.actions:
            self.job.abandon()
            return "stopped before the first look; nothing was written"
        path = shlex.quote(str(self.job.finish()["trajectory"]))
        scan = shlex.quote(str(self.job.asked.base.scan))
        return f"stopped; what was done is kept. Go on with: ibis-agent run {scan} --volume --resume {path}"

    def _with_the_person(self) -> bool:
        """Acts and waits in turn. False if the person discards the run."""
        run = self.job.run
        if run.actions:
            self._tell_state()
        else:
            self._do(lambda: run.step(self._watch))
        while True:
            try:
                typed = self._ask()
                if typed is None or self._obey(typed):
                    return True
            except _Discarded:
                return False
            except InputError as error:
                self.screen.line(self.screen.warn(f"     {one_line(error)}"))

    def _ask(self) -> str | None:
        hint = "Enter accepts" if self.job.run.status == "ended" else "Enter goes on"
        self.screen.ask(f"   {self.screen.mark('›')} {self.screen.dim(f'{hint}, ? helps: ')}")
        try:
            typed = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InputError("that is not understood", remedy="Type ? for what there is.") from error
        if not sys.stdin.isatty():
            self.screen.line()
        return typed.strip().lower() if typed else None

    def _obey(self, typed: str) -> bool:
        """Do what the person typed. True ends the run; raises _Discarded, InputError."""
        run, watch = self.job.run, self._watch
        last = run.actions[-1].index if run.actions else run.slices.first
        if typed in ("?", "h", "help"):
            self.screen.line(HELP)
            return False
        if typed == "all":
            self._do(lambda: run.run(watch))
            return False
        again = _AGAIN.fullmatch(typed)
        if again:
            index = int(again.group(1) or last)
            self._do(lambda: run.spread(index, watch))
            return False
        moved = _MOVED.fullmatch(typed)
        command = terminal.read_command(moved.group(3) if moved else typed, *run.memory.size)
        if isinstance(command, (Add, Replace)):
            index = command.number if isinstance(command, Replace) else int(moved.group(1)) if moved else last
            click, number = command.click, int(moved.group(2)) if moved else None
            self._do(lambda: run.click(index, click, number, watch))
        elif isinstance(command, Back):
            run.back(max(0, len(run.actions) - command.steps))
            self._tell_state()
        elif command == Do("discard"):
            raise _Discarded
        elif command in (Do("undo"), Do("redo")):
            change = run.undo if command == Do("undo") else run.redo
            change()
            self._tell_state()
        elif command in (Do("accept"), Do("quit")):
            return True
        elif command == Do("reject"):
            run.reject()
            self._tell_state()
        elif run.status == "ended":
            return True
        else:
            self._do(lambda: run.step(watch))
        return False

    def _do(self, act: Callable[[], object]) -> None:
        """Something that Ctrl-C stops without ending the program."""
        self._stop = False
        try:
            with self._stoppable():
                act()
        except Cancelled:
            self.screen.line(self.screen.warn("     stopped; what was done is kept"))
        if self.job.run.status == "paused":
            self.screen.line(self.screen.warn(f"     {one_line(self.job.run.reason)}"))

    def _tell_state(self) -> None:
        run = self.job.run
        where = (
            f"after action {len(run.actions)}, {run.volume_ml:.1f} mL" if run.actions else "at the question"
        )
        self.screen.line(self.screen.dim(f"     now {where}"))

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

    def _on_retry(self, problem: str) -> None:
        self._thinking = ThinkingStream()
        self.screen.line(
            self.screen.warn(f"     its reply could not be read ({one_line(problem)}); asking once more")
        )

    def _on_action(self, action: VolumeAction) -> None:
        self._thinking = ThinkingStream()
        self.screen.end_flow()
        if self.screen.stream.isatty() and not self.screen.quiet:
            print("\033[K", end="")  # the line of the progress
        if self.as_json:
            event = {"event": "action", "number": action.number, "kind": action.kind, "slice": action.index}
            event |= {"by": action.by, "words": action.words, "clicks": len(action.clicks)}
            print(json.dumps({**event, "seconds": action.seconds}), flush=True)
        words = f"slice {action.index}: {action.words}"
        if action.kind == "click":
            words = f"{words}, {self.job.run.areas_mm2()[action.index]:.0f} mm²"
        self.screen.line(f"{action.number:>3}  {self.screen.mark(action.kind):<6}  {one_line(words)}")

    def _on_progress(self, progress: Progress, found: Found) -> None:
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


class _Discarded(Exception):  # noqa: N818 - the person's word, not a failure
    pass
