"""A policy on a server replies as on this machine, however the server writes; a stop takes effect at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import ibis_agent.segmenter as segmenters
import numpy as np
import pytest
from chained_segmenter import ENDING, clicking
from chained_segmenter import picture as small_picture
from chat_server import ChatServer, conversation, hostile, seeing, serving
from ibis_agent.actions import Box, Click, Reply, Terminate
from ibis_agent.errors import Cancelled, InputError, ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.remote.chat import Patience
from ibis_agent.policy.remote.connection import Connection
from ibis_agent.policy.remote.picture import sent_size
from ibis_agent.policy.remote.remote import RemotePolicy
from ibis_agent.policy.remote.source import RemoteAddress
from ibis_agent.run.run import Run
from ibis_agent.scan.picture import Picture, PictureGeometry
from ibis_agent.tool_calls import parse_call
from remote_servers import HASTY, delta, http, organs, remote, stream


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


def test_the_model_is_the_only_one_or_the_one_that_is_named() -> None:
    with serving(seeing(lambda rgb, text: ENDING), models=("one", "two")) as server:
        with pytest.raises(ModelError, match="one, two"):
            RemoteAddress(server.url).chosen()
        with pytest.raises(ModelError, match="no such model"):
            RemoteAddress(server.url, "three").chosen()
        assert RemoteAddress(server.url, "two").chosen() == "two"
    with pytest.raises(ModelError, match="cannot be reached"):
        RemoteAddress(server.url, "two").check()


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
