"""The rewards: the published ones against recorded results, the house's variants by what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.actions import Box, Click, Reply, Terminate, format_reply
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import iou
from PIL import Image

from training.grpo import rewards
from training.rollouts.state import State

TRUTH = np.zeros((10, 10), bool)
TRUTH[2:8, 2:8] = True
EMPTY = np.zeros_like(TRUTH)


def _recorded_masks(parity: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """The truth, and the mask after 0, 1, … clicks as the recorded segmentation service answered it."""
    truth = np.asarray(Image.open(parity / "liver_14_mask.png")) > 0
    answers = [np.asarray(Image.open(parity / f"answer_{n}.png")) > 0 for n in range(1, 5)]
    return truth, [np.zeros_like(truth), *answers]


def test_every_component_of_all_recorded_scores_is_met(parity: Path) -> None:
    truth, masks = _recorded_masks(parity)
    cases = json.loads((parity / "rewards.json").read_text(encoding="utf-8"))
    assert len(cases) == 100
    for case in cases:
        row = case["extra_info"]
        clicks = len(row["clicklist"])
        action = rewards.published_action(case["reply"])
        before = masks[clicks]
        after = masks[min(clicks + 1, 4)] if isinstance(action, Click) else before
        state = State(
            case["reply"],
            action,
            before,
            after,
            truth,
            row.get("current_step"),
            row.get("pre_iou", 0.0),
            iou(after, truth),
        )
        found = rewards.published_score(state, row.get("optimal_step", rewards.OPTIMAL_STEPS))
        assert found == pytest.approx(case["score"], abs=1e-9), case["reply"]


THOUGHT = "<think>\na\n</think>\n"
POINT = "Positive Point (0.5, 0.5)"
CLICKED = f"<action>\n{POINT}\n</action>"
# What the published functions said of odd replies: thinking, point and answer format; what was scored.
ODD = [
    (f"{THOUGHT}{CLICKED}", "111", "click"),
    (f"{THOUGHT.rstrip()}{CLICKED}", "011", "click"),
    (f"{THOUGHT} \n\t{CLICKED}", "111", "click"),
    (f"{THOUGHT}so {CLICKED}", "011", "click"),
    (f"<think>a</think>\n{CLICKED}", "011", "click"),
    (f"{THOUGHT}<action>\n {POINT} \n</action>", "111", "none"),
    (f"{THOUGHT}<action>\n\n{POINT}\n</action>", "111", "none"),
    (f"{THOUGHT}<action>{POINT}</action>", "001", "none"),
    (f"{THOUGHT}<action>\nPositive Point ( 0.3 ,0.4 )\n</action>", "111", "click"),
    (f"{THOUGHT}<action>\nPositive Point (00.5, 0.5)\n</action>", "101", "none"),
    (f"{THOUGHT}<action>\nNegative Point (1, 1.00)\n</action>", "111", "click"),
    (f"{THOUGHT}<action>\nNegative Point (1.01, 0)\n</action>", "101", "none"),
    (f"{THOUGHT}<action>\nPositive Point (.5, 0.)\n</action>", "101", "none"),
    (f"{THOUGHT}<action>\n{POINT}.\n</action>", "101", "none"),
    (f"{THOUGHT}<action>\nTermination\n</action>", "110", "end"),
    (f"{THOUGHT}<action>\n  Termination\n \n</action><answer></answer>", "111", "end"),
    (f"{THOUGHT}<action>\nTerminate\n</action>\n<answer>a</answer>", "101", "none"),
    (f"{THOUGHT}{CLICKED}</answer>", "111", "click"),
    (f"{THOUGHT}{CLICKED}</answer><answer>", "110", "click"),
    (f"{THOUGHT}{CLICKED}<answer>a</answer><answer>", "111", "click"),
    (f"{THOUGHT}{CLICKED}<answer>", "110", "click"),
    (f"{THOUGHT}<action>\nno\n</action>\n{CLICKED}", "101", "click"),
    (f"{THOUGHT}{CLICKED}\n<action>\nTermination\n</action>", "110", "click"),
    (f"{CLICKED}\n{THOUGHT}{CLICKED}", "111", "click"),
    ("", "001", "none"),
]


@pytest.mark.parametrize(("reply", "formats", "scored"), ODD)
def test_odd_replies_are_judged_as_the_published_code_judged_them(
    reply: str, formats: str, scored: str
) -> None:
    parts = (
        rewards.published_think_format,
        rewards.published_point_format,
        rewards.published_answer_format,
    )
    assert "".join(str(int(part(reply))) for part in parts) == formats
    kinds = {Click: "click", Terminate: "end", type(None): "none"}
    assert kinds[type(rewards.published_action(reply))] == scored


def test_a_click_beside_an_end_is_scored_but_counts_as_no_improvement() -> None:
    reply = f"{THOUGHT}<action>\nTermination\n</action>\n{CLICKED}<answer>a</answer>"
    state = State.of(reply, rewards.published_action(reply), EMPTY, TRUTH, TRUTH, None)
    found = rewards.published_score(state)
    assert (found["pseg_score"], found["placement_score"], found["ans_score"]) == (0, 1, 3)


def test_two_empty_masks_are_no_success_to_the_published_score() -> None:
    reply = f"{THOUGHT}<action>\nTermination\n</action><answer>a</answer>"
    state = State.of(reply, Terminate("a"), EMPTY, EMPTY, EMPTY, None)
    assert state.iou_after == 1 and rewards.published_score(state)["ans_score"] == 0


@given(
    st.text(st.characters(exclude_characters="<>"), min_size=1).filter(str.strip),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
)
def test_whatever_the_agent_writes_is_well_formed_to_the_house(
    thinking: str, x: float, y: float, positive: bool
) -> None:
    assert rewards.house_format(format_reply(Reply(thinking, Click(x, y, positive)))) == 1
    assert rewards.house_format(format_reply(Reply(thinking, Terminate("Done.")))) == 1


def test_the_published_form_is_well_formed_to_the_house_too() -> None:
    click = "<think>\nBright.\n</think>\n<action>\nPositive Point (0.7500, 0.4000)\n</action>"
    end = "<think>\nBright.\n</think>\n<action>\nTermination\n</action>\n<answer>\nLiver.\n</answer>"
    for reply in (click, end):
        assert rewards.published_format(reply) == rewards.house_format(reply) == 1


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Positive Point (0.5, 0.5)",
        "<think></think>\n<action>Positive Point (0.5, 0.5)</action>",
        "<think>a</think>\n<action>Positive Point (1.5, 0.5)</action>",
        "<think>a</think>\n<action>Terminate</action>",
        "<think>a</think>\n<action>Terminate</action>\n<answer></answer>",
        "<think>a</think>\n<action>Positive Point (0.5, 0.5)</action> and more",
        "before <think>a</think>\n<action>Positive Point (0.5, 0.5)</action>",
        "<think>a\n<action>Positive Point (0.5, 0.5)</action>",
    ],
)
def test_a_reply_that_falls_short_of_the_form_gets_no_format_reward(reply: str) -> None:
    assert rewards.house_format(reply) == 0


def test_our_written_form_gets_nothing_from_the_published_format() -> None:
    """Why the house has a variant: the published rules want line breaks inside the tags."""
    assert rewards.published_format(format_reply(Reply("Bright.", Click(0.5, 0.5)))) == 0


def test_answer_rewards_stand_above_their_levels_not_on_them() -> None:
    levels = [0.5, 0.51, 0.7, 0.71, 0.8, 0.81, 1.0]
    assert [rewards.answer(each) for each in levels] == [0, 1, 1, 2, 2, 3, 3]


def test_placement_tells_missed_from_wrong_and_good_from_bad() -> None:
    before = np.zeros_like(TRUTH)
    before[:, :5] = True
    inside_missed, inside_found = Click(0.65, 0.5), Click(0.25, 0.5)
    outside_taken, outside = Click(0.05, 0.5), Click(0.95, 0.5)
    good = [inside_missed, Click(outside_taken.x, outside_taken.y, False)]
    bad = [inside_found, outside, outside_taken, Click(0.65, 0.5, False), Click(0.95, 0.5, False)]
    assert [rewards.placement(each, before, TRUTH) for each in good] == [1, 1]
    assert {rewards.placement(each, before, TRUTH) for each in bad} == {-1}
    assert rewards.placement(Terminate(), before, TRUTH) == rewards.placement(None, before, TRUTH) == 0
    assert rewards.placement(Click(1.0, 1.0), before, TRUTH) == -1  # the last pixel, not the one beyond


def test_a_box_is_judged_by_the_box_of_the_structure_and_by_what_it_gains() -> None:
    truth = np.zeros((20, 40), bool)
    truth[5:15, 10:30] = True
    nothing = np.zeros_like(truth)
    assert rewards.placement(Box(0.25, 0.25, 0.75, 0.75), nothing, truth) == 1
    assert rewards.placement(Box(0.25, 0.25, 0.75, 0.5), nothing, truth) == 1  # half of it, the limit
    assert rewards.placement(Box(0.25, 0.25, 0.75, 0.45), nothing, truth) == -1
    assert rewards.placement(Box(0.0, 0.0, 1.0, 1.0), nothing, nothing) == -1
    assert rewards.improvement(Box(0.2, 0.2, 0.8, 0.8), 0.0, 0.7) == 1
    assert rewards.improvement(Terminate(), 0.0, 0.7) == 0


def test_steps_beyond_the_optimal_number_cost_a_fifth_each() -> None:
    found = [rewards.length(n) for n in (1, 5, 6, 10)]
    assert found == pytest.approx([1, 1, -0.2, -1])
    assert rewards.length(3, optimal=2) == pytest.approx(-0.2)
    assert rewards.length(None) == 0


def test_ending_is_praised_on_a_good_mask_and_blamed_on_a_poor_one() -> None:
    assert rewards.patience(Terminate(), 0.9) == 1
    assert rewards.patience(Terminate(), 0.3) == -1
    assert rewards.patience(Click(0.5, 0.5), 0.9) == 0


def test_an_end_at_once_is_right_where_the_structure_is_absent() -> None:
    state = State.of("", Terminate("No liver."), EMPTY, EMPTY, EMPTY, 1)
    assert rewards.OUTCOME["answer"](state, 5) == 3
    clicked = State.of("", Click(0.5, 0.5), EMPTY, TRUTH, EMPTY, 1)
    assert rewards.OUTCOME["answer"](clicked, 5) == 0
    assert rewards.TURN["placement"](clicked, 5) == -1


def test_a_reply_that_cannot_be_read_answers_nothing_even_where_the_mask_is_right() -> None:
    for mask in (EMPTY, TRUTH):
        state = State.of("No idea.", None, mask, mask, mask, 1)
        assert state.iou_after == 1
        assert rewards.OUTCOME["answer"](state, 5) == rewards.TURN["answer"](state, 5) == 0


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="same size"):
        State.of("", None, EMPTY, EMPTY, np.zeros((5, 10), bool), 1)
