"""Parsing of server-sent events with the pieces of a chat completion.

Format: the WHATWG HTML standard, section 9.2 (server-sent events), and OpenAI's chat completion chunks as llama.cpp,
LM Studio, Ollama, vLLM, SGLang and transformers send them. Some servers move thinking and tool calls out of the text;
here they are put back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ibis_agent.policy.remote.connection import parsed

_LONGEST_LINE = 2**20


@dataclass(frozen=True)
class Piece:
    """The content of one event.

    Attributes:
        prompt_tokens, tokens: the server's counts for request and answer; 0 if it gives none.
        last: whether the text ends here.
    """

    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    model: str = ""
    last: bool = False


class Joiner:
    """Puts thinking and tool calls that a server sends separately back into the text, in their tags."""

    def __init__(self) -> None:
        self._thinking = False
        self._call = ""  # " " and the arguments so far, while a call is open

    def join(self, values: Any) -> Piece:
        """The Piece of one chunk, or of a whole answer. Raises ValueError, and ServerError."""
        if not isinstance(values, dict):
            raise ValueError("an answer of another form")
        if values.get("error"):
            raise ServerError(_words(values["error"]))
        choices = values.get("choices")
        if not isinstance(choices, list):
            raise ValueError("an answer of another form")
        text, last = "", False
        if choices:
            first = choices[0] if isinstance(choices[0], dict) else {}
            said = first.get("delta", first.get("message"))
            if not isinstance(said, dict):
                raise ValueError("an answer of another form")
            last = bool(first.get("finish_reason"))
            thought = _text(said.get("reasoning_content") or said.get("reasoning"))
            if thought:
                text += ("" if self._thinking else "<think>") + thought
                self._thinking = True
            content, calls = _text(said.get("content")), said.get("tool_calls")
            if content:
                text += self._closed()
                end = "</think>" if content.startswith("\n") else "</think>\n"
                text += (end if self._thinking else "") + content
                self._thinking = False
            if isinstance(calls, list) and calls:
                text += "</think>\n" if self._thinking else ""
                self._thinking = False
                text += "".join(self._called(call) for call in calls)
            if last or "message" in first:
                text += self._closed()
        usage = values.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        model = values.get("model")
        return Piece(
            text,
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            model if isinstance(model, str) else "",
            last,
        )

    def _called(self, call: Any) -> str:
        """The new text of a call: its name comes first, then its arguments in pieces."""
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return ""
        name, given, text = function.get("name"), function.get("arguments"), ""
        if isinstance(name, str) and name:
            text = f'{self._closed()}<tool_call>\n{{"name": {json.dumps(name)}, "arguments": '
            self._call = " "
        given = json.dumps(given) if isinstance(given, dict) else _text(given)
        if not self._call:
            return ""
        self._call += given
        return text + given

    def _closed(self) -> str:
        if not self._call:
            return ""
        empty, self._call = not self._call.strip(), ""
        return ("{}" if empty else "") + "}\n</tool_call>"


class ServerError(Exception):
    """The server reports an error within an answer."""


def pieces(data: Iterable[bytes]) -> Iterator[Piece]:
    """The pieces of a stream of events. Raises ValueError, ServerError, and EOFError if the stream ends too early."""
    joiner, whole = Joiner(), False
    for event in _events(data):
        if event == "[DONE]":
            return
        piece = joiner.join(parsed(event))
        whole = whole or piece.last
        yield piece
    if not whole:
        raise EOFError


def _events(data: Iterable[bytes]) -> Iterator[str]:
    """The `data` of every event."""
    held: list[str] = []
    for line in _lines(data):
        if not line:
            if held:
                yield "\n".join(held)
            held = []
        elif line.startswith("data:"):
            held.append(line[5:].removeprefix(" "))
        elif line.startswith(("<", "{")):
            raise ValueError("a reply that is a web page" if line[0] == "<" else "a reply without events")
    if held:
        yield "\n".join(held)


def _lines(data: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for part in data:
        *lines, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise ValueError("a line without end")
        for line in lines:
            yield line.decode("utf-8", errors="replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", errors="replace").rstrip("\r")


def _text(value: Any) -> str:
    if isinstance(value, list):  # some servers send a list of parts
        value = "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0


def _words(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or "an error without a message"
    return str(error)[:300]
