"""Tools for other agents: questions about scans over the Model Context Protocol, on standard input and output.

    ibis-agent mcp --scans DIR --out DIR

Clients can use these tools and cannot run code. Scans are read from one folder, and results are written to one folder,
with a sub-folder for each question; the person gives both when starting the program. Calls are processed one at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ibis_agent import __version__
from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.cli import description
from ibis_agent.cli.request import Request
from ibis_agent.cli.runner import Runner, load_policy, load_segmenter
from ibis_agent.cli.several import Several
from ibis_agent.errors import IbisError, InputError, ModelError
from ibis_agent.run.measured import measured

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_INSTRUCTIONS = (
    "Ask a question about a slice or a volume of a medical scan; the agent segments by clicks, which you can "
    "review, correct and undo. Coordinates run from 0 to 1, x to the right and y down. Research software, not a "
    "medical device."
)


def run_mcp(base: Request, scans: Path, out: Path) -> int:
    """Serve until the input ends. base: the models. Raises InputError for a missing folder, ModelError."""
    server_of(Desk(base, scans, out)).run("stdio")
    return 0


class Desk:
    """The open questions, by name, and the models, which are loaded for the first one."""

    def __init__(self, base: Request, scans: Path, out: Path) -> None:
        if not scans.is_dir():
            raise InputError("there is no such folder", file=scans, remedy="Give one with --scans.")
        self._base, self._scans, self._out = base, scans.resolve(), out
        self._open: dict[str, Runner] = {}
        self._models: tuple[Any, Any] | None = None
        self._lock = threading.Lock()

    # The tools. Plain values in and out; each raises IbisError.

    def list_scans(self) -> list[str]:
        """List the files and DICOM folders that you can ask about, relative to the folder of scans."""
        return sorted(str(path.relative_to(self._scans)) for path in self._scans.iterdir())

    def ask(
        self,
        name: str,
        scan: str,
        question: str,
        volume: bool = False,
        slice: int | None = None,
        plane: str = "axial",
    ) -> dict[str, Any]:
        """Open a question under a name that you choose: about one slice (by default the middle one), or with
        volume=true about the whole scan. Nothing is segmented yet: continue with step, finish or click.
        """
        runner = Runner(self._request(name, scan, question, volume, slice, plane))
        try:
            runner.begin(*self._loaded())
        except BaseException:
            runner.abandon()
            raise
        self._open[name] = runner
        return {**dict(description.describe(runner.task)), **self._state(runner)}

    def segment(
        self,
        name: str,
        scan: str,
        structures: list[str],
        volume: bool = False,
        slice: int | None = None,
        plane: str = "axial",
    ) -> dict[str, Any]:
        """Segment several structures, each to its end, and write one file of labels with measurements and a page to the
        results folder. No question stays open.
        """
        several = Several(self._request(name, scan, None, volume, slice, plane), structures)
        try:
            several.begin(*self._loaded())
            for runner in several.runs():
                runner.do(runner.run.run)
            return several.summary(several.finish())
        except BaseException:
            several.abandon()
            raise

    def step(self, name: str) -> dict[str, Any]:
        """Let the agent act once. Its thinking and action are in "actions"."""
        runner = self._runner(name)
        runner.do(runner.run.step)
        return self._state(runner)

    def finish(self, name: str) -> dict[str, Any]:
        """Let the agent continue until it finishes or its reply cannot be read."""
        runner = self._runner(name)
        runner.do(runner.run.run)
        return self._state(runner)

    def click(
        self, name: str, x: float, y: float, positive: bool = True, slice: int | None = None
    ) -> dict[str, Any]:
        """Add your own click: on the structure, or with positive=false on something that does not belong to it."""
        return self._prompt(name, Click(x, y, positive), slice)

    def box(
        self, name: str, x0: float, y0: float, x1: float, y1: float, slice: int | None = None
    ) -> dict[str, Any]:
        """Draw a box around the structure: its left, upper, right and lower edge."""
        return self._prompt(name, Box(x0, y0, x1, y1), slice)

    def back(self, name: str, keep: int) -> dict[str, Any]:
        """Keep the first actions, up to the given number, and undo the later ones."""
        runner = self._runner(name)
        runner.do(lambda: runner.run.back(keep))
        return self._state(runner)

    def measure(self, name: str) -> dict[str, Any]:
        """Measure the current mask: area or volume, diameters, grey values."""
        return dict(measured(self._runner(name).run).to_json())

    def accept(self, name: str) -> dict[str, Any]:
        """Write the mask, the record and the review page to the results folder, and close the question."""
        runner = self._runner(name)
        summary = description.summary(runner.run, runner.finish())
        del self._open[name]
        return summary

    def discard(self, name: str) -> dict[str, Any]:
        """Close the question and delete its files."""
        self._runner(name).discard()
        del self._open[name]
        return {"discarded": name}

    def one_at_a_time(self, do: Callable[..., Any]) -> Callable[..., Any]:
        """`do` under the lock, with the same signature and docstring; an IbisError becomes a tool error."""
        from mcp.server.mcpserver.exceptions import ToolError

        @functools.wraps(do)
        def wrapped(*given: Any, **named: Any) -> Any:
            with self._lock:
                try:
                    return do(*given, **named)
                except IbisError as error:
                    raise ToolError(str(error)) from error

        return wrapped

    def _request(
        self, name: str, scan: str, question: str | None, volume: bool, index: int | None, plane: str
    ) -> Request:
        if not _NAME.fullmatch(name):
            raise InputError(
                "a name may contain letters, digits, dots and dashes",
                value=name,
                remedy="For example: liver-1.",
            )
        if name in self._open:
            raise InputError(
                "a question with this name is already open", value=name, remedy="Choose another name."
            )
        if (self._out / name).exists():
            raise InputError(
                "the results folder already contains this name",
                file=self._out / name,
                remedy="Choose another name.",
            )
        path = (self._scans / scan).resolve()
        if not path.is_relative_to(self._scans):
            raise InputError("scans are read from one folder only", value=scan, remedy="See list_scans.")
        return dataclasses.replace(
            self._base,
            scan=path,
            question=question,
            volume=volume,
            index=index,
            plane=plane,
            out=self._out / name,
        )

    def _prompt(self, name: str, prompt: Prompt, index: int | None) -> dict[str, Any]:
        runner = self._runner(name)
        last = runner.run.actions[-1].index if runner.run.actions else runner.run.slices.first
        runner.do(lambda: runner.run.click(last if index is None else index, prompt))
        return self._state(runner)

    def _runner(self, name: str) -> Runner:
        if name not in self._open:
            raise InputError(
                "no question with this name is open", value=name, remedy="Open it with ask first."
            )
        return self._open[name]

    def _loaded(self) -> tuple[Any, Any]:
        if self._models is None:
            source: Any = self._base.policy
            self._models = load_policy(source, self._base), load_segmenter(self._base)
        return self._models

    def _state(self, runner: Runner) -> dict[str, Any]:
        run = runner.run
        steps = (
            [description.facts_of(run, number) for number in range(1, len(run.steps) + 1)]
            if run.alone
            else []
        )
        actions: list[Any] = steps or [
            {
                "number": each.number,
                "kind": each.kind,
                "slice": each.index,
                "by": each.by,
                "words": each.words,
            }
            for each in run.actions
        ]
        return {"status": run.status, "reason": run.reason, "answer": run.answer, "actions": actions}


def server_of(desk: Desk) -> Any:
    """The desk's tools as an MCP server. Raises ModelError if the mcp package is not installed."""
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError as error:
        raise ModelError(
            "the package for the Model Context Protocol is not installed",
            remedy="pip install 'ibis-agent[mcp]'.",
        ) from error
    server: Any = MCPServer(
        "ibis-agent", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING"
    )
    for do in (
        desk.list_scans,
        desk.ask,
        desk.segment,
        desk.step,
        desk.finish,
        desk.click,
        desk.box,
        desk.back,
        desk.measure,
        desk.accept,
        desk.discard,
    ):
        server.tool()(desk.one_at_a_time(do))
    return server
