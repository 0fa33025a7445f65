"""Requests to a teacher model behind an OpenAI-compatible API, with rate limit and retries.

Requests and checks of answers are in reasoning_checks. If the server is busy or fails, the request is retried with
growing pauses; if it refuses (wrong key, unknown model), the run ends at once.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
from ibis_agent.errors import ModelError
from ibis_agent.policy.remote.connection import AGAIN, TROUBLE, Connection, read_json, retry_after

KEY_VARIABLE = "OPENAI_API_KEY"
_LONGEST_WAIT = 120.0


class Unanswered(Exception):  # noqa: N818 - not an error of the program
    """The teacher did not answer a request after all tries."""


@dataclass
class Spent:
    """Usage so far: requests, retries, input and output tokens as counted by the server."""

    requests: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **more: int) -> None:
        with self.lock:
            for key, value in more.items():
                setattr(self, key, getattr(self, key) + value)


class Pace:
    """A limit of requests per minute, evenly spaced, for all threads together."""

    def __init__(
        self,
        per_minute: float,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._sleep, self._clock = sleep, clock
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = self._clock()
            at = max(now, self._next)
            self._next = at + self._gap
        if at > now:
            self._sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Send no request for this many seconds, as the server asked."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


class Teacher:
    """One model at one address. Raises InputError for an invalid address.

    max_tokens: of an answer, including reasoning; temperature: None for the server's default. If a server refuses
    `max_tokens` or a temperature, requests are adapted, with one message.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        per_minute: float = 60,
        timeout: float = 120,
        tries: int = 6,
        sleep: Callable[[float], object] | None = None,
        max_tokens: int = 400,
        temperature: float | None = 0.4,
    ) -> None:
        key = os.environ.get(KEY_VARIABLE) if key is None else key
        self._connection = Connection(url, key, KEY_VARIABLE)
        self.host, self.local, self.model = self._connection.host, self._connection.local, model
        self.stopped = threading.Event()  # when set, waits end and nothing is retried
        self._timeout, self._tries, self._sleep = timeout, tries, sleep or self.stopped.wait
        self.pace, self.spent = Pace(per_minute, self._sleep), Spent()
        self._max_tokens, self._limit, self._temperature = max_tokens, "max_tokens", temperature

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of one answer. Raises Unanswered after all tries, ModelError if the server refuses."""
        reason = ""
        for number in range(self._tries):
            if number:
                self.spent.add(retries=1)
            self.pace.wait()
            if self.stopped.is_set():
                raise Unanswered("stopped")
            pause = min(_LONGEST_WAIT, 2.0**number) * random.uniform(0.75, 1.25)
            body = self._body(messages)
            try:
                limits = (min(20, self._timeout), self._timeout)
                with self._connection.open("POST", "/chat/completions", body, limits) as answer:
                    self.spent.add(requests=1)
                    if answer.status_code == 200:
                        return self._text(read_json(answer))
                    if answer.status_code not in AGAIN:
                        refusal = self._connection.refusal(answer)
                        if answer.status_code in (400, 422):
                            if self._adapts(str(refusal.value), body):
                                continue
                            refusal.remedy = f"{refusal.remedy} See also --max-tokens and --temperature."
                        raise refusal
                    reason = f"{answer.status_code} {answer.reason}"
                    asked = retry_after(answer.headers.get("Retry-After"))
                    if asked is not None:
                        pause = min(_LONGEST_WAIT, asked)
                        self.pace.hold(pause)
            except TROUBLE as error:
                reason = type(error).__name__
            except requests.RequestException as error:
                raise ModelError("the request to the teacher failed", value=type(error).__name__) from error
            except ValueError as error:
                reason = str(error)
            if number + 1 < self._tries:
                self._sleep(pause)
        raise Unanswered(f"no answer after {self._tries} tries: {reason}")

    def _body(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        body = {"model": self.model, "messages": list(messages), self._limit: self._max_tokens}
        return body if self._temperature is None else {**body, "temperature": self._temperature}

    def _adapts(self, said: str, body: Mapping[str, Any]) -> bool:
        """Adapt later requests if the refusal `said` names a parameter that can be changed; whether it does."""
        with self.spent.lock:
            if "max_tokens" in body and "max_tokens" in said and "max_completion_tokens" in said:
                if self._limit == "max_tokens":
                    print("the teacher refuses max_tokens; using max_completion_tokens", file=sys.stderr)
                self._limit = "max_completion_tokens"
                return True
            if "temperature" in body and "temperature" in said:
                if self._temperature is not None:
                    print("the teacher refuses temperature; using its default", file=sys.stderr)
                self._temperature = None
                return True
        return False

    def _text(self, values: Any) -> str:
        try:
            usage = values.get("usage") or {}
            self.spent.add(
                tokens_in=int(usage.get("prompt_tokens") or 0),
                tokens_out=int(usage.get("completion_tokens") or 0),
            )
            choice = values["choices"][0]
            content = choice["message"]["content"]
            if not content and choice.get("finish_reason") == "length":
                raise ModelError(
                    f"the teacher used all {self._max_tokens} tokens for reasoning, without an answer",
                    value="finish_reason length",
                    remedy="Raise --max-tokens, or turn off its reasoning on the server.",
                )
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            if not isinstance(content, str):
                raise TypeError
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError("an answer in an unknown format") from error
        return content
