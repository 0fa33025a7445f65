"""What a policy is shown in a situation, and that nobody else decides it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.scan.picture import overlay

RGB = np.random.default_rng(1).integers(0, 255, (6, 8, 3), np.uint8)
MASKS = [np.eye(6, 8, k, dtype=bool) for k in range(4)]
SOURCES = Path(__file__).parents[4]


def painted(card: ModelCard, mask: np.ndarray) -> np.ndarray:
    return overlay(RGB, mask, card.overlay_colour, card.overlay_alpha)


def test_the_first_turn_shows_the_bare_picture() -> None:
    turn = observe(ModelCard(), Situation(RGB, "Liver?", note="Again."))
    assert turn.picture is RGB and (turn.number, turn.has_mask, turn.past) == (1, False, ())
    assert (turn.question, turn.note) == ("Liver?", "Again.")


def test_later_turns_show_the_last_mask_in_the_cards_colour() -> None:
    card = ModelCard(overlay_colour=(255, 0, 0), overlay_alpha=0.5)
    turn = observe(card, Situation(RGB, "Liver?", ["one", "two"], MASKS.__getitem__))
    assert np.array_equal(turn.picture, painted(card, MASKS[2]))
    assert (turn.number, turn.has_mask, turn.past) == (3, True, ())


def test_a_mask_to_begin_from_counts_as_a_turn() -> None:
    turn = observe(ModelCard(), Situation(RGB, "Liver?", [], lambda done: MASKS[0], started=True))
    assert (turn.number, turn.has_mask) == (2, True)


def test_an_empty_mask_that_was_clicked_for_is_still_a_mask() -> None:
    turn = observe(ModelCard(), Situation(RGB, "Liver?", ["one"], lambda done: np.zeros((6, 8), bool)))
    assert turn.has_mask and np.array_equal(turn.picture, RGB)


@pytest.mark.parametrize("history", [1, 2, 9])
def test_the_card_says_how_much_of_the_past_is_shown_and_no_other_mask_is_asked_for(history: int) -> None:
    card, asked = ModelCard(history=history), list[int]()

    def mask_after(done: int) -> np.ndarray | None:
        asked.append(done)
        return MASKS[done] if done else None

    turn = observe(card, Situation(RGB, "Liver?", ["one", "two", "three"], mask_after))
    first = max(0, 3 - history)
    assert [reply for _, reply in turn.past] == ["one", "two", "three"][first:]
    for n, (shown, _) in enumerate(turn.past, first):
        assert np.array_equal(shown, painted(card, MASKS[n]) if n else RGB)
    assert sorted(asked) == list(range(first, 4))


def test_no_other_code_builds_turns_or_knows_the_kinds_of_models() -> None:
    allowed = {r"\bTurn\(": {"Logic/ibis_agent/policy/observation.py"}}
    allowed[r"LocalPolicy\.load\("] = {"Logic/ibis_agent/policy/qwen25/source.py"}
    allowed[r"Sam2Segmenter\("] = {"Logic/ibis_agent/segmenter/sam2/source.py"}
    for pattern, files in allowed.items():
        found = {
            str(path.relative_to(SOURCES)).replace("\\", "/")
            for folder in ("Logic", "training", "IBISSlicer")
            for path in (SOURCES / folder).rglob("*.py")
            if re.search(rf"(?<!class ){pattern}", path.read_text(encoding="utf-8"))
        }
        assert found <= files, pattern
