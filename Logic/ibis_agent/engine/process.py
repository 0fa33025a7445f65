"""The worker process, `python -m ibis_agent.engine`: stdin, stdout, threads, the private folder, and the exit.

- stdout is reserved for the protocol. It is redirected before heavy imports, so that what libraries print goes to
  stderr.
- The main thread processes requests one at a time. A second thread reads them, so that `cancel` works during a
  generation.
- When stdin closes, the process ends within two seconds, whatever it is doing, because its parent is gone. (3D Slicer
  starts it through a launcher; killing that would leave this process running.)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import queue
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

from ibis_agent import __version__
from ibis_agent.engine import protocol
from ibis_agent.engine.engine import Engine
from ibis_agent.engine.protocol import Framer, Message
from ibis_agent.errors import Cancelled, IbisError, InputError, ModelError, ReplyError

_PREFIX = "ibis-worker-"
_GRACE = 2.0  # seconds from the end of stdin to the end of the process


class Worker:
    """One conversation: reads requests from `source`, writes events to `channel`."""

    def __init__(self, channel: BinaryIO, source: int, engine: Engine):
        self._channel, self._source, self._engine = channel, source, engine
        self._writing = threading.Lock()
        self._requests: queue.Queue[Message | None] = queue.Queue()
        self._cancelled: set[int] = set()
        self._ending = threading.Event()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))  # mode 0700
        engine.folder = self.folder

    def run(self) -> None:
        """Process requests until stdin closes or `shutdown` arrives."""
        self.emit(
            {
                "event": "hello",
                "protocol": protocol.PROTOCOL,
                "version": __version__,
                "pid": os.getpid(),
                "python": platform.python_version(),
                "folder": str(self.folder),
                "scopes": list(self._engine.scopes),
            }
        )
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while (request := self._requests.get()) is not None and not self._ending.is_set():
            self._serve(request)

    def emit(self, message: Message) -> None:
        """Send one event. If nobody reads, the process ends."""
        try:
            with self._writing:
                self._channel.write(protocol.encode(message))
                self._channel.flush()
        except OSError:
            self._ending.set()

    def clean_up(self) -> None:
        """Remove the private folder. May be called twice, and from any thread."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> None:
        framer = Framer("request")
        while chunk := _read_some(self._source):
            for message in framer.feed(chunk):
                if isinstance(message, str):
                    self.emit({"event": "log", "text": f"not a request: {message[:200]}"})
                elif message["request"] == "cancel":
                    self._cancelled.add(message.get("target", -1))
                elif message["request"] == "shutdown":
                    self._end()
                    return
                else:
                    self._requests.put(message)
        self._end()

    def _end(self) -> None:
        """Let the main thread finish; exit without it if it is still busy after _GRACE."""
        self._ending.set()
        self._requests.put(None)
        last = threading.Timer(_GRACE, self._leave)
        last.daemon = True
        last.start()

    def _leave(self) -> None:
        self.clean_up()
        os._exit(0)

    def _serve(self, request: Message) -> None:
        number = request.get("id")
        tags = {"id": number} | ({"session": request["session"]} if "session" in request else {})

        def cancelled() -> bool:
            return number in self._cancelled or self._ending.is_set()

        try:
            if cancelled():
                raise Cancelled()
            answer = self._engine.do(
                request, lambda event, **parts: self.emit({"event": event, **tags, **parts}), cancelled
            )
        except Exception as error:  # a request must not end the process
            answer = _failure(error)
            if answer["kind"] == protocol.MEMORY:
                self._engine.free_memory()
            if answer["kind"] == protocol.INTERNAL:
                traceback.print_exc(file=sys.stderr)
        self._cancelled.discard(number)
        self.emit({**answer, **tags, "memory": self._engine.memory()})


def _failure(error: Exception) -> Message:
    """The `error` event for an exception, with a message for the user."""
    if _is_out_of_memory(error):
        kind, text = protocol.MEMORY, "The GPU ran out of memory"
        if isinstance(error, MemoryError):
            text = "This computer ran out of memory"
        remedy = (
            "Everything so far is kept. Close programs that use it, or choose a lower precision or the CPU."
        )
        return {"event": "error", "kind": kind, "text": f"{text}.", "remedy": remedy}
    kinds = {
        Cancelled: protocol.CANCELLED,
        ReplyError: protocol.REPLY,
        ModelError: protocol.MODEL,
        InputError: protocol.INPUT,
    }
    if isinstance(error, IbisError):
        kind = next((kind for each, kind in kinds.items() if isinstance(error, each)), protocol.INPUT)
        return {"event": "error", "kind": kind, "text": str(error), "remedy": ""}
    return {
        "event": "error",
        "kind": protocol.INTERNAL,
        "text": f"Unexpected error in the worker: {type(error).__name__}: {error}.",
        "remedy": "Everything so far is kept; the log has the details.",
    }


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the exception or one of its causes means out of memory, on the host or a GPU; without torch."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, MemoryError) or any(
            kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__
        ):
            return True
        if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _read_some(source: int) -> bytes:
    with contextlib.suppress(OSError):
        return os.read(source, 1 << 16)
    return b""


def _take_stdout() -> BinaryIO:
    """Return a stream to the original stdout, and redirect stdout to stderr for Python and C code."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def _sweep() -> None:
    """Remove the private folders of killed workers."""
    try:
        # Not os.kill(pid, 0), which ends the process on Windows. Missing in Slicer before the installation.
        import psutil
    except ImportError:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name[len(_PREFIX) :].split("-")[0]
        with contextlib.suppress(ValueError, OverflowError):  # not the name of a worker's folder
            if not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    channel = _take_stdout()
    parser = argparse.ArgumentParser(prog="ibis_agent.engine", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--script", type=Path, help="use the replies and faults in a JSON file instead of models"
    )
    options = parser.parse_args(arguments)
    source = os.dup(0)
    with open(os.devnull, "rb") as nothing:  # so that no library or child process reads our requests
        os.dup2(nothing.fileno(), 0)
    _sweep()
    if options.script:
        from ibis_agent.engine.script import ScriptedEngine

        engine: Engine = ScriptedEngine.read(options.script, channel)
    else:
        engine = Engine()
    worker = Worker(channel, source, engine)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the application
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        worker.run()
    finally:
        worker.clean_up()
    return 0
