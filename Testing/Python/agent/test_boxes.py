"""Boxes: read and written in both languages, given to the segmenter, run, recorded, shown, and typed by a person."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ibis_agent.segmenter as segmenters
import numpy as np
import pytest
from ibis_agent.actions import Box, Click, Reply, Terminate, format_reply, parse_reply, reply_is_complete
from ibis_agent.cli.terminal import Add, Replace, read_command
from ibis_agent.errors import InputError, ModelError, ReplyError
from ibis_agent.mask.masks import box_around, iou
from ibis_agent.policy.card import ModelCard, card_from_json, card_to_json
from ibis_agent.policy.prompts import TOOL_PROMPTS
from ibis_agent.record.review import review_page
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.run import Run
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.sam2.carrying import deepest
from ibis_agent.tool_calls import call_is_complete, format_call, parse_call
from phantom_pictures import liver_picture
from scripted_policy import ScriptedPolicy

torch = pytest.importorskip("torch")

BOX = Box(0.21, 0.305, 0.552, 0.6)


def spoken(name: str, before: str = "", **arguments: object) -> str:
    """As MedSAM-Agent's policies write."""
    return f"{before}<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SPOKEN = [
    spoken("add_bbox", "The liver lies on the left.\n", bbox_2d=[210, 305, 552, 600]),
    spoken("add_point", "Too much.\n", point_2d=[412, 300], point_type="negative"),
    spoken("stop_action"),
]


@pytest.mark.parametrize(
    "text",
    ["Box (0.21, 0.305, 0.552, 0.6)", "box [0.21 0.305 0.552 0.6]", "Bounding box: (.21;.305;.552;.6)"],
)
def test_a_box_is_read_in_the_published_language(text: str) -> None:
    assert parse_reply(f"<think>There.</think><action>{text}</action>") == Reply("There.", BOX)
    assert reply_is_complete(f"<action>{text}</action>") and not reply_is_complete(f"<action>{text}")


@pytest.mark.parametrize(
    "text",
    [
        "Box (0.2, 0.3, 0.5)",
        "Box 0.2 0.3 0.5 0.6",
        "Box (0.5, 0.3, 0.2, 0.6)",
        "Box (20, 30, 50, 60)",
        "Box (0.2, 0.3, 0.5, 0.6",
        "Box (0.2, 0.3, 0.5, 0.6]",
        "Box (0.1, 0.1, nan, 1)",
    ],
)
def test_what_is_not_a_box_is_not_guessed_at(text: str) -> None:
    with pytest.raises(ReplyError):
        parse_reply(f"<action>{text}</action>")


def test_a_box_is_written_as_it_is_read() -> None:
    reply = Reply("I see it.", BOX)
    assert format_reply(reply).endswith("<action>Box (0.2100, 0.3050, 0.5520, 0.6000)</action>")
    assert parse_reply(format_reply(reply)) == reply
    for wrong in ((0.5, 0.1, 0.5, 0.9), (0, 0, 1.1, 1), (0.1, 0.9, 0.2, 0.1)):
        with pytest.raises(InputError):
            Box(*wrong)


def test_tool_calls_are_read_as_the_same_actions() -> None:
    box, point, stop = (parse_call(text) for text in SPOKEN)
    assert box == Reply("The liver lies on the left.", BOX)
    assert point.action == Click(0.412, 0.3, False) and stop.action == Terminate()
    for reply in (box, point, stop, Reply("", Terminate("There is no spleen."))):
        assert parse_call(format_call(reply)) == reply
    assert parse_call(f"<think>Not <tool_call>{{}}</tool_call> yet.</think>{SPOKEN[2]}").action == Terminate()


@pytest.mark.parametrize(
    "call",
    [
        "{",
        "[]",
        '{"name": "add_mask", "arguments": {}}',
        '{"name": "add_bbox", "arguments": {"bbox_2d": [1, 2, 3]}}',
        '{"name": "add_bbox", "arguments": {"bbox_2d": [5, 5, 5, 9]}}',
        '{"name": "add_bbox", "arguments": {"bbox_2d": ["1", 2, 3, 4]}}',
        '{"name": "add_point", "arguments": {"point_2d": [1000, 2], "point_type": "positive"}}',
        '{"name": "add_point", "arguments": {"point_2d": [1, 2], "point_type": "maybe"}}',
        '{"name": "add_point"}',
        '{"name": "add_point", "arguments": "[[["}',
        "[" * 1900,
    ],
)
def test_calls_that_cannot_be_done_are_refused_in_words_and_the_next_one_counts(call: str) -> None:
    with pytest.raises(ReplyError, match=r"add_bbox, add_point or stop_action"):
        parse_call(f"<tool_call>{call}</tool_call>")
    assert parse_call(f"<tool_call>{call}</tool_call>{SPOKEN[1]}").action == Click(0.412, 0.3, False)
    with pytest.raises(ReplyError):
        parse_call("no call")


def test_a_call_is_complete_with_its_closing_tag() -> None:
    assert call_is_complete(SPOKEN[0]) and not call_is_complete(SPOKEN[0][:-1])
    assert not call_is_complete(SPOKEN[2]), "the answer may follow"
    with pytest.raises(InputError, match="tag"):
        format_call(Reply("<tool_call>", BOX))


def test_the_card_chooses_the_language_and_its_prompts() -> None:
    card = card_from_json({"language": "tool_calls"})
    assert card.speech.parse is parse_call and card.prompts == TOOL_PROMPTS
    assert card_from_json(json.loads(json.dumps(card_to_json(card)))) == card
    own = card_from_json({"language": "tool_calls", "prompts": {"first": "Segment {question}."}})
    assert own.prompts.first == "Segment {question}." and own.prompts.system == TOOL_PROMPTS.system
    with pytest.raises(ModelError, match=r"ibis.*tool_calls"):
        card_from_json({"language": "klingon"})


@pytest.fixture(scope="module")
def segmenter() -> Any:
    return segmenters.open("demo", device="cpu")


@pytest.fixture(scope="module")
def shown() -> tuple[Picture, np.ndarray, Box]:
    return liver_picture()


def test_a_box_begins_anew_and_clicks_go_on_from_it(
    segmenter: Any, shown: tuple[Picture, np.ndarray, Box]
) -> None:
    picture, liver, around = shown
    embedding = segmenter.embed(picture.rgb)
    alone = segmenter.predict(embedding, [around])
    assert iou(alone.mask, liver) > 0.6
    after = segmenter.predict(embedding, [Click(0.9, 0.9), around])
    assert np.array_equal(after.mask, alone.mask), "what was before a box does not count"
    more = segmenter.predict(embedding, [around, Click(0.9, 0.1, False)])
    assert not np.array_equal(more.logits, alone.logits)
    assert segmenter.can.boxes


def test_the_first_click_can_be_asked_again_with_a_box_around_its_mask(
    segmenter: Any, shown: tuple[Picture, np.ndarray, Box]
) -> None:
    picture, liver, _ = shown
    boxed = segmenters.open("demo", device="cpu", first_box=True)
    click, embedding = deepest(liver), segmenter.embed(picture.rgb)
    plain = segmenter.predict(embedding, [click])

    expected = segmenter.predict(embedding, [box_around(plain.mask), click])
    found = boxed.predict(embedding, [click])
    assert np.array_equal(found.logits, expected.logits) and not np.array_equal(found.logits, plain.logits)
    second = [click, Click(0.5, 0.5)]
    assert np.array_equal(
        boxed.predict(embedding, second, plain.logits).logits,
        segmenter.predict(embedding, second, plain.logits).logits,
    )
    follower = boxed.follower(lambda index: picture.rgb, 3, liver.shape)
    assert np.allclose(follower.predict(1, [click]).logits, expected.logits, atol=0.1)
    assert boxed.identity["first_box"] and "first_box" not in segmenter.identity


@pytest.mark.parametrize("language", ["ibis", "tool_calls"])
def test_a_run_with_boxes_is_recorded_replayed_and_shown(
    language: str, segmenter: Any, shown: tuple[Picture, np.ndarray, Box], tmp_path: Path
) -> None:
    picture, _, around = shown
    card = ModelCard(name="boxes", language=language, prompts=TOOL_PROMPTS)
    actions = [around, Click(0.5, 0.5, False), Terminate("There.")]
    policy = ScriptedPolicy([card.speech.format(Reply("I see.", action)) for action in actions], card)
    run = Run.on_picture(picture, "Segment the liver", policy, segmenter)
    assert run.run() == "ended" and [step.action for step in run.steps] == actions
    run.add(around)
    assert run.mask().any()
    path = tmp_path / "trajectory.json"
    Trajectory.of(run, "made.png").save(path)
    recorded = Trajectory.load(path)
    assert recorded.replay(segmenter).differences == ()
    page = review_page(json.loads(path.read_text()))
    assert '"box"' in page


def test_a_person_types_a_box() -> None:
    assert read_command("[ 0.21 0.305 0.552 0.6", 96, 128) == Add(BOX, None, None)
    assert read_command("[0.21,0.305,0.552,0.6]", 96, 128) == Add(BOX, None, None)
    assert read_command("2 [ 0.21 0.305 0.552 0.6", 96, 128) == Replace(2, BOX)
    assert read_command("57.2 [ 0.21 0.305 0.552 0.6", 96, 128, True) == Add(BOX, 57, 2)
    pixels = read_command("[ 32 24 63 47 px", 96, 128)
    assert pixels == Add(Box(0.25, 0.25, 0.5, 0.5), None, None)
    for wrong in ("[ 1 2 3", "[ a b c d", "[ 0.5 0.1 0.2 0.9", "[ 0 0 200 10 px", "57.2 [ 0 0 1 1"):
        with pytest.raises(InputError):
            read_command(wrong, 96, 128)
