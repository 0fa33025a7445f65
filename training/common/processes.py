"""Processes beside each other: workers that end with their parent, parts of the work, one at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from filelock import FileLock
from ibis_agent.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, numbered from 1: every `count`-th piece of the work."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads "2/8". Raises InputError."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= count:
            raise InputError(
                "--shard says which part of how many", value=text, remedy="Such as 1/4, 2/4, 3/4 and 4/4."
            )
        return cls(number, count)

    def indices(self, total: int) -> range:
        return range(self.number - 1, total, self.count)

    def has(self, index: int) -> bool:
        """Whether piece `index`, counted from 0, belongs to this part."""
        return index % self.count == self.number - 1


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """While the block runs, no other process is inside one with the same `path`. A kill lets go of it."""
    with FileLock(path):
        yield


def end_with_parent() -> None:
    """Call once in a worker process: it ends as soon as the process that started it is gone.

    Waits for the parent's end in a thread, so that it works in the middle of a computation and on any system.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
