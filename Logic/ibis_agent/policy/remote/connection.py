"""The one way to a server: where it is, how its key is kept, what may come back, and how failures are told.

Used by the remote policy and by the teacher of `training`. Redirects are not followed: pictures go where the person
agreed to, and nowhere else. The key stands in one header of requests; whatever a server says is shown without it.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from ibis_agent.errors import InputError, ModelError

# A server that is busy, starting or failing: asked again later, it may answer.
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
TROUBLE = (
    requests.Timeout,
    requests.ConnectionError,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
)
_LARGEST_ANSWER = 2**20
_SHOWN = 300


class Connection:
    """A server's address and the key for it.

    Attributes:
        base: the address, without a slash at its end.
        host: its host, with the port where one is given.
        local: it is this machine.
    """

    def __init__(self, url: str, key: str | None = None, key_variable: str = "IBIS_API_KEY") -> None:
        """key_variable: the environment variable that keys belong into, for what is said to people.

        Raises InputError for what is not an address, and for a key that would travel unencrypted.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, parts, port = "", urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise InputError(
                "this is not a server address", value=url, remedy="For example: http://localhost:8080/v1."
            )
        if parts.username or parts.password:
            raise InputError("the address must not contain the key", remedy=f"Put it into {key_variable}.")
        self.base = url.rstrip("/").removesuffix("/chat/completions")
        self.host = host if port is None else f"{host}:{port}"
        self.local = _is_local(host)
        self._key = (key or "").strip()
        if self._key and parts.scheme == "http" and not self.local:
            raise InputError(
                "the key would be sent unencrypted",
                value=url,
                remedy="Use https, or a server on this machine.",
            )
        self._threads = threading.local()

    def open(
        self, method: str, path: str, body: Any = None, timeout: tuple[float, float] = (10, 60)
    ) -> requests.Response:
        """The answer, its body not read yet. timeout: seconds to connect, and to the next bytes.

        Raises requests.RequestException; ModelError for a redirect.
        """
        session = getattr(self._threads, "session", None)
        if session is None:
            session = self._threads.session = requests.Session()
            session.trust_env = not self.local  # a proxy has no business between this machine and itself
            session.auth = _Key(self._key)
        answer: requests.Response = session.request(
            method,
            self.base + path,
            json=body,
            timeout=timeout,
            allow_redirects=False,
            stream=True,
            headers={"Accept-Encoding": "identity"},
        )
        if answer.is_redirect or answer.is_permanent_redirect:
            to = urlsplit(answer.headers.get("Location", "")).netloc or "another place"
            answer.close()
            raise ModelError(
                "the server redirects to another address, which is not followed",
                value=self.hidden(to),
                remedy="Give the final address.",
            )
        return answer

    def refusal(self, answer: requests.Response) -> ModelError:
        """What a status other than 200 means, with the beginning of what the server says."""
        said = self.hidden(next(iter(answer.iter_content(_SHOWN)), b"").decode("utf-8", errors="replace"))
        remedy = "Check the address, the model's name and the key."
        if answer.status_code in (401, 403):
            remedy = "Check the key."
        elif answer.status_code == 404:
            remedy = "Check the address, which often ends in /v1, and the model's name."
        reason = self.hidden(str(answer.reason or ""))
        return ModelError(
            f"the server refused: {answer.status_code} {reason}".strip(), value=said, remedy=remedy
        )

    def hidden(self, text: str) -> str:
        """`text` without the key, in whatever it says."""
        return text.replace(self._key, "[key]") if self._key else text


class _Key(requests.auth.AuthBase):
    """Sets the key itself, so that requests does not look for one in the person's .netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def read_json(answer: requests.Response, largest: int = _LARGEST_ANSWER) -> Any:
    """The JSON of an answer. Raises ValueError for anything else, and for more than `largest` bytes."""
    held = bytearray()
    for piece in answer.iter_content(2**16):
        held += piece
        if len(held) > largest:
            raise ValueError("a reply of more than a megabyte")
    return parsed(bytes(held))


def parsed(text: str | bytes) -> Any:
    """JSON from a server. Raises ValueError, and nothing else."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("a reply that is nested too deeply") from error
    except ValueError as error:
        start = text[:40] if isinstance(text, str) else text[:40].decode("utf-8", errors="replace")
        kind = "a web page" if start.lstrip().startswith("<") else "not JSON"
        raise ValueError(f"a reply that is {kind}") from error


def retry_after(text: str | None) -> float | None:
    """Seconds that a server's Retry-After asks to wait: a number or a date."""
    if not text:
        return None
    try:
        seconds = float(text)
        return max(0.0, seconds) if seconds < float("inf") else None
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
