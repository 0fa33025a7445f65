"""One chat completion request: streamed, cancellable, and repeated after failures that may pass.

A thread reads the connection, so that a silent server blocks nobody: the caller can cancel at any time, and every wait
has a limit. A request is repeated only if no text has arrived yet.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import requests

from ibis_agent.errors import Cancelled, ModelError
from ibis_agent.policy.contract import IsCancelled, OnText
from ibis_agent.policy.remote.connection import AGAIN, TROUBLE, Connection, read_json, retry_after
from ibis_agent.policy.remote.events import Joiner, Piece, ServerError, pieces

_TICK = 0.05  # seconds between polls of `cancelled`
_MOST_BYTES = 2**24  # of one answer, as sent
_LETTERS_PER_TOKEN = 64
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Patience:
    """Timeouts in seconds.

    Attributes:
        connect: for the connection.
        first: until the first text; the server may have to load the model.
        between: between two pieces of text.
        whole: for the whole answer.
        tries: the number of attempts without an answer.
        pause: before the second attempt; it doubles before each further one.
    """

    connect: float = 10.0
    first: float = 180.0
    between: float = 60.0
    whole: float = 900.0
    tries: int = 4
    pause: float = 1.0


@dataclass
class Answer:
    """The answer. prompt_tokens, tokens: the server's counts for request and answer; 0 if it gives none."""

    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    model: str = ""

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.tokens = piece.tokens or self.tokens
        self.model = piece.model or self.model


class _AskAgainError(Exception):
    """A failure that may pass. pause: the wait in seconds that the server asks for."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass
class _Reading:
    """An answer while a thread reads it."""

    came: queue.SimpleQueue[Piece | Exception | None] = field(default_factory=queue.SimpleQueue)
    over: threading.Event = field(default_factory=threading.Event)
    answer: requests.Response | None = None

    def stop(self) -> None:
        """Close the connection, so that the server stops writing."""
        self.over.set()
        answer = self.answer
        if answer is not None:
            with contextlib.suppress(Exception):
                answer.raw.shutdown()


def ask(
    connection: Connection,
    body: dict[str, Any],
    on_text: OnText | None = None,
    cancelled: IsCancelled | None = None,
    enough: Callable[[str], bool] | None = None,
    patience: Patience | None = None,
) -> Answer:
    """The answer to one chat completion request; `stream` is set here.

    Args:
        body: the request, with "max_tokens".
        on_text: called with the text in pieces.
        cancelled: polled twenty times a second.
        enough: whether the text so far is complete; reading then stops.

    Raises Cancelled, and ModelError with the reason if the server refuses, fails or stays silent.
    """
    patience = patience or Patience()
    wait, reason = patience.pause, ""
    for number in range(patience.tries):
        if number:
            _rest(wait, cancelled)
            wait = 2 * patience.pause * 2 ** (number - 1)
        try:
            return _once(connection, body, on_text, cancelled, enough, patience)
        except _AskAgainError as error:
            reason = connection.hidden(str(error))
            wait = min(_LONGEST_PAUSE, wait if error.pause is None else error.pause)
    raise ModelError(
        f"the server did not answer: {reason}",
        value=f"{connection.host}, asked {patience.tries} times",
        remedy="Check that it is running and has loaded the model.",
    )


def _once(
    connection: Connection,
    body: dict[str, Any],
    on_text: OnText | None,
    cancelled: IsCancelled | None,
    enough: Callable[[str], bool] | None,
    patience: Patience,
) -> Answer:
    reading, answer = _Reading(), Answer()
    threading.Thread(target=_read, args=(connection, body, reading, patience), daemon=True).start()
    begun = heard = time.monotonic()
    most = int(body.get("max_tokens") or 4096) * _LETTERS_PER_TOKEN + 4096
    try:
        while True:
            if cancelled is not None and cancelled():
                raise Cancelled()
            try:
                came = reading.came.get(timeout=_TICK)
            except queue.Empty:
                _check_time(time.monotonic(), begun, heard, bool(answer.text), patience)
                continue
            if came is None:
                return answer
            if isinstance(came, Exception):
                raise _explained(came, connection, answer.text)
            answer.add(came)
            if came.text:
                heard = time.monotonic()
                if on_text is not None:
                    on_text(came.text)
                if enough is not None and enough(answer.text):
                    return answer
            if len(answer.text) > most:
                raise ModelError(
                    "the server does not stop writing",
                    value=f"{len(answer.text)} characters; {body.get('max_tokens')} tokens were allowed",
                    remedy="Use a server that respects max_tokens.",
                )
            _check_time(time.monotonic(), begun, heard, bool(answer.text), patience)
    finally:
        reading.stop()


def _check_time(now: float, begun: float, heard: float, some: bool, patience: Patience) -> None:
    if not some and now - begun > patience.first:
        raise _AskAgainError(f"no text within {patience.first:g} s")
    if some and now - heard > patience.between:
        raise ModelError(
            "the server stopped in the middle of its reply",
            value=f"nothing for {patience.between:g} s",
            remedy="Try again; the run is unchanged.",
        )
    if now - begun > patience.whole:
        raise ModelError("the server took too long to reply", value=f"{patience.whole:g} s")


def _explained(error: Exception, connection: Connection, text: str) -> Exception:
    """The error to raise in the caller for a failure of the reading thread."""
    if isinstance(error, ModelError) or (isinstance(error, _AskAgainError) and not text):
        return error
    reason = connection.hidden(str(error) or type(error).__name__)
    if text:
        return ModelError(
            "the server's reply was cut off", value=reason, remedy="Try again; the run is unchanged."
        )
    return ModelError("the server's reply cannot be used", value=reason, remedy="Is it a chat server?")


def _read(connection: Connection, body: dict[str, Any], reading: _Reading, patience: Patience) -> None:
    """Read in a thread: pieces or an exception go into the queue, then None."""
    try:
        # Longer than the caller waits: this only ends the thread.
        limits = (patience.connect, 2 * max(patience.first, patience.between) + 1)
        with connection.open("POST", "/chat/completions", {**body, **_STREAMED}, limits) as answer:
            reading.answer = answer
            if answer.status_code in AGAIN:
                reason = f"{answer.status_code} {answer.reason}"
                raise _AskAgainError(reason, retry_after(answer.headers.get("Retry-After")))
            if answer.status_code != 200:
                raise connection.refusal(answer)
            if "json" in answer.headers.get("Content-Type", ""):  # it does not stream
                reading.came.put(Joiner().join(read_json(answer)))
            else:
                for piece in pieces(_bytes(answer, reading)):
                    reading.came.put(piece)
        reading.came.put(None)
    except TROUBLE as error:
        reading.came.put(_AskAgainError(f"{type(error).__name__}: {_plain(error)}"))
    except EOFError:
        reading.came.put(_AskAgainError("the reply ended too early"))
    except ServerError as error:
        reading.came.put(_AskAgainError(str(error)))
    except Exception as error:  # raised again in the caller
        reading.came.put(error)


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def _bytes(answer: requests.Response, reading: _Reading) -> Iterator[bytes]:
    count = 0
    while not reading.over.is_set():
        part = answer.raw.read1(2**16, decode_content=True)
        if not part:
            return
        count += len(part)
        if count > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES // 2**20} MiB in one reply")
        yield part


def _plain(error: Exception) -> str:
    """The innermost message of the exceptions that requests nests."""
    inner: Any = error
    while inner.args and isinstance(inner.args[-1], Exception):
        inner = inner.args[-1]
    reason = getattr(inner, "reason", None)
    return str(reason if isinstance(reason, Exception) else inner)[:200]


def _rest(seconds: float, cancelled: IsCancelled | None) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if cancelled is not None and cancelled():
            raise Cancelled()
        time.sleep(min(_TICK, left))
