"""A run for several structures at the terminal: a session for each, then the common results."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ibis_agent.cli.description import describe
from ibis_agent.cli.runner import Runner
from ibis_agent.cli.session import Session, Stopped
from ibis_agent.cli.several import Several
from ibis_agent.cli.several_results import STRUCTURES_NAME
from ibis_agent.cli.signals import Stopper
from ibis_agent.cli.terminal import Screen, one_line
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.mask.measurements import Measurements


class SeveralSession:
    """Takes checked runs for several structures to their results. Same arguments as Session."""

    def __init__(
        self, several: Several, screen: Screen, *, by_hand: bool = False, as_json: bool = False
    ) -> None:
        self.several, self.screen, self.by_hand, self.as_json = several, screen, by_hand, as_json
        self._stopper = Stopper()

    def load(self) -> None:
        """Print the description of the run, and load the models. If this fails, nothing is left behind."""
        screen, several = self.screen, self.several
        try:
            if several.written:
                raise InputError(
                    "all structures are done",
                    file=several.folder / STRUCTURES_NAME,
                    remedy="Start a new run with another --out.",
                )
            screen.line(screen.bold("IBIS agent") + screen.dim("  research use only, not for patients"))
            first = describe(several.task)
            names = ", ".join(part.name for part in several.parts)
            for term, value in (
                ("structures", names) if term == "question" else (term, value) for term, value in first
            ):
                screen.line(f"  {screen.dim(f'{term:<10}')} {one_line(value)}")
            for part in several.parts:
                if part.done:
                    screen.line(f"  {screen.dim('done')}       {one_line(part.name)}")
            if several.left:
                with self._stopper, screen.passing("  loading the models …"):
                    several.load()
        except KeyboardInterrupt:
            several.abandon()
            raise Stopped("stopped while the models were loading; nothing was written") from None
        except BaseException:
            several.abandon()
            raise

    def go(self) -> str:
        """Do the remaining structures, write the results, and return "paused" if any of them paused.

        Raises Stopped after Ctrl-C, or IbisError; the finished steps are on the disk in both cases.
        """
        several, statuses = self.several, []
        try:
            for runner in several.runs():
                statuses.append(self._one(runner))
                if statuses[-1] == "ready" and not runner.discarded:  # the person ended the run
                    break
            with self._stopper, self._stopper.deaf():
                self._finish()
        except (KeyboardInterrupt, Cancelled, Stopped):
            raise Stopped(self._how_to_go_on()) from None
        finally:
            several.give_back()
        if several.left and "ready" in statuses:
            self.screen.line(self.screen.dim(f"  {self._how_to_go_on()}"))
        return "paused" if "paused" in statuses else "ended"

    def _one(self, runner: Runner) -> str:
        """One structure, in a session of its own."""
        number = next(n for n, part in enumerate(self.several.parts, 1) if part.folder == runner.task.folder)
        part, count = self.several.parts[number - 1], len(self.several.parts)
        screen = self.screen
        self._emit("structure", {"number": number, "of": count, "name": part.name, "question": part.question})
        screen.line()
        screen.line(screen.bold(f"  {number} of {count}  {one_line(part.question)}"))
        for note in runner.notes:
            screen.line(f"  {screen.warn('note')}       {one_line(note)}")
        return Session(runner, screen, by_hand=self.by_hand, as_json=self.as_json).go()

    def _how_to_go_on(self) -> str:
        several = self.several
        done = len(several.parts) - len(several.left)
        scan = shlex.quote(str(several.task.request.scan))
        where = shlex.quote(str(several.folder / STRUCTURES_NAME))
        return (
            f"stopped; {done} of {len(several.parts)} structures are done. "
            f"Continue with: ibis-agent run {scan} --resume {where}"
        )

    def _finish(self) -> None:
        several, screen = self.several, self.screen
        if all(part.done is None for part in several.parts):
            return
        written = several.finish()
        summary = several.summary(written)
        self._emit("structures", summary)
        screen.line()
        screen.line(screen.bold("  All structures"))
        width = max(len(part.name) for part in several.parts)
        for each in summary["structures"]:
            sizes = (
                Measurements(**each["measurements"]).lines()[0][1]
                if "measurements" in each
                else each["status"]
            )
            mark = "" if each["status"] in ("ended", "to do") else f"  {screen.warn(each['status'])}"
            screen.line(
                f"  {screen.dim(str(each['label']))} {one_line(each['name']):<{width}}  {sizes}{mark}"
            )
        for note in several.notes:
            screen.line(f"  {screen.warn(one_line(note))}")
        for term, path in written.items():
            screen.line(f"  {screen.dim(f'{term:<14}')} {one_line(path)}")

    def _emit(self, event: str, values: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps({"event": event, **values}), flush=True)
