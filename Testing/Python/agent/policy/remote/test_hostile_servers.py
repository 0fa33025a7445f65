"""Over a hundred servers that go wrong: said in words, no secret in them, and the mask stays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from chained_segmenter import ChainedSegmenter
from chained_segmenter import picture as small_picture
from chat_server import hostile, seeing, serving
from ibis_agent.actions import Click
from ibis_agent.errors import IbisError, ModelError
from ibis_agent.run.run import Run
from remote_servers import HASTY, KEY, delta, events, http, remote, stream

PAGE = "<!doctype html><html><title>Sign in</title>" + "x" * 5000


BODIES = {
    "nothing": "",
    "a page": PAGE,
    "an error": json.dumps({"error": {"message": f"bad key {KEY}"}}),
    "the key": f"Authorization: Bearer {KEY} was refused",
    "bytes": "\ufffd\x00\x01",
}


STATUSES = (
    "400 Bad Request", "401 Unauthorized", "402 Payment Required", "403 Forbidden", "404 Not Found",
    "405 Method Not Allowed", "413 Payload Too Large", "415 Unsupported", "422 Unprocessable", "429 Slow Down",
    "500 Oops", "503 Loading model", f"418 {KEY}",
)  # fmt: skip


FAULTS: dict[str, bytes] = {
    f"{status}, {name}": http(status, body) for status in STATUSES for name, body in BODIES.items()
}


FAULTS |= {
    f"{status} to {to}": http(f"{status} Moved", "", f"Location: {to}")
    for status in (301, 302, 303, 307, 308)
    for to in ("http://elsewhere.example/v1", "//elsewhere.example", "/login", f"https://x/?key={KEY}")
}
FAULTS |= {
    "a page with status 200": http("200 OK", PAGE, "Content-Type: text/html"),
    "a page that says it is a stream": http("200 OK", PAGE, "Content-Type: text/event-stream"),
    "a page that says it is JSON": http("200 OK", PAGE, "Content-Type: application/json"),
    "nothing at all": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": http("200 OK", "data: {", "Content-Type: text/event-stream")[:-4],
    "a wrong length": http("200 OK", events(delta("<think>")), "Content-Length: 100000", length=False),
    "no events": stream(done=False),
    "done at once": stream(),
    "not JSON": stream("{'choices': 1}"),
    "an object of another kind": stream({"answer": 42}),
    "a list": stream([1, 2]),
    "a number": stream(7),
    "null": stream("null"),
    "choices that are not a list": stream({"choices": "none"}),
    "choices of numbers": stream({"choices": [1]}),
    "no delta": stream({"choices": [{}]}),
    "content that is a number": stream(delta(5)),
    "content that is an object": stream(delta({"a": 1})),
    "an error in the stream": stream({"error": {"message": f"out of memory; key {KEY}"}}),
    "an error that is a number": stream({"error": 5}),
    "an error after some text": stream(delta("<think>The"), {"error": "crashed"}),
    "cut off in the text": stream(delta("<think>The liver"), done=False),
    "cut off in an event": http("200 OK", 'data: {"choices": [{"del', "Content-Type: text/event-stream"),
    "deeply nested": stream("[" * 100_000),
    "tool calls that are none": stream({"choices": [{"delta": {"tool_calls": [1, {}, {"function": 7}]}}]}),
    "usage that is nonsense": stream({"choices": [], "usage": {"prompt_tokens": "many"}}),
    "usage that is enormous": stream({"choices": [], "usage": {"prompt_tokens": 10**400}}),
    "JSON that is not a chat": http("200 OK", '{"ok": true}', "Content-Type: application/json"),
    "JSON without end": http("200 OK", '{"a": "' + "x" * 3_000_000, "Content-Type: application/json"),
    "a chunk that is not one": http("200 OK", "zz\r\n", "Transfer-Encoding: chunked", length=False),
    "a false encoding": http("200 OK", "plain", "Content-Encoding: gzip", "Content-Type: text/event-stream"),
    "only comments": http("200 OK", ": ping\n\n" * 100, "Content-Type: text/event-stream"),
    "a date to wait for": http("503 Busy", "", "Retry-After: Fri, 31 Dec 2199 23:59:59 GMT"),
    "an endless wait": http("429 Slow", "", "Retry-After: 1e309"),
}  # fmt: skip


def test_there_are_a_hundred_of_them() -> None:
    assert len(FAULTS) + len(STORIES) >= 100


def asked(url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> str:
    """What is said about a server in the middle of a run; the run stands as it stood."""
    monkeypatch.setattr("ibis_agent.policy.remote.chat._LONGEST_PAUSE", 0.02)
    caplog.set_level("DEBUG")
    run = Run.on_picture(
        small_picture(), "Segment the liver", remote(url, key=KEY, patience=HASTY), ChainedSegmenter()
    )
    run.click(run.slices.first, Click(0.4, 0.5))
    before, actions = run.mask(), run.actions
    with pytest.raises(IbisError) as refused:
        run.step()
        assert run.status != "paused", "an unreadable reply"
        raise ModelError("the reply made a step")
    assert np.array_equal(run.mask(), before) and run.actions is actions and before.any()
    said = str(refused.value)
    assert KEY not in said + caplog.text + repr(refused.value.__cause__) and len(said) < 700
    return said


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_goes_wrong_is_told_in_words_and_the_mask_stays(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with hostile(lambda connection: (connection.sendall(FAULTS[fault]), connection.close())) as url:
        if fault in (
            "done at once",
            "a wrong length",
            "content that is a number",
            "content that is an object",
            "tool calls that are none",
        ) or (fault.startswith("usage")):
            with pytest.raises(
                AssertionError, match="unreadable"
            ):  # an empty reply is one that cannot be read
                asked(url, monkeypatch, caplog)
        else:
            assert "made a step" not in asked(url, monkeypatch, caplog)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def slowly(connection: Any, data: bytes) -> None:
    for n in range(len(data)):
        connection.sendall(data[n : n + 1])
        time.sleep(0.02)


def forever(connection: Any, data: bytes, head: bytes = HEAD) -> None:
    connection.sendall(head)
    while True:
        connection.sendall(data)


STORIES: dict[str, tuple[Callable[[Any], object], str]] = {
    "says nothing": (lambda connection: time.sleep(30), "no text within"),
    "a head, then nothing": (lambda connection: connection.sendall(HEAD), "no text within"),
    "one letter at a time, never done": (
        lambda connection: slowly(connection, HEAD + b": " + b"x" * 10_000),
        "no text within|too long",
    ),
    "stops in the middle": (
        lambda connection: connection.sendall(HEAD + events(delta("<think>"), done=False).encode()),
        "in the middle",
    ),
    "text without end": (
        lambda connection: forever(connection, events(delta("x" * 999), done=False).encode()),
        "does not stop writing",
    ),
    "a line without end": (lambda connection: forever(connection, b"x" * 2**16), "line without end"),
    "comments without end": (
        lambda connection: forever(connection, b": ping\n" * 2**12),
        "MiB|no text within|too long",
    ),
    "a head without end": (
        lambda connection: forever(connection, b"X-More: " + b"y" * 9999 + b"\r\n", b"HTTP/1.1 200 OK\r\n"),
        "did not answer",
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_a_server_that_never_ends_is_left(
    story: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    behave, words = STORIES[story]
    with hostile(behave) as url:
        said = asked(url, monkeypatch, caplog)
    assert any(word in said for word in words.split("|")), said


@pytest.mark.parametrize("sent", ["Positive Point (1.3, 0.4)", "Positive Point (412, 300)", "[1, 2]"])
def test_other_coordinates_are_an_unreadable_reply_and_no_click(sent: str) -> None:
    with serving(seeing(lambda rgb, text: f"<action>{sent}</action>")) as server:
        run = Run.on_picture(small_picture(), "Segment the liver", remote(server.url), ChainedSegmenter())
        assert run.step() is None and run.status == "paused" and not run.steps
