"""Cohorts with a policy that clicks the middle and a segmenter that draws discs; a program, so that it can be killed.

python scripted_cohort.py SCANS OUT WORKERS [cohort|worker COUNT]

With the last two it kills itself (SIGKILL) when the cohort's process, or a worker's, does something to the files in
OUT for the COUNT-th time: any moment can be chosen, however fast the machine is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
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
from scripted_cli import DiscSegmenter
from scripted_policy import ScriptedPolicy

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


_ON_FILES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def kill_at(count: int, process: int, out: Path) -> None:
    """Kill a process when this one touches the files in `out` for the count-th time."""
    left = [count]

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _ON_FILES and str(out) in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(heard)


def load_to_be_killed(asked: Request, count: int, process: int, out: Path) -> tuple[Any, Any]:
    kill_at(count, process, out)
    return load(asked)


def several(*structures: str) -> Request:
    """The same of several structures."""
    return replace(ASKED, question=None, questions=tuple(f"Segment the {name}" for name in structures))


def start_thread(
    asked: Request, out: Path, number: int, load: Callable[[Request], Any] = load
) -> tuple[Connection, Callable[[], None]]:
    """A worker in this process, for what is not about processes."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=work, args=(theirs, asked, out, number, load))
    thread.start()
    return ours, thread.join


def cohort(scans: Path, out: Path, asked: Request = ASKED) -> Cohort:
    return Cohort(entries_of(str(scans)), asked, out)


def main(scans: Path, out: Path, workers: int, who: str = "", count: int = 0) -> None:
    made, loader = cohort(scans, out), load
    if who == "cohort":
        kill_at(count, os.getpid(), out)
    elif who == "worker":
        loader = partial(load_to_be_killed, count=count, process=os.getpid(), out=out)
    made.run(
        workers, partial(start_process, load=loader), lambda result, done: print(result.name, flush=True)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:5], *map(int, sys.argv[5:]))
