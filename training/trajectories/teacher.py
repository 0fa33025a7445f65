"""Asking a teacher model behind an OpenAI-compatible API, politely: paced, patient, and never twice the same.

What is asked and what a good answer is, reasoning_checks knows; here is the connection only. A server that is
busy or fails is tried again, longer and longer apart; one that refuses (a wrong key, an unknown model) ends
the run at once, for asking again would only cost.
"""

from __future__ import annotations

import email.utils
import ipaddress
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from ibis_agent.errors import InputError, ModelError

KEY_VARIABLE = "OPENAI_API_KEY"
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_LONGEST_WAIT = 120.0
_LARGEST_ANSWER = 2**20


class Unanswered(Exception):  # noqa: N818 - a teacher that did not answer is no failure of the program
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
    """One model behind one address.

    Raises InputError for an address that is none.
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
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                "is no address of a teacher", value=url, remedy="Such as https://host.example/v1."
            )
        if parts.username or parts.password:
            raise InputError("keep the key out of the address", remedy=f"Put it into {KEY_VARIABLE}.")
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.address, self.host, self.model = f"{base}/chat/completions", parts.hostname, model
        self.local = _is_local(parts.hostname)
        self.key = os.environ.get(KEY_VARIABLE) if key is None else key
        if self.key and parts.scheme == "http" and not self.local:
            raise InputError(
                "the key would travel unencrypted",
                value=url,
                remedy="Use https, or a teacher on this machine.",
            )
        self.stopped = threading.Event()  # once set nothing is waited for, and nothing asked again
        self._timeout, self._tries, self._sleep = timeout, tries, sleep or self.stopped.wait
        self.pace, self.spent = Pace(per_minute, self._sleep), Spent()
        self._thread = threading.local()

    def ask(self, messages: Sequence[Mapping[str, Any]], max_tokens: int = 400) -> str:
        """The text of one answer.

        Raises Unanswered where it stays silent, ModelError where it refuses.
        """
        body: Any = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.4,
        }
        reason = ""
        for number in range(self._tries):
            if number:
                self.spent.add(retries=1)
            self.pace.wait()
            if self.stopped.is_set():
                raise Unanswered("stopped")
            pause = min(_LONGEST_WAIT, 2.0**number) * random.uniform(0.75, 1.25)
            try:
                with self._session().post(
                    self.address,
                    json=body,
                    timeout=(min(20, self._timeout), self._timeout),
                    allow_redirects=False,  # pictures go where the person agreed to, and nowhere else
                    stream=True,
                ) as answer:
                    self.spent.add(requests=1)
                    if answer.status_code == 200:
                        return self._text(_json(answer))
                    if answer.status_code not in _AGAIN:
                        raise ModelError(
                            f"the teacher refused: {answer.status_code} {answer.reason}",
                            value=_start_of(answer),
                            remedy="Check the address, the model's name and the key.",
                        )
                    reason = f"{answer.status_code} {answer.reason}"
                    asked = _retry_after(answer.headers.get("Retry-After"))
                    if asked is not None:
                        pause = min(_LONGEST_WAIT, asked)
                        self.pace.hold(pause)
            except (
                requests.Timeout,
                requests.ConnectionError,
                requests.exceptions.ChunkedEncodingError,
            ) as e:
                reason = type(e).__name__
            except requests.RequestException as error:
                raise ModelError("the teacher cannot be asked", value=type(error).__name__) from error
            except ValueError as error:
                reason = str(error)
            if number + 1 < self._tries:
                self._sleep(pause)
        raise Unanswered(f"no answer after {self._tries} tries: {reason}")

    def _session(self) -> requests.Session:
        session = getattr(self._thread, "session", None)
        if session is None:
            session = self._thread.session = requests.Session()
            session.trust_env = not self.local  # a proxy has no business between this machine and itself
            session.auth = _Key(self.key)
        return session

    def _text(self, values: Any) -> str:
        try:
            usage = values.get("usage") or {}
            self.spent.add(
                tokens_in=int(usage.get("prompt_tokens") or 0),
                tokens_out=int(usage.get("completion_tokens") or 0),
            )
            content = values["choices"][0]["message"]["content"]
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            if not isinstance(content, str):
                raise TypeError
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError("an answer of another form") from error
        return content


class _Key(requests.auth.AuthBase):
    """Sets the key itself, so that requests does not look for one in the person's .netrc."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _json(answer: requests.Response) -> Any:
    import json

    held = bytearray()
    for piece in answer.iter_content(2**16):
        held += piece
        if len(held) > _LARGEST_ANSWER:
            raise ValueError("an answer of more than a megabyte")
    return json.loads(held)


def _start_of(answer: requests.Response) -> str:
    return next(iter(answer.iter_content(300)), b"").decode("utf-8", errors="replace")


def _retry_after(text: str | None) -> float | None:
    """Seconds that a server asks to wait: a number or a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
