"""Cohorts with a policy that clicks the middle and a segmenter that draws discs; a program, so that it can be killed.

python scripted_cohort.py SCANS OUT WORKERS
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.cli.cohort import Cohort, start_process
from ibis_agent.cli.cohort_scans import entries_of
from ibis_agent.cli.cohort_worker import work
from ibis_agent.cli.request import Request
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import ScriptedPolicy
from scripted_cli import DiscSegmenter

ASKED = Request(question="Segment the liver", plane="axial", window=(-1000, 1000))
REPLIES = (
    format_reply(Reply("here", Click(0.5, 0.5, True))),
    format_reply(Reply("done", Terminate("It is there."))),
)


class Clicker(ScriptedPolicy):
    """Says the same for every scan: a click, then the end."""

    def __init__(self) -> None:
        super().__init__([])
        self.card = ModelCard(name="clicker")
        self._said = 0

    def reply(self, turn: Any, *arguments: Any, **named: Any) -> str:
        self._said += 1
        return REPLIES[(self._said - 1) % len(REPLIES)]


class Deadly(DiscSegmenter):
    """Ends its process, as the system does where memory is short, at pictures with a white corner."""

    def embed(self, rgb: Any) -> Any:
        if rgb[0, 0, 0] == 255:
            os._exit(9)
        return super().embed(rgb)


def load(asked: Request) -> tuple[Any, Any]:
    return Clicker(), Deadly()


def start_thread(asked: Request, out: Path, number: int) -> tuple[Connection, Callable[[], None]]:
    """A worker in this process, for what is not about processes."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=work, args=(theirs, asked, out, number, load))
    thread.start()
    return ours, thread.join


def cohort(scans: Path, out: Path) -> Cohort:
    return Cohort(entries_of(str(scans)), ASKED, out)


if __name__ == "__main__":
    cohort(Path(sys.argv[1]), Path(sys.argv[2])).run(
        int(sys.argv[3]),
        partial(start_process, load=load),
        lambda result, done: print(result.name, result.error, flush=True),
    )
