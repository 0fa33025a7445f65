"""A run at the terminal: shows its actions, takes the person's commands in between, and never loses a finished step.

The command's options are in options, files in runner, terminal input and output in terminal, Ctrl-C in signals.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from typing import Any

from ibis_agent.cli import description, live, terminal
from ibis_agent.cli.record_path import TRAJECTORY_NAME
from ibis_agent.cli.runner import Runner
from ibis_agent.cli.signals import Stopper
from ibis_agent.cli.terminal import Add, Back, Do, Replace, Screen, Spread, ThinkingStream, one_line
from ibis_agent.errors import Cancelled, IbisError, InputError
from ibis_agent.run.action import Progress, RunAction, Watch
from ibis_agent.run.caveats import caveats
from ibis_agent.run.measured import answer, measured
from ibis_agent.scan.picture import overlay
from ibis_agent.segmenter.contract import Found


class Stopped(Exception):  # noqa: N818 - not a failure: the person pressed Ctrl-C, and the message says what was kept
    """The run was stopped; the message says what is kept and where."""


class Session:
    """Takes a checked run from loading the models to writing the results.

    Args:
        by_hand: wait for the person after each action.
        as_json: print one JSON object per line instead of text; the screen is then silent.
    """

    def __init__(
        self, runner: Runner, screen: Screen, *, by_hand: bool = False, as_json: bool = False
    ) -> None:
        self.runner, self.screen, self.by_hand, self.as_json = runner, screen, by_hand, as_json
        self.stopper = Stopper()
        self.live: live.Live | None = None
        self._shown: RunAction | None = None
        self._thinking = ThinkingStream()
        self._watch = Watch(
            self._on_action, self._on_progress, self._on_text, self._on_retry, lambda: self.stopper.asked
        )

    def load(self) -> None:
        """Print the description of the run, and load the models. If this fails, nothing is left behind."""
        screen, task = self.screen, self.runner.task
        try:
            resumed = task.resumed
            if resumed and resumed.status == "ended" and not (resumed.alone and task.settings):
                self._refuse_an_ended_run(resumed.reason)
            screen.line(screen.bold("IBIS agent") + screen.dim("  research use only, not for patients"))
            for term, value in description.describe(task):
                screen.line(f"  {screen.dim(f'{term:<10}')} {one_line(value)}")
            with self.stopper, screen.passing("  loading the models …"):
                self.runner.load()
            self._emit("asked", description.asked(task, self.runner.run) | {"notes": list(self.runner.notes)})
            for note in self.runner.notes:
                screen.line(f"  {screen.warn('note')}       {one_line(note)}")
            screen.line()
        except KeyboardInterrupt:
            self.runner.abandon()
            raise Stopped("stopped while the models were loading; nothing was written") from None
        except BaseException:
            self.runner.abandon()
            raise

    def go(self) -> str:
        """Continue until the run ends or the person ends it; write the results, and return the status.

        Raises Stopped after Ctrl-C, or IbisError; the finished steps are on the disk in both cases.
        """
        run = self.runner.run
        if run.status == "ended":
            self.runner.abandon()
            self._refuse_an_ended_run(run.reason)
        with self.stopper:
            try:
                if not self.by_hand:
                    self._alone()
                elif not self._beside_the_page():
                    with self.stopper.deaf():
                        self.runner.discard()
                    self.screen.line("  discarded; nothing was kept")
                    return run.status
                self._finish()
            except (KeyboardInterrupt, Cancelled):
                raise Stopped(self._keep()) from None
            except BaseException:
                # A failing model or a full disk must not lose the finished steps.
                with contextlib.suppress(IbisError):
                    self._keep()
                raise
            finally:
                self.runner.give_back()
        return run.status

    def _keep(self) -> str:
        """Make sure that the finished steps are on the disk, and say where."""
        with contextlib.suppress(OSError):  # the output pipe may be closed; save everything all the same
            self.screen.end_flow()
        run, what = self.runner.run, "step" if self.runner.run.alone else "action"
        count = len(run.actions)
        with self.stopper.deaf():
            if not count:
                self.runner.abandon()
                return f"stopped before the first {what}; nothing was written"
            path = self.runner.save()
            # After SIGTERM there may be no time for the mask and the page.
            if not run.alone and not self.stopper.final:
                self.runner.finish()
        kept = f"1 {what} is kept" if count == 1 else f"{count} {what}s are kept"
        scan = "" if run.alone else f"{shlex.quote(str(self.runner.task.request.scan))} "
        return f"stopped; {kept} in {path}. Continue with: ibis-agent run {scan}--resume {shlex.quote(str(path))}"

    def _refuse_an_ended_run(self, reason: str) -> None:
        """A person can go back in a finished run; a policy has nothing more to do."""
        if not self.by_hand:
            raise InputError(
                "the run to resume has ended",
                file=self.runner.task.request.resume,
                value=reason,
                remedy="Use --step to go back in it, or allow more turns with --max-turns.",
            )

    def _alone(self) -> None:
        """Let the agent work alone; a paused run is tried once more."""
        while True:
            self._step()
            if self.runner.run.status != "ready":
                return

    def _beside_the_page(self) -> bool:
        """Like `_with_the_person`, with a live page that shows each action and accepts clicks."""
        with live.opened(self.runner.task.folder / TRAJECTORY_NAME) as self.live:
            if self.live is not None:
                self._emit("live", {"address": self.live.address})
                self.screen.line(f"  {self.screen.dim('live page ')} {self.live.address}")
            return self._with_the_person()

    def _with_the_person(self) -> bool:
        """Alternate between the agent and the person. Returns False if the person discards the run."""
        run = self.runner.run
        if run.actions:
            self._tell_state()
        elif run.status == "ready":
            self._try(self._step)
        while True:
            try:
                command = self._ask()
                if command is None or command == Do("quit"):
                    return True
                if command == Do("discard"):
                    return False
                if command == Do("accept") or (command == Do("continue") and run.status == "ended"):
                    if run.status != "ended" or (run.alone and run.answer is None):
                        self.runner.do(run.finish)
                    return True
                self._try(lambda: self._obey(command))  # noqa: B023 - called at once
            except InputError as error:
                self.screen.line(self.screen.warn(f"     {one_line(error)}"))

    def _ask(self) -> terminal.Command | None:
        """The person's next command; None at the end of input."""
        run = self.runner.run
        self._show()
        hints = {"ready": "Enter continues", "ended": "Enter accepts", "paused": "Enter asks again"}
        hint = f"{hints[run.status]}, a accepts, ? for help: "
        self.screen.ask(f"   {self.screen.mark('›')} {self.screen.dim(hint)}")
        try:
            typed = self.live.line(self.screen.line) if self.live else sys.stdin.readline()
        except KeyboardInterrupt:
            self.screen.line()  # the cursor is after the prompt and ^C
            raise
        except UnicodeDecodeError as error:
            raise InputError("unknown command", remedy="Type ? for the list of commands.") from error
        if not sys.stdin.isatty():
            self.screen.line()
        return terminal.read_command(typed, *run.memory.size, not run.alone) if typed else None

    def _show(self) -> None:
        """Show the current slice with its mask once, if the terminal can show pictures."""
        run = self.runner.run
        if self.screen.pictures is None or not run.actions or run.actions[-1] is self._shown:
            return
        self._shown = run.actions[-1]
        rgb = run.slices.picture(self._shown.index).rgb
        self.screen.picture(overlay(rgb, run.mask(self._shown.index)))

    def _try(self, act: Callable[[], object]) -> None:
        """In a volume Ctrl-C stops the current action, not the program."""
        try:
            act()
        except Cancelled:
            if self.runner.run.alone or self.stopper.final:
                raise
            self.screen.line(self.screen.warn("     stopped; the steps so far are kept"))

    def _obey(self, command: terminal.Command) -> None:
        run, runner, watch = self.runner.run, self.runner, self._watch
        last = run.actions[-1].index if run.actions else run.slices.first
        if isinstance(command, Add):
            index = last if command.index is None else command.index
            self._work(lambda: run.click(index, command.click, command.moved, watch))
        elif isinstance(command, Replace):
            self._work(lambda: run.replace(command.number, command.click, watch))
        elif isinstance(command, Spread):
            self._work(lambda: run.spread(last if command.index is None else command.index, watch))
        elif isinstance(command, Back):
            runner.do(lambda: run.back(max(0, len(run.actions) - command.steps)))
            self._tell_state()
        elif command.word in ("undo", "redo", "reject"):
            runner.do({"undo": run.undo, "redo": run.redo, "reject": run.reject}[command.word])
            self._tell_state()
        elif command.word == "help":
            self.screen.line(terminal.HELP if run.alone else terminal.HELP_IN_A_VOLUME)
        elif command.word == "all":
            self._alone()
        else:
            self._step()

    def _step(self) -> None:
        run, screen = self.runner.run, self.screen
        if run.alone:
            screen.line(screen.bold(f"{len(run.actions) + 1:>3}"))
        self._thinking = ThinkingStream()
        self._work(lambda: run.step(self._watch))
        screen.end_flow()
        if run.status == "paused" or (run.alone and run.status == "ended" and run.answer is None):
            screen.line(screen.warn(f"     {one_line(run.reason)}"))

    def _work(self, act: Callable[[], object]) -> None:
        with self.stopper.work():
            self.runner.do(act)
        if self.stopper.asked and self.runner.run.status == "ready":  # it came after the last poll
            raise Cancelled()

    def _on_text(self, piece: str) -> None:
        self.screen.flow(self._thinking.feed(piece))

    def _on_retry(self, problem: str) -> None:
        self._thinking = ThinkingStream()
        self.screen.line(
            self.screen.warn(f"     its reply could not be read ({one_line(problem)}); asking again")
        )

    def _on_action(self, action: RunAction) -> None:
        """Save the run, then print the step."""
        self.runner.save()
        self._thinking = ThinkingStream()
        self.screen.end_flow()
        if self.runner.run.alone:
            self._tell_step()
            return
        self._wipe()
        if self.as_json:
            event: dict[str, Any] = {
                "number": action.number,
                "kind": action.kind,
                "slice": action.index,
                "by": action.by,
            }
            event |= {"words": action.words, "clicks": len(action.clicks), "seconds": action.seconds}
            self._emit("action", event)
        words = f"slice {action.index}: {action.words}"
        if action.kind == "click":
            words = f"{words}, {self.runner.run.size_text(action.index)}"
        self.screen.line(f"{action.number:>3}  {self.screen.mark(action.kind):<6}  {one_line(words)}")

    def _on_progress(self, progress: Progress, found: Found) -> None:
        left = round(progress.seconds_left, 2)
        if self.as_json:
            event = {"slice": progress.index, "done": progress.done, "total": progress.total}
            self._emit("slice", {**event, "seconds_left": left})
            return
        text = f"  slice {progress.index}, {progress.done} of at most {progress.total}"
        self._wipe(f"{text}, {left:.0f} s left\r")

    def _wipe(self, text: str = "") -> None:
        """Print the progress line, on a terminal."""
        if self.screen.stream.isatty() and not self.screen.quiet:
            print(f"\033[K{text}", end="", flush=True)

    def _tell_step(self) -> None:
        """Print the line of the last step: action, area, change, score, seconds."""
        facts = description.facts_of(self.runner.run, len(self.runner.run.steps))
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
        run, count = self.runner.run, len(self.runner.run.actions)
        where = "at the question; no mask"
        if count and run.alone:
            where = f"after step {count}, area {description.area_text(run, run.mask())}"
        elif count:
            where = f"after action {count}, {run.size_text()}"
        self.screen.line(self.screen.dim(f"     now {where}"))

    def _finish(self) -> None:
        notes = len(self.runner.notes)
        with self.stopper.deaf():
            written = self.runner.finish()
        run, screen, sizes = self.runner.run, self.screen, measured(self.runner.run)
        self._emit("done", description.summary(run, written))
        screen.line()
        if run.answer:
            screen.line(screen.bold("  Answer"))
            screen.flow(answer(run) or "")
            screen.end_flow()
        for caveat in caveats(run):
            screen.line(f"  {screen.warn(one_line(caveat))}")
        facts: dict[str, Any] = {}
        if run.reason and not (run.alone and run.answer):
            facts["stopped"] = run.reason
        if run.alone:
            facts["area"] = description.area_text(run, run.mask())
        elif shown := [index for index, each in run.areas_mm2().items() if each]:
            facts["volume"] = f"{run.size_text()} in slices {shown[0]} to {shown[-1]}"
        told = {
            term.lower(): value for term, value in sizes.lines() if term not in ("Area", "Volume", "Size")
        }
        for note in self.runner.notes[notes:]:
            screen.line(screen.warn(f"  {note}"))
        for term, value in {**facts, **told, **written}.items():
            screen.line(f"  {screen.dim(f'{term:<14}')} {one_line(value)}")

    def _emit(self, event: str, values: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps({"event": event, **values}), flush=True)
