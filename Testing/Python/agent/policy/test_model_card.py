"""The model card: published defaults, strict and helpful reading, writing and reading back."""

from __future__ import annotations

import dataclasses
import json

import pytest
from ibis_agent.errors import ModelError
from ibis_agent.policy.card import CARD_NAME, ModelCard, card_from_json, load_card, save_card
from ibis_agent.scan.geometry import Orientation
from tiny_models import DEMO_PROMPTS


def test_a_folder_without_a_card_gets_the_published_settings(tmp_path):
    card = load_card(tmp_path)
    assert card.name == tmp_path.name
    assert card.orientation is Orientation.UPSTREAM
    assert (card.overlay_colour, card.overlay_alpha) == ((34, 139, 34), 0.4)
    assert (card.history, card.max_new_tokens, card.min_pixels, card.max_pixels) == (0, 512, None, None)


def test_a_card_reads_back_as_it_was_written(tmp_path):
    card = ModelCard(
        name="demo",
        orientation=Orientation.RADIOLOGICAL,
        overlay_colour=(0, 255, 0),
        overlay_alpha=0.5,
        prompts=DEMO_PROMPTS,
        history=3,
        max_new_tokens=90,
        min_pixels=50176,
        max_pixels=50176,
        window=(-160.0, 240.0),
        max_question=300,
        script="LATIN",
        drafts=("<think>I see it.</think>",),
        note="demonstration on phantoms",
        origin="made by a test",
    )
    save_card(card, tmp_path)
    assert load_card(tmp_path) == card


def test_missing_keys_keep_the_published_settings(tmp_path):
    (tmp_path / CARD_NAME).write_text('{"prompts": {"first": "Q: {question}"}, "overlay_alpha": 1}', "utf-8")
    card = load_card(tmp_path)
    assert card.prompts.first == "Q: {question}"
    assert card.prompts.system == ModelCard().prompts.system
    assert card == dataclasses.replace(ModelCard(name=tmp_path.name), prompts=card.prompts, overlay_alpha=1.0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"orientaton": "upstream"}, ["orientaton", 'Did you mean "orientation"']),
        ({"zzz": 1}, ["zzz", "Known keys: name"]),
        ({"prompts": {"frist": "{question}"}}, ["prompts.frist", 'Did you mean "prompts.first"']),
        ({"prompts": {"first": "{qestion}"}}, ["prompts.first", "Did you mean {question}"]),
        ({"prompts": {"first": "Segment!"}}, ["prompts.first does not contain the question"]),
        ({"prompts": {"first": 3}}, ["prompts.first must be a string"]),
        ({"prompts": "x"}, ["prompts must be an object"]),
        ({"orientation": "sideways"}, ["orientation must be", '"radiological" or "upstream"', "sideways"]),
        ({"overlay_colour": [0, 256, 0]}, ["overlay_colour must be", "0 to 255"]),
        ({"overlay_colour": [0, 1]}, ["overlay_colour"]),
        ({"overlay_alpha": 1.5}, ["overlay_alpha must be a number from 0 to 1", "1.5"]),
        ({"overlay_alpha": True}, ["overlay_alpha"]),
        ({"overlay_alpha": float("nan")}, ["overlay_alpha"]),
        ({"history": -1}, ["history"]),
        ({"history": True}, ["history"]),
        ({"max_new_tokens": 0}, ["max_new_tokens"]),
        ({"max_new_tokens": 1.5}, ["max_new_tokens"]),
        ({"min_pixels": 10}, ["min_pixels", "784"]),
        ({"min_pixels": 9000, "max_pixels": 1000}, ["min_pixels is larger than max_pixels"]),
        ({"window": [240, -160]}, ["window must be two numbers, the smaller first"]),
        ({"window": 5}, ["window"]),
        ({"name": None}, ["name must be a string"]),
        ({"drafts": "x"}, ["drafts must be a list"]),
        ({"schema": "ibis-model/9"}, ["different version", "ibis-model/9"]),
    ],
)
def test_a_wrong_card_is_refused_with_file_value_and_mend(tmp_path, values, told):
    (tmp_path / CARD_NAME).write_text(json.dumps(values), "utf-8")
    with pytest.raises(ModelError) as caught:
        load_card(tmp_path)
    for part in [CARD_NAME, *told]:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00\xff", "[" * 100_000])
def test_a_card_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / CARD_NAME).write_text(text, "utf-8")
    with pytest.raises(ModelError, match=CARD_NAME):
        load_card(tmp_path)


def test_a_card_in_another_encoding_is_refused(tmp_path):
    (tmp_path / CARD_NAME).write_bytes('{"name": "é"}'.encode("utf-16"))
    with pytest.raises(ModelError, match="is not JSON"):
        load_card(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        load_card(tmp_path / "nowhere")


def test_braces_that_are_no_placeholder_stay_in_a_prompt():
    card = card_from_json({"prompts": {"first": 'Answer {question} as {"x": 1} or {xyzzy}'}})
    assert card.prompts.first == 'Answer {question} as {"x": 1} or {xyzzy}'
