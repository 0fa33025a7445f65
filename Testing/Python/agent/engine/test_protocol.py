"""Framing: whatever arrives in whatever pieces, messages come out whole and noise does no harm."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.engine import protocol
from ibis_agent.engine.protocol import Framer

MESSAGES = [
    {"event": "hello", "pid": 7},
    {"event": "text", "text": "Leber, größer\n\u2028"},
    {"event": "done"},
]


@given(st.lists(st.integers(1, 40), max_size=30))
def test_messages_survive_being_cut_anywhere(cuts: list[int]) -> None:
    stream = b"".join(protocol.encode(message) for message in MESSAGES)
    framer, got = Framer("event"), []
    for cut in cuts:
        got += list(framer.feed(stream[:cut]))
        stream = stream[cut:]
    got += list(framer.feed(stream))
    assert got == MESSAGES


def test_a_message_is_one_line_of_ascii() -> None:
    line = protocol.encode({"event": "text", "text": "é\n\u2028"})
    assert line.isascii()
    assert line.count(b"\n") == 1


def test_a_message_with_nan_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError):
        protocol.encode({"event": "step", "score": float("nan")})


@given(st.binary(max_size=300).filter(lambda data: b"\n" not in data))
def test_noise_comes_out_as_text_and_never_as_a_message(noise: bytes) -> None:
    framer = Framer("event")
    got = list(framer.feed(noise + b"\n" + protocol.encode(MESSAGES[0])))
    assert got[-1] == MESSAGES[0]
    for each in got[:-1]:
        assert isinstance(each, str) or isinstance(each["event"], str)


@pytest.mark.parametrize("line", ['["event"]', '{"event": 7}', '{"request": "step"}', "null", "[" * 100_000])
def test_json_that_is_no_event_is_noise(line: str) -> None:
    (got,) = Framer("event").feed(line.encode() + b"\n")
    assert isinstance(got, str)


def test_a_line_without_end_is_given_up_and_what_follows_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_LINE", 1000)
    framer = Framer("event")
    (told,) = framer.feed(b"x" * 1001)
    assert isinstance(told, str)
    got = list(framer.feed(b"still the same line\n" + json.dumps(MESSAGES[0]).encode() + b"\n"))
    assert got == [MESSAGES[0]]
