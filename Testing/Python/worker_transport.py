"""Real worker processes for tests: the client's Transport on subprocess, a script to play, and an image.

Bytes arrive through a thread and are handed over in the test's own thread by `pump`, as an event loop would.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LOGIC = Path(__file__).resolve().parents[2] / "Logic"

INCLUDE = (
    "<think>The large grey organ is the liver.</think>\n<action>Positive Point (0.3000, 0.4500)</action>"
)
EXCLUDE = "<think>The kidney got in.</think>\n<action>Negative Point (0.3500, 0.6000)</action>"
FINISH = "<think>The outline is right.</think>\n<action>Terminate</action>\n<answer>Liver</answer>"


def write_script(folder: Path, replies: list[str] | None = None, **settings: Any) -> Path:
    """A script file for `ibis_agent.engine --script`."""
    path = folder / f"script-{time.monotonic_ns()}.json"
    path.write_text(
        json.dumps({"replies": replies or [INCLUDE, EXCLUDE, FINISH], **settings}), encoding="utf-8"
    )
    return path


def image(folder: Path) -> dict[str, Any]:
    """A grey disc on black, 40 × 48 × 5 voxels, its third slice as the file."""
    rows, cols = np.ogrid[:48, :40]
    voxels = np.where(np.hypot(rows - 22, cols - 14) < 11, 60, -100).astype(np.int16)
    np.save(folder / "slice.npy", voxels[None])
    return {
        "file": str(folder / "slice.npy"),
        "shape": [40, 48, 5],
        "affine": np.diag([-1.0, -1.0, 3.0, 1.0]).tolist(),
        "axis": 2,
        "index": 2,
        "window": [-160, 240],
        "name": "scan",
    }


def worker_command(*arguments: str) -> list[str]:
    return [sys.executable, "-u", "-m", "ibis_agent.engine", *arguments]


class PopenTransport:
    """One worker as a subprocess (ibis_agent.engine.client.Transport)."""

    def __init__(
        self, arguments: list[str], on_bytes: Callable[[bytes], None], on_end: Callable[[str], None]
    ) -> None:
        self.process = subprocess.Popen(
            worker_command(*arguments),
            cwd=LOGIC,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._on_bytes, self._on_end = on_bytes, on_end
        self._arrived: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read1(65536):  # type: ignore[attr-defined]
            self._arrived.put(chunk)
        self._arrived.put(None)

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def finish(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def kill(self, pid: int | None) -> None:
        self.process.kill()

    def pump(self, seconds: float) -> None:
        """Hand over what arrives within this time."""
        try:
            chunk = self._arrived.get(timeout=seconds)
        except queue.Empty:
            return
        if chunk is None:
            self._on_end(f"exit code {self.process.wait()}")
        else:
            self._on_bytes(chunk)


class Starter:
    """Starts PopenTransports for a WorkerClient and remembers them all."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = list(arguments)
        self.started: list[PopenTransport] = []

    def __call__(self, on_bytes: Callable[[bytes], None], on_end: Callable[[str], None]) -> PopenTransport:
        self.started.append(PopenTransport(self.arguments, on_bytes, on_end))
        return self.started[-1]

    def pump_until(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """Let the processes speak until the condition holds. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                raise TimeoutError("the worker did not get there")
            for transport in list(self.started):
                transport.pump(0.01)
        return value

    def end_all(self) -> None:
        for transport in self.started:
            transport.kill(None)
            transport.process.wait(10)
