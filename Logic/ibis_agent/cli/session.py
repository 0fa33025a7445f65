"""A run at the terminal: steps as they come, the person's word between them, and an end that loses nothing.

The command's options are in cli, files in runner, what is typed and how text is shown in terminal.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import Any

from ibis_agent.cli import terminal
from ibis_agent.cli.runner import Run
from ibis_agent.cli.terminal import Add, Back, Do, Replace, Screen, one_line
from ibis_agent.errors import Cancelled, IbisError, InputError


class Stopped(Exception):  # noqa: N818 - not a failure: the person pressed Ctrl-C, and this says what was kept
    """The run was stopped; the text says what is kept and where."""


class Session:
    """Takes a checked run through loading and steps to its results.

    Args:
        by_hand: wait for the person after each action.
        as_json: print one JSON object a line instead of text; the screen is then quiet.
    """

    def __init__(self, run: Run, screen: Screen, *, by_hand: bool = False, as_json: bool = False) -> None:
        self.run, self.screen, self.by_hand, self.as_json = run, screen, by_hand, as_json

    def load(self) -> None:
        """Say what is going to be done, and load the models. Whatever stops it leaves nothing behind."""
        screen, job = self.screen, self.run.job
        try:
            if job.resumed is not None and job.resumed.status == "ended" and job.limits is None:
                self._refuse_an_ended_run(job.resumed.reason)
            screen.line(screen.bold("IBIS agent") + screen.dim("  research use only, not for patients"))
            for term, value in self.run.description():
                screen.line(f"  {screen.dim(f'{term:<10}')} {one_line(value)}")
            with screen.passing("  loading the models …"):
                self.run.load()
            for note in self.run.notes:
                screen.line(f"  {screen.warn('note')}       {one_line(note)}")
            screen.line()
        except KeyboardInterrupt:
            self.run.abandon()
            raise Stopped("stopped while the models were loading; nothing was written") from None
        except BaseException:
            self.run.abandon()
            raise

    def go(self) -> None:
        """Step until the run ends, or as the person says; then write the results.

        Raises Stopped after Ctrl-C, with the steps so far on the disk; IbisError, likewise.
        """
        if self.run.episode.status == "ended":
            self._refuse_an_ended_run(self.run.episode.reason)
        try:
            if not self.by_hand:
                self._alone()
            elif not self._with_the_person():
                with _deaf():
                    self.run.discard()
                self.screen.line("  discarded, nothing was kept")
                return
            self._finish()
        except (KeyboardInterrupt, Cancelled):
            raise Stopped(self._keep()) from None
        except BaseException:
            # A model that fails or a full disk must not cost the steps that are there.
            with contextlib.suppress(IbisError):
                self._keep()
            raise

    def _keep(self) -> str:
        """Make sure that the steps so far are on the disk, and say where."""
        with contextlib.suppress(OSError):  # nobody may be reading any more; the steps are kept all the same
            self.screen.end_flow()
        steps = len(self.run.episode.steps)
        with _deaf():
            if not steps:
                self.run.abandon()
                return "stopped before the first step; nothing was written"
            path = self.run.save()
        kept = "1 step is kept" if steps == 1 else f"{steps} steps are kept"
        return f"stopped; {kept} in {path}. Go on with: ibis-agent run --resume {shlex.quote(str(path))}"

    def _refuse_an_ended_run(self, reason: str) -> None:
        """A person can go back in it; a policy has nothing more to do."""
        if not self.by_hand:
            raise InputError(
                "the run to resume has ended",
                file=self.run.job.request.resume,
                value=reason,
                remedy="Go back in it with --step, or allow more with --max-turns.",
            )

    def _alone(self) -> None:
        episode = self.run.episode
        self._step()
        while episode.status == "ready":
            self._step()

    def _with_the_person(self) -> bool:
        """Steps and waits in turn. False if the person discards the run."""
        episode = self.run.episode
        if not episode.steps and episode.status == "ready":
            self._step()
        elif episode.steps:
            self._tell_state()
        while True:
            try:
                command = self._ask()
                if command is None or command == Do("quit"):
                    return True
                if command == Do("discard"):
                    return False
                if command == Do("accept") or (command == Do("continue") and episode.status == "ended"):
                    if episode.answer is None:
                        self.run.change(episode.finish)
                    return True
                self._obey(command)
            except InputError as error:
                self.screen.line(self.screen.warn(f"     {one_line(error)}"))

    def _ask(self) -> terminal.Command | None:
        """The person's next command; None when nobody is there any more (the input has ended)."""
        hints = {"ready": "Enter goes on", "ended": "Enter accepts", "paused": "Enter asks it again"}
        hint = f"{hints[self.run.episode.status]}, a accepts, ? helps: "
        self.screen.ask(f"   {self.screen.mark('›')} {self.screen.dim(hint)}")
        try:
            typed = sys.stdin.readline()
        except KeyboardInterrupt:
            self.screen.line()  # the cursor stands behind the prompt and ^C
            raise
        except UnicodeDecodeError as error:
            raise InputError("that is not understood", remedy="Type ? for what there is.") from error
        if not sys.stdin.isatty():
            self.screen.line()
        height, width = self.run.job.picture.rgb.shape[:2]
        return terminal.read_command(typed, height, width) if typed else None

    def _obey(self, command: terminal.Command) -> None:
        run, episode = self.run, self.run.episode
        if isinstance(command, Add):
            run.change(lambda: episode.add(command.click))
            self._tell_step()
        elif isinstance(command, Replace):
            run.change(lambda: episode.replace(command.number, command.click))
            self._tell_step()
        elif isinstance(command, Back):
            run.change(lambda: episode.back(max(0, len(episode.steps) - command.steps)))
            self._tell_state()
        elif command.word in ("undo", "redo", "reject"):
            changes = {"undo": episode.undo, "redo": episode.redo, "reject": episode.reject}
            run.change(changes[command.word])
            self._tell_state()
        elif command.word == "help":
            self.screen.line(terminal.HELP)
        else:
            self._step()

    def _step(self) -> None:
        episode, screen = self.run.episode, self.screen
        count = len(episode.steps)
        screen.line(screen.bold(f"{count + 1:>3}"))
        stream = terminal.ThinkingStream()

        def begin_again(problem: str) -> None:
            nonlocal stream
            stream = terminal.ThinkingStream()
            screen.line(
                screen.warn(f"     its reply could not be read ({one_line(problem)}); asking once more")
            )

        self.run.step(lambda piece: screen.flow(stream.feed(piece)), begin_again)
        screen.end_flow()
        if len(episode.steps) > count:
            self._tell_step()
        if episode.status != "ready" and episode.answer is None:
            screen.line(screen.warn(f"     {one_line(episode.reason)}"))

    def _tell_step(self) -> None:
        """The line of the last step: action, area, change, score, seconds."""
        facts = self.run.facts_of(len(self.run.episode.steps))
        self._emit("step", facts)
        screen = self.screen
        paint = {"+": screen.good, "-": screen.bad}.get(facts["sign"], screen.mark)
        action, area = f"{facts['sign']} {facts['action']}", f"area {facts['area_text']}"
        details = [facts["seconds_text"]]
        if facts["score"] is not None:
            details = [f"({facts['change_text']})", f"score {facts['score']:.2f}", *details]
        if facts["by"] == "person":
            details.append("by you")
        rest = "  ".join(details)
        fits = len(f"     {action}  {area}  {rest}") <= screen.width
        screen.line(f"     {paint(action)}  {area}" + (f"  {screen.dim(rest)}" if fits else ""))
        if not fits:
            screen.line(f"       {screen.dim(rest)}")

    def _tell_state(self) -> None:
        steps = len(self.run.episode.steps)
        area = self.run.area_text(self.run.episode.mask)
        where = f"after step {steps}, area {area}" if steps else "at the question, no mask"
        self.screen.line(self.screen.dim(f"     now {where}"))

    def _finish(self) -> None:
        with _deaf():
            written = self.run.finish()
        episode, screen = self.run.episode, self.screen
        screen.line()
        if episode.answer:
            screen.line(screen.bold("  Answer"))
            screen.flow(episode.answer)
            screen.end_flow()
        facts = {"area": self.run.area_text(episode.mask), **written}
        if episode.reason and not episode.answer:
            facts = {"stopped": episode.reason, **facts}
        for term, value in facts.items():
            screen.line(f"  {screen.dim(f'{term:<10}')} {one_line(value)}")
        self._emit("done", self.run.summary(written))

    def _emit(self, event: str, values: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps({"event": event, **values}), flush=True)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits until the block is done. Only the main thread may change how signals are taken."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
