"""Asking a teacher model behind an OpenAI-compatible API, politely: paced, patient, and never twice the same.

What is asked and what a good answer is, reasoning_checks knows; here is the connection only. A server that is
busy or fails is tried again, longer and longer apart; one that refuses (a wrong key, an unknown model) ends
the run at once, for asking again would only cost.
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


class Unanswered(Exception):  # noqa: N818 - a teacher that did not answer is not a failure of the program
    """The teacher did not answer this one, however often it was asked."""


@dataclass
class Spent:
    """What was used so far: requests, tries again, tokens in and out as the server counts them."""

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
    """At most so many requests a minute, evenly spaced, for all threads together."""

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
        """No request before so many seconds from now: the server asked for a pause."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


class Teacher:
    """One model behind one address. `max_tokens`: of an answer, thinking included; `temperature` None: its own.

    Newer servers refuse `max_tokens`, or any temperature: they are then asked in their way, which is told once.

    Raises InputError for what is not an address.
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
        self.stopped = threading.Event()  # once set nothing is waited for, and nothing asked again
        self._timeout, self._tries, self._sleep = timeout, tries, sleep or self.stopped.wait
        self.pace, self.spent = Pace(per_minute, self._sleep), Spent()
        self._max_tokens, self._limit, self._temperature = max_tokens, "max_tokens", temperature

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of one answer.

        Raises Unanswered where it stays silent, ModelError where it refuses.
        """
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
                            refusal.remedy = (
                                f"{refusal.remedy} What is asked for: --max-tokens, --temperature."
                            )
                        raise refusal
                    reason = f"{answer.status_code} {answer.reason}"
                    asked = retry_after(answer.headers.get("Retry-After"))
                    if asked is not None:
                        pause = min(_LONGEST_WAIT, asked)
                        self.pace.hold(pause)
            except TROUBLE as error:
                reason = type(error).__name__
            except requests.RequestException as error:
                raise ModelError("the teacher cannot be asked", value=type(error).__name__) from error
            except ValueError as error:
                reason = str(error)
            if number + 1 < self._tries:
                self._sleep(pause)
        raise Unanswered(f"no answer after {self._tries} tries: {reason}")

    def _body(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        body = {"model": self.model, "messages": list(messages), self._limit: self._max_tokens}
        return body if self._temperature is None else {**body, "temperature": self._temperature}

    def _adapts(self, said: str, body: Mapping[str, Any]) -> bool:
        """Whether a refusal of this body names a parameter that can be given otherwise; from now on it is."""
        with self.spent.lock:
            if "max_tokens" in body and "max_tokens" in said and "max_completion_tokens" in said:
                if self._limit == "max_tokens":
                    print(
                        "the teacher refuses max_tokens: asking with max_completion_tokens", file=sys.stderr
                    )
                self._limit = "max_completion_tokens"
                return True
            if "temperature" in body and "temperature" in said:
                if self._temperature is not None:
                    print("the teacher refuses a temperature: asking without one", file=sys.stderr)
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
                    f"the teacher used all of its {self._max_tokens} tokens for thinking and said nothing",
                    value="finish_reason length",
                    remedy="Give it more with --max-tokens, or switch its thinking off where it runs.",
                )
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            if not isinstance(content, str):
                raise TypeError
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError("an answer of another form") from error
        return content
