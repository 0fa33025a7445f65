"""The live page of `ibis-agent run --step`: it shows the record after every action, and accepts clicks.

It is served on this machine only, at a secret address. A click on the page becomes one of the terminal's commands
(terminal.HELP). It is executed at once if we can wait for the terminal and the page together; otherwise the line is
copied. The page never touches the run itself: it shows what is in the run's file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TextIO

from ibis_agent.errors import IbisError
from ibis_agent.record import journal
from ibis_agent.record.review import review_page
from ibis_agent.record.trajectory import Trajectory

_LONGEST = 200  # maximum bytes of a command
_OPEN = 3.0  # seconds: a page that polled this recently is still open
_NOTHING_YET = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="1">'
    "<title>IBIS run</title></head><body><p>Nothing is recorded yet.</p></body></html>"
)


class Live:
    """A server of one page.

    Attributes:
        address: of the page.
        acts: whether commands from the page are executed; otherwise the person types them.
    """

    def __init__(self, path: Path, stream: TextIO | None = None) -> None:
        """path: the run's trajectory.json. stream: the terminal (default: sys.stdin).

        Raises OSError if no port is available.
        """
        self._path, self._stream = path, stream or sys.stdin
        self._waiting = self._ended = False
        self._lock, self._heard = threading.Lock(), threading.Event()
        self._looked = -_OPEN  # when a page last polled
        # Commands go through a pipe, so that we can wait for the terminal and the page together.
        self._inbox, self._outbox = socket.socketpair()
        self.acts = os.name == "posix" and self._stream.isatty()
        token = secrets.token_urlsafe(12)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, token))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/{token}/"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Stop the server. An open page is told first, so that it stops polling."""
        self._ended = True
        if time.monotonic() - self._looked < _OPEN:
            self._heard.wait(_OPEN)
        self._server.shutdown()
        self._server.server_close()
        self._inbox.close()
        self._outbox.close()

    def line(self, echo: Callable[[str], object]) -> str:
        """The next line from the terminal or the page; "" at the end of input. echo: called with one from the page."""
        if not self.acts:
            return self._stream.readline()
        with self._lock:
            self._waiting = True
        try:
            ready, _, _ = select.select([self._stream, self._inbox], [], [])
        finally:
            with self._lock:
                self._waiting = False
                # If a click arrives together with a typed line, the click comes first, because it refers to what the
                # page shows. The line is read at the next prompt.
                taken, _, _ = select.select([self._inbox], [], [], 0)
        if not taken and self._inbox not in ready:
            return self._stream.readline()
        text = self._inbox.recv(_LONGEST).decode("utf-8", "replace")
        echo(text)
        return text + "\n"

    def take(self, command: bytes) -> bool:
        """Accept a command from the page: one at a time, and only while waiting for the person.

        Returns whether it was accepted.
        """
        with self._lock:
            if not self._waiting or not 0 < len(command) <= _LONGEST:
                return False
            self._waiting = False
            self._outbox.sendall(command)
            return True

    def state(self) -> dict[str, object]:
        """The answer to a poll of the page. version: of the files that the page is built from."""
        self._looked, marks = time.monotonic(), []
        for path in (self._path, journal.beside(self._path)):
            with contextlib.suppress(OSError):
                found = path.stat()
                marks.append(f"{found.st_mtime_ns}-{found.st_size}")
        if self._ended:
            self._heard.set()
        return {
            "version": "/".join(marks),
            "waiting": self._waiting,
            "acts": self.acts,
            "ended": self._ended,
        }

    def page(self) -> str:
        """The page of the current record."""
        state = self.state()  # read before the record, so that a later change is shown at the next poll
        try:
            record = Trajectory.load(self._path)
            return review_page(record.to_json(png=False), state, record.slices.picture)
        except IbisError:
            return _NOTHING_YET


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Live | None]:
    """A live page while the block runs; None if no port is available."""
    try:
        live = Live(path)
    except OSError:
        yield None
        return
    try:
        yield live
    finally:
        live.close()


def _handler(live: Live, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._asks_for("/state"):
                self._answer(json.dumps(live.state()), "application/json")
            elif self._asks_for("/"):
                self._answer(live.page(), "text/html; charset=utf-8")
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not self._asks_for("/command") or not length.isdigit() or int(length) > _LONGEST:
                self.send_error(404)
                return
            taken = live.take(self.rfile.read(int(length)))
            self._answer(json.dumps({"taken": taken}), "application/json")

        def _asks_for(self, name: str) -> bool:
            # DNS rebinding: another site may point its host name to this machine, so other names are refused.
            port: int = self.server.server_address[1]  # type: ignore[assignment,index]
            here = self.headers.get("Host") == f"127.0.0.1:{port}"
            return here and secrets.compare_digest(self.path.encode(), f"/{token}{name}".encode())

        def _answer(self, text: str, kind: str) -> None:
            data = text.encode("utf-8", "replace")
            with contextlib.suppress(OSError):  # the browser may have closed the connection
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Referrer-Policy", "no-referrer")
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Do not log to the terminal, which the person is using."""

    return Handler
