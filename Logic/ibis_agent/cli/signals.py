"""Signals (Ctrl-C, a closed terminal, a scheduler): how a run is stopped without losing finished steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

# SIGTERM: a scheduler or `kill` ends the program. SIGHUP: its terminal is gone. Windows lacks the latter.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopper:
    """While it is open, the first signal asks the work to stop at the next safe point; a second one stops it at once.

    Outside of work a signal is a KeyboardInterrupt. Signals that our parent ignores (`nohup`, a shell's background
    jobs) stay ignored.

    Attributes:
        asked: whether the current work was asked to stop.
        final: whether the program should end, not only its current work.
    """

    def __init__(self) -> None:
        self.asked = self.final = False
        self._working = self._deaf = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for each in _SIGNALS:
                if signal.getsignal(each) is not signal.SIG_IGN:
                    self._before[each] = signal.signal(each, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before.clear()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Work that polls `asked` often."""
        self.asked, self._working = False, True
        try:
            yield
        finally:
            self._working = False

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Short work that must not be interrupted, such as writing files."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def _heard(self, signum: int, frame: object) -> None:
        self.final = self.final or signum != signal.SIGINT
        if self._deaf:
            return
        if self._working and not self.asked:
            self.asked = True
            return
        raise KeyboardInterrupt
