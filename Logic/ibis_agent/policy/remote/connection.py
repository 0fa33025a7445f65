"""HTTP connections to a chat server: address, key, limits on replies, and errors.

Used by the remote policy and by the teacher in `training`. Redirects are not followed, so that pictures go only where
the user agreed to. The key is sent in one header and removed from every message that is shown.
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

# Status codes of a busy, starting or failing server, which may answer later.
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
        base: the address, without a trailing slash.
        host: the host, with the port if one is given.
        local: whether it is this machine.
    """

    def __init__(self, url: str, key: str | None = None, key_variable: str = "IBIS_API_KEY") -> None:
        """key_variable: the environment variable for the key, for messages.

        Raises InputError for an invalid address, and for a key that would be sent unencrypted.
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
        """Send a request; the body of the answer is not read yet. timeout: seconds to connect, and between bytes.

        Raises requests.RequestException, and ModelError for a redirect.
        """
        session = getattr(self._threads, "session", None)
        if session is None:
            session = self._threads.session = requests.Session()
            session.trust_env = not self.local  # no proxy to this machine itself
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
        """The error for a status other than 200, with the start of the server's message."""
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
        """`text` with the key replaced."""
        return text.replace(self._key, "[key]") if self._key else text


class _Key(requests.auth.AuthBase):
    """Sets the key, so that requests does not look for one in the user's .netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def read_json(answer: requests.Response, largest: int = _LARGEST_ANSWER) -> Any:
    """The JSON body of an answer. Raises ValueError for anything else, and for more than `largest` bytes."""
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
    """The seconds to wait from a Retry-After header: a number or a date."""
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
