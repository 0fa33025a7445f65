"""`ibis-agent cohort --ray`: workers as actors of Ray, on this machine or on a cluster of many.

Each does what a worker process does, with the same functions. Scans and results are read and written where the actor
runs, so a cluster needs both on a shared file system.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ibis_agent.cli.cohort_scans import Entry
from ibis_agent.cli.cohort_worker import answer, load_models, prepare
from ibis_agent.cli.request import Request
from ibis_agent.errors import IbisError, InputError

_AT_ONCE = 2  # entries per actor: the current one, and the next one to read


def join(address: str) -> None:
    """Join a cluster: "auto" uses one that is running here, or starts one on this machine only. Raises InputError."""
    try:
        import ray
    except ImportError as error:
        remedy = 'Install it: pip install "ibis-agent[ray]".'
        raise InputError("Ray is not installed", value=f"--ray {address}", remedy=remedy) from error
    where = None if address == "auto" else address
    try:
        ray.init(
            where,
            include_dashboard=None if where else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray has no specific class for it
        remedy = "Is it running? `ray start --head` starts one."
        raise InputError(f"cannot join the Ray cluster: {error}", value=address, remedy=remedy) from error


class Hand:
    """The Ray actor: loads the models once, then processes entries one after the other."""

    def __init__(self, asked: Request, out: Path, load: Callable[[Request], Any], home: Path) -> None:
        """home: the folder that relative paths start from, where the command was given."""
        self._asked, self._out, self._load, self._home = asked, out, load, home
        self._models: Any = None
        self._turn, self._changed = 0, threading.Condition()

    def load(self) -> IbisError | ModuleNotFoundError | None:
        try:
            os.chdir(self._home)
            self._models = self._load(self._asked)
        except OSError:
            remedy = "Use a shared file system."
            return InputError(
                "this folder is missing on a machine of the cluster", file=self._home, remedy=remedy
            )
        except (IbisError, ModuleNotFoundError) as error:
            return error
        return None

    def answer(self, turn: int, entry: Entry) -> dict[str, Any] | str:
        """Process one entry. turn: counts the entries from 0.

        If the actor dies, the first entry without an answer is the one that it was processing.
        """
        runner = prepare(entry, self._asked, self._out)
        with self._changed:
            self._changed.wait_for(lambda: self._turn == turn)
            made = answer(entry, runner, self._models, self._out)
            self._turn += 1
            self._changed.notify_all()
            return made


def start_actor(
    asked: Request, out: Path, number: int, load: Callable[[Request], Any] = load_models
) -> tuple[Connection, Callable[[], None]]:
    """Start a worker as an actor of the joined cluster. Arguments and result as for cohort.start_process."""
    import ray

    graphics = 1 if ray.cluster_resources().get("GPU") else 0
    made = ray.remote(Hand).options(num_cpus=1, num_gpus=graphics, max_concurrency=_AT_ONCE)
    actor: Any = made.remote(asked, out.resolve(), load, Path.cwd())
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=_carry, args=(theirs, actor), daemon=True)
    thread.start()

    def end() -> None:
        ray.kill(actor)
        thread.join()

    return ours, end


def _carry(pipe: Connection, actor: Any) -> None:
    """Pass entries from the pipe to the actor and its results back, in order, until either is gone."""
    import ray

    with contextlib.suppress(EOFError, OSError, ray.exceptions.RayError), pipe:
        failed = ray.get(actor.load.remote())
        if failed is not None:
            pipe.send(("failed", failed))
            return
        pipe.send(("ready",))
        turns, asked = itertools.count(), deque[tuple[Entry, Any]]()
        while True:
            while not asked or pipe.poll():
                entry = pipe.recv()
                asked.append((entry, actor.answer.remote(next(turns), entry)))
            ready, _ = ray.wait([asked[0][1]], timeout=0.1)
            if ready:
                entry, result = asked.popleft()
                pipe.send((entry.name, ray.get(result)))
