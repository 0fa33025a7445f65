"""What the tests of served policies share: a policy on a server, and what servers answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from ibis_agent.actions import Reply, Terminate, format_reply
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.remote import probe as probing
from ibis_agent.policy.remote.chat import Patience
from ibis_agent.policy.remote.connection import Connection
from ibis_agent.policy.remote.remote import RemotePolicy

KEY = "sk-very-secret-123456"


HASTY = Patience(connect=2, first=0.4, between=0.4, whole=2, tries=2, pause=0.01)


def organs() -> np.ndarray:
    return probing._body((300, 420), "liver", 1.0, 0.0, 0.0).rgb


def remote(
    url: str, card: ModelCard | None = None, key: str = "", patience: Patience | None = None
) -> RemotePolicy:
    return RemotePolicy(Connection(url, key), "demo", card or ModelCard(name="served"), patience)


def http(status: str, body: bytes | str = b"", *headers: str, length: bool = True) -> bytes:
    body = body if isinstance(body, bytes) else body.encode()
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def events(*values: Any, done: bool = True) -> str:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in values]
    return "".join(f"data: {line}\n\n" for line in [*lines, *(["[DONE]"] if done else [])])


def delta(text: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def stream(*values: Any, done: bool = True) -> bytes:
    return http("200 OK", events(*values, done=done), "Content-Type: text/event-stream")


def pointing(
    change: Callable[[float, float], tuple[float, float]] = lambda x, y: (x, y),
) -> Callable[..., str]:
    """A model that sees what is bright and points there, in its own coordinates."""

    def answer(rgb: np.ndarray, text: str) -> str:
        rows, columns = np.nonzero(rgb[:, :, 0] > 128)
        if not len(rows):
            return format_reply(Reply("Nothing.", Terminate("No.")))
        x, y = change((columns.mean() + 0.5) / rgb.shape[1], (rows.mean() + 0.5) / rgb.shape[0])
        return f"<think>There.</think>\n<action>Positive Point ({x:.4f}, {y:.4f})</action>"

    return answer
