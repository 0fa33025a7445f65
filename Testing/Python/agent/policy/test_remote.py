"""A policy on a server: the same as on this machine, stopped at once, asked only with a yes, probed before use."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import numpy as np
import pytest
from bright_volumes import NOTHING, disc, run_over
from chained_segmenter import ENDING, ChainedSegmenter, clicking
from chained_segmenter import picture as small_picture
from chat_server import ChatServer, conversation, hostile, seeing, served, serving
from ibis_agent.actions import Box, Click, Reply, Terminate, format_reply
from ibis_agent.cli import chosen_policy
from ibis_agent.cli import commands as cli
from ibis_agent.engine.engine import Engine
from ibis_agent.errors import Cancelled, IbisError, InputError, ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.policy.remote import probe as probing
from ibis_agent.policy.remote.chat import Patience
from ibis_agent.policy.remote.connection import Connection
from ibis_agent.policy.remote.picture import sent_size
from ibis_agent.policy.remote.remote import RemotePolicy
from ibis_agent.policy.remote.source import RemoteAddress, settings_file
from ibis_agent.run.action import Watch
from ibis_agent.run.run import Run
from ibis_agent.scan.picture import Picture, PictureGeometry
from ibis_agent.tool_calls import parse_call
from PIL import Image

KEY = "sk-very-secret-123456"
HASTY = Patience(connect=2, first=0.4, between=0.4, whole=2, tries=2, pause=0.01)


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    monkeypatch.delenv("IBIS_API_KEY", raising=False)


@pytest.fixture(scope="module")
def demo() -> Any:
    return policies.open("demo", "cpu", "fp32")


@pytest.fixture(scope="module")
def demo_server(demo: Any) -> Iterator[ChatServer]:
    with serving(served(demo, demo_folder())) as server:
        yield server


def organs() -> np.ndarray:
    return probing._body((300, 420), "liver", 1.0, 0.0, 0.0).rgb


def remote(
    url: str, card: ModelCard | None = None, key: str = "", patience: Patience | None = None
) -> RemotePolicy:
    return RemotePolicy(Connection(url, key), "demo", card or ModelCard(name="served"), patience)


def test_local_and_served_replies_are_equal_token_for_token(demo: Any, demo_server: ChatServer) -> None:
    there = remote(demo_server.url, demo.card)
    mask = np.zeros((300, 420), bool)
    mask[60:200, 60:200] = True
    for question in ("Segment the liver", "Is there a spleen? Segment it.", "Segment the spine"):
        for replies, shown in (((), None), ((clicking(0.3, 0.4),), mask)):
            situation = Situation(
                organs(), question, replies, lambda done, shown=shown: shown if done else None
            )
            turn, pieces = observe(demo.card, situation), list[str]()
            text = there.reply(turn, pieces.append)
            assert text == demo.reply(turn) == "".join(pieces)
            assert demo.chat.reply_tokens(text) == demo.chat.reply_tokens(demo.last.text)


def test_a_run_with_the_served_policy_goes_as_one_with_the_local(demo: Any, demo_server: ChatServer) -> None:
    picture = Picture(organs(), PictureGeometry.of_picture(300, 420), None)
    segmenter = segmenters.open("demo", device="cpu")
    here, there = (
        Run.on_picture(picture, "Segment the liver", policy, segmenter)
        for policy in (demo, remote(demo_server.url, demo.card))
    )
    for run in (here, there):
        run.run()
    assert [step.reply for step in here.steps] == [step.reply for step in there.steps]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(here.steps, there.steps, strict=True))
    assert there.policy is not None and there.policy.identity["address"] == demo_server.url


def test_pictures_are_sent_in_the_size_in_which_the_policy_sees_them(demo: Any) -> None:
    for height, width in ((300, 420), (64, 64), (512, 512), (30, 900), (1024, 300)):
        seen = demo.chat.as_seen(np.zeros((height, width, 3), np.uint8))
        assert sent_size(height, width, demo.card) == seen.shape[:2]
    with pytest.raises(InputError, match="too thin"):
        sent_size(1, 400, demo.card)


def test_the_past_travels_as_the_card_says() -> None:
    card = ModelCard(history=2)
    with serving(seeing(lambda rgb, text: ENDING)) as server:
        situation = Situation(small_picture().rgb, "Liver?", ["a", "b", "c"], lambda done: None)
        remote(server.url, card).reply(observe(card, situation))
    messages, pictures = conversation(server.bodies[0])
    assert [m.role for m in messages] == ["system", *["user", "assistant"] * 2, "user"] and len(pictures) == 3
    body = server.bodies[0]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, card.max_new_tokens, True)


def test_a_reply_ends_with_its_action_and_the_server_is_told() -> None:
    done = threading.Event()

    def endless(body: Any, send: Callable[[str], None]) -> tuple[int, int]:
        send(clicking(0.2, 0.4))
        try:
            while True:
                send(" and so on")
                time.sleep(0.01)
        finally:
            done.set()

    with serving(endless) as server:
        assert remote(server.url).reply(
            observe(ModelCard(), Situation(small_picture().rgb, "Liver?"))
        ) == clicking(0.2, 0.4)
        assert done.wait(20), "the server goes on writing for nobody"


@pytest.mark.parametrize("words", ["", "<think>Let me"])
def test_a_stop_takes_effect_while_the_server_says_nothing(words: str) -> None:
    released, begun = threading.Event(), threading.Event()

    def silent(body: Any, send: Callable[[str], None]) -> tuple[int, int]:
        if words:
            send(words)
        begun.set()
        released.wait(60)
        return 1, 1

    with serving(silent) as server:
        turn, stopped = observe(ModelCard(), Situation(small_picture().rgb, "Liver?")), list[float]()

        def cancelled() -> bool:
            if begun.is_set():
                stopped.append(time.monotonic())
            return begun.is_set()

        with pytest.raises(Cancelled):
            remote(server.url).reply(turn, None, cancelled)
        # The server holds its answer back for a minute; ours came as soon as it was asked for.
        assert len(stopped) == 1 and not released.is_set()
        released.set()


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


def test_a_busy_server_is_asked_again_and_what_it_asks_for_is_kept() -> None:
    times: list[float] = []

    def busy_twice(connection: Any) -> None:
        times.append(time.monotonic())
        busy = http("503 Loading", "", "Retry-After: 0.2")
        connection.sendall(busy if len(times) < 3 else stream(delta(ENDING)))
        connection.close()

    with hostile(busy_twice) as url:
        turn = observe(ModelCard(), Situation(small_picture().rgb, "Liver?"))
        assert remote(url, patience=Patience(pause=0.01)).reply(turn) == ENDING
    assert len(times) == 3 and times[1] - times[0] >= 0.2 and times[2] - times[1] >= 0.2


@pytest.mark.parametrize("gap", ["", "\n"])
def test_thinking_that_a_server_takes_out_of_the_text_is_put_back(gap: str) -> None:
    parts = ["The liver", " is there."]
    chunks = [{"choices": [{"delta": {"reasoning_content": part}}]} for part in parts]
    action = "<action>Positive Point (0.2000, 0.4000)</action>"
    sent = stream(*chunks, delta(f"{gap}<act"), delta(action[4:]))
    with hostile(lambda connection: (connection.sendall(sent), connection.close())) as url:
        turn = observe(ModelCard(), Situation(small_picture().rgb, "Liver?"))
        assert remote(url).reply(turn) == f"<think>{''.join(parts)}</think>\n{action}"


def test_tool_calls_that_a_server_takes_out_of_the_text_are_put_back() -> None:
    def call(**function: Any) -> dict[str, Any]:
        return {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": function}]}}]}

    done = {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}
    point = '{"point_2d": [412, 300], "point_type": "negative"}'
    pieces = [
        call(name="add_point", arguments=""),
        call(arguments=point[:20]),
        call(arguments=point[20:]),
        done,
    ]
    stop = [call(name="stop_action", arguments={}), done]
    whole = [call(name="add_bbox", arguments='{"bbox_2d": [210, 305, 552, 600]}'), done]
    card = ModelCard(language="tool_calls")
    turn = observe(card, Situation(small_picture().rgb, "Liver?"))
    wanted = [Click(0.412, 0.3, False), Terminate(), Box(0.21, 0.305, 0.552, 0.6)]
    for chunks, action in zip((pieces, stop, whole), wanted, strict=True):
        sent = stream({"choices": [{"delta": {"reasoning_content": "There."}}]}, *chunks)
        with hostile(lambda connection, sent=sent: (connection.sendall(sent), connection.close())) as url:
            text = remote(url, card).reply(turn)
        assert parse_call(text) == Reply("There.", action), text


def test_a_server_that_does_not_stream_is_understood() -> None:
    sent = http(
        "200 OK",
        json.dumps({"choices": [{"message": {"content": ENDING}}]}),
        "Content-Type: application/json",
    )
    with hostile(lambda connection: (connection.sendall(sent), connection.close())) as url:
        assert remote(url).reply(observe(ModelCard(), Situation(small_picture().rgb, "Liver?"))) == ENDING


@pytest.mark.parametrize(
    "url",
    ["ftp://x/v1", "http://", "localhost:8080", "http://a:b@host/v1", "http://x/v1?key=1", "http://[::1/v1"],
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        Connection(url)


def test_a_key_travels_only_encrypted_or_within_this_machine() -> None:
    with pytest.raises(InputError, match="unencrypted"):
        Connection("http://far.example/v1", KEY)
    with serving(seeing(lambda rgb, text: ENDING), key=KEY) as server:
        turn = observe(ModelCard(), Situation(small_picture().rgb, "Liver?"))
        assert remote(server.url, key=KEY).reply(turn) == ENDING
        with pytest.raises(ModelError, match="Check the key"):
            remote(server.url).reply(turn)


def test_no_picture_leaves_this_machine_without_a_yes_for_that_address() -> None:
    far = RemoteAddress("https://far.example/v1", "m")
    with pytest.raises(InputError, match=r"--send-pictures-to far\.example") as refused:
        far.open()
    assert "no names and no header" in str(refused.value)
    far.agree()
    assert not RemoteAddress("https://far.example/v1", "m").needs_yes
    assert RemoteAddress("https://other.example/v1", "m").needs_yes
    assert RemoteAddress("https://far.example:8443/v1", "m").needs_yes
    RemoteAddress("https://other.example/v1", "m").agree()
    assert RemoteAddress("https://far.example/v1", "m").needs_yes, "the address changed in between"
    assert not RemoteAddress("http://127.0.0.1:1/v1", "m").needs_yes
    assert not RemoteAddress("https://far.example/v1", "m", agreed="far.example").needs_yes
    assert KEY not in settings_file().read_text()


def test_the_model_is_the_only_one_or_the_one_that_is_named() -> None:
    with serving(seeing(lambda rgb, text: ENDING), models=("one", "two")) as server:
        with pytest.raises(ModelError, match="one, two"):
            RemoteAddress(server.url).chosen()
        with pytest.raises(ModelError, match="no such model"):
            RemoteAddress(server.url, "three").chosen()
        assert RemoteAddress(server.url, "two").chosen() == "two"
    with pytest.raises(ModelError, match="cannot be reached"):
        RemoteAddress(server.url, "two").check()


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


def opened(server: ChatServer, **options: Any) -> RemotePolicy:
    return RemoteAddress(server.url, "demo", **options).open()


def test_a_server_that_points_rightly_is_trusted_and_asked_only_once() -> None:
    with serving(seeing(pointing())) as server:
        opened(server)
        count = len(server.bodies)
        assert count > 4 and opened(server) and len(server.bodies) == count
        assert RemoteAddress(server.url, "demo", demo_folder())._probed_as("demo") != RemoteAddress(
            server.url, "demo"
        )._probed_as("demo"), "another card is probed anew"


def test_a_cancel_of_the_worker_reaches_the_probe() -> None:
    with serving(seeing(pointing())) as server:
        asked = {
            "request": "load",
            "policy": server.url,
            "model": "demo",
            "segmenter": "demo",
            "device": "cpu",
        }
        with pytest.raises(Cancelled):
            Engine().do(asked, lambda *_, **__: None, lambda: len(server.bodies) > 1)
        assert len(server.bodies) == 2  # of six plates, and none is asked about again later
        assert "probed" not in (json.loads(settings_file().read_text()) if settings_file().is_file() else {})


def test_the_penalty_that_a_models_folder_asks_for_goes_with_every_question(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    with serving(seeing(pointing())) as server:
        policy = opened(server, card=tmp_path)
        opened(server)
        sent = [body["repetition_penalty"] for body in server.bodies]
        assert policy.identity["generation"] == "repetition penalty 1.05"
        assert set(sent) == {1.05, 1.0} and server.bodies[0]["repeat_penalty"] == 1.05


def test_a_server_that_refuses_fields_it_does_not_know_is_asked_without_them() -> None:
    bodies: list[Any] = []

    def strict(connection: Any) -> None:
        bodies.append(len(bodies))
        names = "{'repetition_penalty', 'repeat_penalty'}"
        refusal = http("422 Unprocessable Entity", json.dumps({"detail": f"Unexpected fields: {names}"}))
        connection.sendall(refusal if len(bodies) == 1 else stream(delta(ENDING)))
        connection.close()

    with hostile(strict) as url:
        policy = RemotePolicy(Connection(url), "m", ModelCard(), HASTY, 1.05)
        turn = observe(ModelCard(), Situation(small_picture().rgb, "Liver?"))
        assert policy.reply(turn) == policy.reply(turn) == ENDING and len(bodies) == 3
        assert policy.identity["generation"].endswith("if the server has it by itself")


def test_the_demo_policy_behind_a_server_passes_the_probe(demo_server: ChatServer) -> None:
    source = RemoteAddress(demo_server.url, "demo", demo_folder())
    assert source.open().identity["name"] == "demo"
    assert re.search("(9|10|11|12) of 12 known places hit", source.probe(source.open()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (1.3 * x, 1.3 * y), r"1\.3\d times too far"),
        (lambda x, y: (y, x), "swaps x and y"),
        (lambda x, y: (0.5, 0.5), "miss"),
        (lambda x, y: (1000 * x, 1000 * y), "no click"),
        (lambda x, y: (x + 0.2, y), "miss"),
    ],
)
def test_a_server_whose_clicks_drift_is_refused_with_the_figures(change: Any, words: str) -> None:
    with serving(seeing(pointing(change))) as server, pytest.raises(ModelError, match=words) as refused:
        opened(server)
    assert "→" in str(refused.value)
    with serving(seeing(pointing(change))) as server, pytest.raises(ModelError):
        opened(server)


@pytest.mark.parametrize("scale", [1.3, 2.0, 0.5])
def test_a_server_that_rescales_pictures_is_refused_with_what_to_set(scale: float) -> None:
    words = r"192 more tokens was counted with .*image-min-tokens"
    with serving(seeing(pointing(), scale)) as server, pytest.raises(ModelError, match=words):
        opened(server)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.png"
    Image.fromarray(organs()).save(path)
    return path


def command(*arguments: object) -> int:
    return cli.main(["run", *map(str, arguments), "--quiet", "--no-review", "--prompt", "Segment the liver"])


def replies(folder: Path) -> list[Any]:
    return [step["reply"] for step in json.loads((folder / "trajectory.json").read_text())["steps"]]


def test_a_run_on_a_server_leaves_what_a_run_here_leaves_and_says_where_it_went(
    scan: Path, demo_server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, server = (
        tmp_path / "here",
        tmp_path / "there",
        ["--policy", demo_server.url, "--model", "demo"],
    )
    assert (
        command(scan, "--out", here) == command(scan, "--out", there, *server, "--card", demo_folder()) == 0
    )
    assert replies(here) == replies(there) and replies(here)
    assert (here / "mask.png").read_bytes() == (there / "mask.png").read_bytes()
    recorded = json.loads((there / "trajectory.json").read_text())
    assert recorded["models"]["policy"]["address"] == demo_server.url
    assert cli.main(["info", demo_server.url, "--card", str(demo_folder())]) == 0
    assert re.search("(9|10|11|12) of 12 known places hit", capsys.readouterr().out)


def test_a_far_server_is_sent_nothing_before_the_person_says_yes(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Connection, "open", lambda *_: pytest.fail("something was sent"))
    far = [scan, "--out", tmp_path / "out", "--policy", "https://far.example/v1", "--model", "m"]
    assert command(*far) == 2 and "--send-pictures-to far.example" in capsys.readouterr().err
    assert command(*far, "--send-pictures-to", "other.example") == 2
    assert "a different host" in capsys.readouterr().err
    answers = io.StringIO("no\n")
    monkeypatch.setattr(answers, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", answers)
    assert command(*far) == 2 and "Type yes" in capsys.readouterr().err
    assert command(scan, "--model", "m") == 2 and "--model is for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not settings_file().exists()


def test_a_yes_at_the_terminal_holds_for_that_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    far = {"policy": "https://far.example/v1", "model": "m", "card": None, "send_pictures_to": None}
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    chosen_policy.chosen(argparse.Namespace(**far))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    chosen_policy.chosen(argparse.Namespace(**far))
    with pytest.raises(InputError, match="would be sent to another machine"):
        chosen_policy.chosen(argparse.Namespace(**{**far, "policy": "https://near.example/v1"}))


def test_the_worker_takes_a_policy_behind_an_address_and_needs_the_same_yes(
    demo_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = {"request": "load", "id": 1, "device": "cpu"}

    def emit(event: str, **more: Any) -> None:
        pass

    near = {"policy": demo_server.url, "model": "demo", "card": str(demo_folder())}
    ready = Engine().do({**load, **near}, emit, lambda: False)
    assert ready["policy"]["address"] == demo_server.url and ready["card"]["orientation"] == "radiological"
    monkeypatch.setattr(Connection, "open", lambda *_: pytest.fail("something was sent"))
    with pytest.raises(InputError, match="would be sent to another machine"):
        Engine().do({**load, "policy": "https://far.example/v1", "model": "m"}, emit, lambda: False)


@pytest.fixture
def eyes() -> Callable[..., str]:
    """Clicks the bright thing where it is large."""

    def answer(rgb: np.ndarray, text: str) -> str:
        return (
            pointing()(rgb, text) if (rgb[:, :, 0] > 128).mean() > 0.05 and "so far" not in text else ENDING
        )

    return answer


def searched(url: str, together: int) -> Any:
    policy = remote(url)
    policy.together = together  # type: ignore[misc]
    run = run_over([disc(6) if 8 <= n <= 16 else NOTHING for n in range(24)], policy=policy)
    while run.key is None:
        run.step()
    return run


def test_first_looks_go_out_together_and_give_what_they_give_one_by_one(eyes: Callable[..., str]) -> None:
    several = threading.Event()
    plain = seeing(eyes)

    def respond(body: Any, send: Callable[[str], None]) -> tuple[int, int]:
        if server.busy > 1:
            several.set()
        several.wait(20)  # the first one waits for company
        return plain(body, send)

    with serving(respond) as server:
        fast = searched(server.url, 4)
        assert server.most_busy > 1
        slow = searched(server.url, 1)
        looks = [[(each.kind, each.index, each.words) for each in run.actions] for run in (fast, slow)]
        assert looks[0] == looks[1] and len(looks[0]) > 4
        assert np.array_equal(fast.mask(fast.key), slow.mask(slow.key))


def test_a_stop_during_first_looks_leaves_the_run_as_it_was_and_asks_anew(eyes: Callable[..., str]) -> None:
    released = threading.Event()
    plain = seeing(eyes)

    def respond(body: Any, send: Callable[[str], None]) -> tuple[int, int]:
        released.wait(60)
        return plain(body, send)

    with serving(respond) as server:
        run = run_over([disc(6)] * 12, policy=remote(server.url))
        with pytest.raises(Cancelled):
            run.step(Watch(cancelled=lambda: bool(server.bodies)))
        assert run.actions == ()
        released.set()
        run.step()
        assert len(run.actions) == 1


def test_a_failing_server_fails_the_look_and_the_run_stands() -> None:
    with hostile(lambda connection: (connection.sendall(http("400 Bad")), connection.close())) as url:
        run = run_over([disc(6)] * 12, policy=remote(url, patience=HASTY))
        with pytest.raises(ModelError, match="refused"):
            run.step()
        assert run.actions == () and run.status == "ready"
