"""Segments get the name, colour and code of what was asked for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.mask.structures import (
    STRUCTURES,
    colour_for,
    name_for,
    structure_for,
    structure_in,
    structures_in,
)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Segment the liver", "liver"),
        ("LIVER?", "liver"),
        ("hepatic parenchyma, please", "liver"),
        ("Outline the left kidney.", "left kidney"),
        ("the kidney on the left", "left kidney"),
        ("right renal outline", "right kidney"),
        ("kidney_left", "left kidney"),
        ("left-sided kidney", "left kidney"),
        ("both kidneys", "kidneys"),
        ("the left and right kidneys", "kidneys"),
        ("left and right adrenal glands", "adrenal glands"),
        ("a kidney", "kidneys"),
        ("abdominal aorta", "aorta"),
        ("inferior vena cava", "inferior vena cava"),
        ("IVC", "inferior vena cava"),
        ("gall bladder", "gallbladder"),
        ("bladder", "bladder"),
        ("vertebral column", "spine"),
        ("vertebrae_L2", "vertebra"),
        ("spinal cord", "spinal cord"),
        ("oesophagus", "esophagus"),
        ("small bowel", "small bowel"),
        ("bowel", "bowel"),
        ("the portal vein next to the liver", "portal vein"),
        ("lymph nodes", "lymph node"),
        ("right lung", "right lung"),
    ],
)
def test_a_structure_is_found_by_every_usual_word_for_it(text: str, key: str) -> None:
    structure = structure_in(text)
    assert structure is not None and structure.key == key


@pytest.mark.parametrize(
    "text",
    ["", "What is this?", "delivery", "the hepatic artery", "renal vein", "alveolar", "liverwurst", "肝"],
)
def test_other_words_are_no_structure(text: str) -> None:
    assert structure_in(text) is None


@pytest.mark.parametrize(
    ("text", "name", "region", "side"),
    [
        ("Is there a liver lesion? Segment it.", "Liver lesion", "Liver", None),
        ("a tumour in the head of the pancreas, near the duodenum", "Pancreas tumour", "Pancreas", None),
        ("renal cyst", "Kidney cyst", "Kidney", None),
        ("renal cyst of the left kidney", "Left kidney cyst", "Kidney", "Left"),
        ("pulmonary nodules in the right lung", "Right lung nodule", "Lung", "Right"),
        ("the mass", "Mass", None, None),
    ],
)
def test_a_finding_takes_the_organ_that_it_lies_in(
    text: str, name: str, region: str | None, side: str | None
) -> None:
    structure = structure_in(text)
    assert structure is not None and structure.is_finding
    assert structure.name == name
    assert (structure.region.meaning if structure.region else None) == region
    assert (structure.region_side.meaning if structure.region_side else None) == side


@pytest.mark.parametrize(
    ("question", "answer", "name"),
    [
        ("Segment the liver", "", "Liver"),
        ("What is the large organ?", "It is the liver.", "Liver"),
        ("Segment the liver", "The spleen is not visible.", "Liver"),
        ("Please segment the quadratus lumborum.", "", "Quadratus lumborum"),
        ("could you please outline any foreign body?", "", "Foreign body"),
        ("  segment\n the   odd   thing ", "", "Odd thing"),
        ("肝臓を教えて", "", "肝臓を教えて"),
        ("أين الكبد؟", "", "أين الكبد؟"),
        ("", "", "Segment"),
        ("?!", "", "Segment"),
        ("segment", "", "Segment"),
        ("\u202e\x00\n", "", "Segment"),
    ],
)
def test_a_segment_is_named_after_the_question_then_the_answer_then_the_words(
    question: str, answer: str, name: str
) -> None:
    assert name_for(question, answer) == name


@given(st.text(), st.text())
def test_every_question_gives_a_short_printable_name_and_a_colour(question: str, answer: str) -> None:
    name = name_for(question, answer)
    assert 0 < len(name) <= 41 and name.isprintable()
    assert all(0 <= part <= 255 for part in colour_for(question, answer))


def test_a_question_of_ten_thousand_characters_is_named_all_the_same() -> None:
    long = "please " * 2_000
    assert len(name_for(long)) <= 41
    assert name_for(long + " segment the spleen") == "Spleen"


def test_every_structure_is_found_under_all_its_words_and_has_its_own_key() -> None:
    for key, structure in STRUCTURES.items():
        assert structure.key == key
        for words in (key, *structure.words):
            assert structures_in(words)[:1] == [structure], words
        assert structure.name[:1].isupper()
        assert len(structure.colour) == 3 and all(0 <= part <= 255 for part in structure.colour)


def check_digit(number: str) -> int:
    """The Verhoeff digit that must end every SNOMED CT identifier."""
    turn = [[(i + j) % 5 if i < 5 and j < 5 else 0 for j in range(10)] for i in range(10)]
    for i in range(10):
        for j in range(10):
            turn[i][j] = (
                (i + j) % 5 + (5 if (i < 5) != (j < 5) else 0) if i < 5 else (i - j) % 5 + (5 if j < 5 else 0)
            )
    first = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    orders = [list(range(10))]
    for _ in range(7):
        orders.append([orders[-1][first[n]] for n in range(10)])
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = turn[check][orders[place % 8][int(digit)]]
    return check


def test_the_codes_are_well_formed_snomed_identifiers() -> None:
    assert check_digit("10200004") == 0 and check_digit("10200014") != 0
    codes = [structure.code for structure in STRUCTURES.values() if structure.code]
    codes += [structure.category for structure in STRUCTURES.values()]
    codes += [structure.side for structure in STRUCTURES.values() if structure.side]
    for code in codes:
        assert code.scheme == "SCT" and re.fullmatch(r"\d{6,18}", code.value), code
        assert check_digit(code.value) == 0, code


def test_a_terminology_entry_has_seven_parts_and_no_code_has_none() -> None:
    kidney = STRUCTURES["left kidney"].terminology()
    assert kidney == (
        "Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left"
        "~Anatomic codes - DICOM master list~^^~^^"
    )
    assert STRUCTURES["bowel"].terminology() is None
    assert structure_for("nothing known", "nothing either") is None
