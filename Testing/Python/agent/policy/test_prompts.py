"""Prompts: how a turn becomes messages, which questions are refused, importing the published prompts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ibis_agent.errors import InputError
from ibis_agent.policy.card import ModelCard, load_card, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.messages import Message, build_messages, pictures_of
from ibis_agent.policy.prompts import (
    DEFAULT_PROMPTS,
    check_question,
    rejection_note,
    retry_note,
)
from ibis_agent.policy.published_prompts import import_prompts
from tiny_models import DEMO_PROMPTS

CARD = ModelCard(prompts=DEMO_PROMPTS)
PICTURE = np.zeros((4, 4, 3), np.uint8)


def past(count):
    return tuple((np.full((4, 4, 3), n, np.uint8), f"reply {n}") for n in range(1, count + 1))


def test_the_first_turn_asks_the_question_beside_the_picture():
    assert build_messages(CARD, Turn(PICTURE, " Segment the liver ")) == [
        Message("system", DEMO_PROMPTS.system),
        Message("user", "Segment the liver", 0),
    ]


def test_a_later_turn_speaks_of_the_mask_and_quotes_the_question():
    messages = build_messages(CARD, Turn(PICTURE, "Segment the liver", number=3, has_mask=True))
    assert messages[1] == Message("user", "Turn 3. The mask so far is green. Segment the liver", 0)


def test_without_a_history_earlier_turns_are_left_out():
    turn = Turn(PICTURE, "Liver?", 3, True, past(2))
    assert len(build_messages(CARD, turn)) == 2
    assert len(pictures_of(CARD, turn)) == 1


def test_with_a_history_earlier_turns_keep_their_texts_pictures_and_replies():
    card = dataclasses.replace(CARD, history=20)
    turn = Turn(PICTURE, "Liver?", 3, True, past(2))
    messages = build_messages(card, turn)
    assert messages[1:] == [
        Message("user", "Liver?", 0),
        Message("assistant", "reply 1"),
        Message("user", "Turn 2. The mask so far is green. Liver?", 1),
        Message("assistant", "reply 2"),
        Message("user", "Turn 3. The mask so far is green. Liver?", 2),
    ]
    assert [int(picture.max()) for picture in pictures_of(card, turn)] == [1, 2, 0]


def test_a_short_history_keeps_the_latest_turns():
    card = dataclasses.replace(CARD, history=1)
    messages = build_messages(card, Turn(PICTURE, "Liver?", 4, True, past(3)))
    assert [message.text for message in messages[1:]] == [
        "Turn 3. The mask so far is green. Liver?",
        "reply 3",
        "Turn 4. The mask so far is green. Liver?",
    ]


def test_a_note_follows_the_text():
    note = rejection_note(DEMO_PROMPTS, "Positive Point (0.1000, 0.2000)")
    messages = build_messages(CARD, Turn(PICTURE, "Liver?", note=note))
    assert messages[-1].text == "Liver?\nNot Positive Point (0.1000, 0.2000)."
    assert "no action" in retry_note(DEFAULT_PROMPTS, "the reply contains no action.")


def test_placeholders_in_a_question_stay_as_they_were_typed():
    messages = build_messages(CARD, Turn(PICTURE, "What is {number} {question}?", 2))
    assert messages[-1].text.endswith("What is {number} {question}?")


def test_an_empty_system_prompt_gives_no_system_message():
    card = ModelCard(prompts=dataclasses.replace(DEMO_PROMPTS, system=""))
    assert [message.role for message in build_messages(card, Turn(PICTURE, "Liver?"))] == ["user"]


@pytest.mark.parametrize("question", ["", "   \n\t ", "\u200b\u200f", "\u00a0", None])
def test_an_empty_question_is_refused(question):
    with pytest.raises(InputError, match="empty"):
        check_question(question)


@pytest.mark.parametrize("question", ["liver\x00", "liver \x1b[31m", "liver \ud800"])
def test_what_is_not_text_is_refused(question):
    with pytest.raises(InputError, match="not text"):
        check_question(question)


@pytest.mark.parametrize(
    "question",
    ["حدد الكبد", "\u202bסמן את הכבד\u202c", "肝臓を分割", "Où est la rate ?\nMerci", "🫀?", "e\u0301"],
)
def test_any_language_and_direction_is_taken(question):
    assert check_question(question) == question


def test_four_thousand_characters_are_taken_and_one_more_is_refused_with_the_limit():
    assert len(check_question("a" * 4_000)) == 4_000
    with pytest.raises(InputError, match=r"4000 characters.*4001"):
        check_question("a" * 4_001)


@pytest.mark.parametrize("question", ["حدد الكبد", "סמן את הכבד", "肝臓を分割", "αορτή", "the печень"])
def test_a_policy_of_one_script_refuses_the_others(question):
    card = ModelCard(script="LATIN")
    with pytest.raises(InputError, match=r"script .* not trained on"):
        build_messages(card, Turn(PICTURE, question))
    build_messages(card, Turn(PICTURE, "Où est la rate ? (3 cm², 5 µm, ő)"))


def test_a_card_can_set_a_lower_limit():
    with pytest.raises(InputError, match="300 characters"):
        build_messages(ModelCard(max_question=300), Turn(PICTURE, "a" * 301))


def test_the_default_prompts_describe_the_published_format():
    for part in (
        "<think>",
        "</think>",
        "<action>",
        "<answer>",
        "Positive Point (x, y)",
        "Negative Point (x, y)",
    ):
        assert part in DEFAULT_PROMPTS.system
    assert "Terminate" in DEFAULT_PROMPTS.system and "green" in DEFAULT_PROMPTS.refine
    assert "{question}" in DEFAULT_PROMPTS.first and "{question}" in DEFAULT_PROMPTS.refine


TURN_SOURCE = """
import torch_that_is_not_there
raise SystemExit("this source must never run")
SYSTEM_PROMPT = (
    "You place points. "
    'Use "quotes".\\n'
    "Second line {"  "x}."
)
prompt = f"<image>{args.prompt}" if first else args.prompt
"""
ENGINE_SOURCE = """
class Engine:
    def __init__(self):
        self.system_prompt = ""
    def chat(self, user_prompt=None):
        refinement_prompt = f"<image>Refine. The query was: \\"{user_prompt}\\". " + "Go on?"
"""


def checkout(folder, turn=TURN_SOURCE, engine=ENGINE_SOURCE):
    (folder / "infer").mkdir(parents=True)
    (folder / "infer" / "multi_turn.py").write_text(turn, "utf-8")
    (folder / "infer" / "mllm_engine.py").write_text(engine, "utf-8")
    return folder


def test_the_published_prompts_are_imported_without_running_their_source(tmp_path):
    policy = tmp_path / "policy"
    policy.mkdir()
    save_card(ModelCard(name="mine", max_new_tokens=99), policy)
    import_prompts(checkout(tmp_path / "code"), policy)
    card = load_card(policy)
    assert (card.name, card.max_new_tokens) == ("mine", 99)
    assert card.prompts.system == 'You place points. Use "quotes".\nSecond line {x}.'
    assert card.prompts.first == "{question}"
    assert card.prompts.refine == 'Refine. The query was: "{question}". Go on?'
    assert card.prompts.retry == DEFAULT_PROMPTS.retry


def test_the_folder_of_the_inference_code_itself_will_do(tmp_path):
    import_prompts(checkout(tmp_path / "code") / "infer", tmp_path)
    assert load_card(tmp_path).prompts.refine.startswith("Refine.")


def test_a_folder_without_a_card_says_whose_prompts_it_gets_until_they_are_imported(tmp_path):
    assert "import-prompts" in load_card(tmp_path).note
    import_prompts(checkout(tmp_path / "code"), tmp_path)
    assert load_card(tmp_path).note == ""


def test_an_imported_card_brings_the_form_of_a_reply_for_the_decoder_to_guess(tmp_path):
    import_prompts(checkout(tmp_path / "code"), tmp_path)
    assert any("<action>\nPositive Point (" in each for each in load_card(tmp_path).drafts)
    save_card(ModelCard(drafts=("mine",)), tmp_path)
    import_prompts(tmp_path / "code", tmp_path)
    assert load_card(tmp_path).drafts == ("mine",)


@pytest.mark.parametrize(
    ("turn", "engine", "told"),
    [
        ("x = 1", ENGINE_SOURCE, "SYSTEM_PROMPT"),
        (TURN_SOURCE, "x = 1", "refinement_prompt"),
        (TURN_SOURCE, "refinement_prompt = f'{other} {user_prompt}'", "refinement_prompt"),
        ("def broken(:", ENGINE_SOURCE, "multi_turn.py"),
    ],
)
def test_what_cannot_be_imported_is_named_and_nothing_is_written(tmp_path, turn, engine, told):
    policy = tmp_path / "policy"
    policy.mkdir()
    with pytest.raises(InputError, match=told):
        import_prompts(checkout(tmp_path / "code", turn, engine), policy)
    assert not list(policy.iterdir())


def test_a_checkout_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        import_prompts(tmp_path / "nowhere", tmp_path)
