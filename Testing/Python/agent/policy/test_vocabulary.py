"""Questions in the words that people type: understood, or refused with the list; never guessed at."""

from __future__ import annotations

import json

import pytest
from ibis_agent.errors import InputError
from ibis_agent.mask.structures import another_structure
from ibis_agent.policy.card import ModelCard, card_from_json, card_to_json, load_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.messages import build_messages
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.policy.vocabulary import check_asked, questions_in, structures_in, understand, wording

from training.common.questions import QUESTIONS, VOCABULARY, WORDS

CARD = load_card(demo_folder())


@pytest.mark.parametrize(
    ("question", "structure"),
    [
        ("Liver", "liver"),
        ("SEGMENT THE LIVER!", "liver"),
        ("segment the livr", "liver"),
        ("segment teh splen", "spleen"),
        ("LK", "left kidney"),
        ("the right kindey please", "right kidney"),
        ("Find and segment the left kidneys", "left kidney"),
        ("kidney on the left", "left kidney"),
        ("Segmentiere bitte die Milz", "spleen"),
        ("segmenta el hígado", "liver"),
        ("Is there a lesion in the liver? Segment it", "lesion"),
        ("fatty liver", "liver"),
        ("the vertebral body in this slice", "spine"),
    ],
)
def test_what_people_type_is_understood(question: str, structure: str) -> None:
    assert understand(question, CARD.vocabulary).structures == (structure,)
    assert wording(question, CARD.vocabulary) == f"Segment the {structure}"


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_wording_of_the_training_is_understood(question: str) -> None:
    for name, words in WORDS.items():
        for word in words:
            assert understand(question.format(n=word), VOCABULARY).structures == (name,), word


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("gallbladder", "gallbladder"),
        ("pancreas", "pancreas"),
        ("segment the heart", "heart"),
        ("the left lobe of the liver", "lobe"),
        ("hepatic artery", "artery"),
        ("thoracic aorta", "thoracic"),
        ("liver segment 4", "segment 4"),
        ("L3 vertebra", "l3"),
        ("liver hemangioma", "hemangioma"),
        ("everything except the liver", "except"),
        ("everything but the liver", "but"),
        ("all organs apart from the liver", "apart"),
        ("don't segment the liver", "don"),
        ("alles außer der Leber", "ausser"),
        ("todo menos el hígado", "menos"),
        ("the organ next to the liver", "next"),
        ("the tissue around the spleen", "around"),
        ("the spinal cord", "spinal cord"),
        ("the liver and the gallbladder", "gallbladder"),
        ("the liver and the thymus", "thymus"),
        ("liver, the thymus, spleen", "thymus"),
        ("what is this?", "names no structure"),
        ("rein gauche", "names no structure"),
        ("river", "names no structure"),
        ("肝臓", "names no structure"),
    ],
)
def test_what_is_not_known_is_refused_with_the_list(question: str, reason: str) -> None:
    with pytest.raises(InputError) as refusal:
        understand(question, CARD.vocabulary, CARD.name)
    assert reason in str(refusal.value) and "liver, spleen, left kidney" in str(refusal.value)


def test_a_question_about_size_asks_for_the_structure_and_its_size() -> None:
    asked = understand("How large is the spleen?", CARD.vocabulary)
    assert asked.size and asked.structures == ("spleen",)
    assert not understand("Segment the spleen", CARD.vocabulary).size


def test_both_sides_are_meant_where_no_side_is_said() -> None:
    for question in (
        "both kidneys",
        "kidney",
        "segment the kidneys",
        "left and right kidney",
        "the two kidneys",
    ):
        assert understand(question, CARD.vocabulary).structures == ("left kidney", "right kidney")


def test_several_structures_in_a_new_question_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"several structures.*the liver, or the spleen"):
        check_asked("Segment the liver and the spleen", CARD)


@pytest.mark.parametrize(
    ("question", "structures"),
    [
        ("Segment the liver and the spleen", ["liver", "spleen"]),
        ("liver, spleen & aorta, thanks", ["liver", "spleen", "aorta"]),
        ("Leber und Milz", ["liver", "spleen"]),
        ("the right and the left kidney and the spine", ["left kidney", "right kidney", "spine"]),
        ("liver, liver and spleen", ["liver", "spleen"]),
        ("the liver and the lesions", ["liver", "lesion"]),
    ],
)
def test_several_structures_are_asked_for_one_after_the_other(question: str, structures: list[str]) -> None:
    assert structures_in(question, CARD.vocabulary) == structures
    asked = questions_in(question, CARD)
    assert asked == [f"Segment the {name}" for name in structures]
    assert [check_asked(each, CARD) for each in asked] == asked


def test_one_structure_is_asked_for_in_the_words_that_were_typed() -> None:
    assert questions_in(" Find the livr please ", CARD) == ["Find the livr please"]
    assert questions_in("Is there a lesion in the liver or the spleen?", CARD) == [
        "Is there a lesion in the liver or the spleen?"
    ]


def test_the_size_of_several_structures_is_asked_of_each() -> None:
    assert questions_in("How large are the kidneys?", CARD) == [
        "How large is the left kidney?",
        "How large is the right kidney?",
    ]


def test_a_policy_without_a_vocabulary_is_asked_anything_as_it_was_typed() -> None:
    card = ModelCard(name="large")
    assert check_asked("Segmentiere die Gallenblase", card) == "Segmentiere die Gallenblase"
    assert questions_in("the liver and the spleen", card) == ["the liver and the spleen"]
    assert structures_in("the liver and the spleen", card.vocabulary) == []
    message = build_messages(card, Turn(None, "Segmentiere die Gallenblase"))[-1]  # type: ignore[arg-type]
    assert message.text == "Segmentiere die Gallenblase"


def test_the_demo_policy_is_asked_in_the_words_that_it_learnt() -> None:
    message = build_messages(CARD, Turn(None, "LIVER pls"))[-1]  # type: ignore[arg-type]
    assert message.text == "Segment the liver"


def test_the_demo_card_says_what_the_training_says_and_survives_a_round_trip() -> None:
    assert {name: list(words) for name, words in CARD.vocabulary.items()} == VOCABULARY
    assert card_from_json(json.loads(json.dumps(card_to_json(CARD)))) == CARD


def test_a_scan_outside_the_training_is_warned_of() -> None:
    assert CARD.outside("CT", "axial") == "" and CARD.outside("", "axial") == ""
    assert "MR (trained on CT)" in CARD.outside("MR", "axial")
    assert "coronal slices" in CARD.outside("CT", "coronal")
    assert ModelCard().outside("MR", "sagittal") == ""


@pytest.mark.parametrize(
    ("question", "reply", "spoken_of"),
    [
        ("Liver", "There is no eye in this picture. I see no spleen here.", "spleen"),
        ("the left lobe of the liver", "The left kidney is segmented.", "left kidney"),
        ("Segment the left kidney", "The right kidney is segmented.", "right kidney"),
        ("Segment the liver", "The liver is in the centre, beside the stomach.", None),
        ("Segment the kidneys", "The left kidney is segmented.", None),
        ("Is there a tumour in the liver?", "The lesion is segmented.", None),
        ("Segment the liver", "Done.", None),
    ],
)
def test_a_reply_about_another_structure_is_noticed(question: str, reply: str, spoken_of: str | None) -> None:
    found = another_structure(question, reply)
    assert (found.key if found else None) == spoken_of
