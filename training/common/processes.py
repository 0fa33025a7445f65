"""Parallel processes: shards of the work, and workers that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from dataclasses import dataclass
from multiprocessing.connection import wait

from ibis_agent.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`: every `count`-th item."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads "2/8". Raises InputError."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= count:
            raise InputError(
                "--shard needs a number and a count", value=text, remedy="Such as 1/4, 2/4, 3/4 and 4/4."
            )
        return cls(number, count)

    def indices(self, total: int) -> range:
        return range(self.number - 1, total, self.count)

    def has(self, index: int) -> bool:
        """Whether item `index` (from 0) belongs to this shard."""
        return index % self.count == self.number - 1


def end_with_parent() -> None:
    """Call once in a worker process, so that it ends when the process that started it does.

    A thread waits for the parent's end, so this works during a computation and on any system.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
