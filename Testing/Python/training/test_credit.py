"""Credit: what each turn's advantage is, in numbers worked out by hand, and the variants of the objective."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ibis_agent.actions import Click, Reply, Terminate, format_reply

from training.grpo.credit import advantages, credit_figures, differ, returns
from training.grpo.objective import importance, shares, surrogate
from training.grpo.settings import RewardSettings
from training.rollouts.roller import ENDED, Question, Rollout, RolloutTurn
from training.rollouts.sampling import Sample
from training.rollouts.state import State

TRUTH = np.ones((4, 4), bool)
NONE, POOR, GOOD = np.zeros((4, 4), bool), np.zeros((4, 4), bool), np.ones((4, 4), bool)
POOR[0] = True  # IoU 4/16
GOOD[0, 0] = False  # IoU 15/16
A, B, C = Click(0.1, 0.1), Click(0.5, 0.5), Click(0.9, 0.9)
END = Terminate("Done.")
OURS = RewardSettings(
    turn={"gain": 1.0, "ending": 0.5, "click": -0.1}, outcome={}, credit="state", divisor="none", least=2
)
PUBLISHED = RewardSettings()


def _rollout(*turns: tuple[Any, np.ndarray], truth: np.ndarray = TRUTH, own: int = 0) -> Rollout:
    rollout = Rollout(Question("p", np.zeros((4, 4, 3), np.uint8), "liver", "Segment it", truth), own=own)
    for number, (action, mask) in enumerate(turns, 1):
        reply = format_reply(Reply("Here.", action))
        state = State.of(reply, action, rollout.mask, mask, truth, number)
        rollout.turns.append(RolloutTurn(None, Sample(reply, (1, 2), np.zeros(2, np.float32)), state))
        rollout.mask = mask
    rollout.reason = ENDED
    return rollout


GROUP = [
    _rollout((A, POOR), (END, POOR)),
    _rollout((A, POOR), (B, GOOD), (END, GOOD)),
    _rollout((C, GOOD), (END, GOOD)),
    _rollout((END, NONE)),
]


def test_a_turn_earns_what_is_gained_from_its_own_state_on() -> None:
    assert returns(GROUP[0], OURS) == pytest.approx([0.25 - 0.1 + 0.125, 0.5 * 0.25])
    assert returns(GROUP[1], OURS) == pytest.approx([0.25 - 0.1 + 1.05625, 0.6875 - 0.1 + 0.46875, 0.46875])
    assert returns(GROUP[2], OURS) == pytest.approx([0.9375 - 0.1 + 0.46875, 0.46875])
    assert returns(GROUP[3], OURS) == pytest.approx([-0.5])


def test_replies_to_one_state_are_compared_with_each_other() -> None:
    (found,) = advantages([GROUP], OURS)
    usual = (0.275 + 1.20625 + 1.30625 - 0.5) / 4
    assert [each[0] for each in found] == pytest.approx([v - usual for v in (0.275, 1.20625, 1.30625, -0.5)])
    # The second turns of the first two stand before the same mask: one ends there, one mends it.
    middle = (0.125 + 1.05625) / 2
    assert found[0][1] == pytest.approx(0.125 - middle) and found[1][1] == pytest.approx(1.05625 - middle)


def test_states_that_were_met_once_are_compared_with_about_equally_good_ones_of_the_update() -> None:
    other = [_rollout((B, POOR), (END, POOR)), _rollout((C, POOR), (A, POOR), (END, POOR))]
    (_, found) = advantages([GROUP, other], OURS)
    # Before an IoU of 0.25 later turns earned: end 0.125, click 1.05625, end 0.125, click 0.025, end 0.125.
    usual = (0.125 + 1.05625 + 0.125 + 0.025 + 0.125) / 5
    assert found[0][1] == pytest.approx(0.125 - usual)
    assert found[1][1:] == pytest.approx([0.025 - usual, 0.125 - usual])


def test_a_good_end_is_credited_above_a_poor_one_and_a_false_absence_costs() -> None:
    # A further click on a good mask gains nothing and costs: so the end is the better turn.
    wasted = _rollout((C, GOOD), (A, GOOD), (END, GOOD))
    groups = [[*GROUP, wasted]]
    ours = credit_figures(groups, advantages(groups, OURS))
    assert ours["credit_end_good"] > 0 > ours["credit_end_poor"] > ours["credit_false_absence"]
    # Among turns of one number an end earns 0 whatever it leaves, and a click that misses less: the published
    # turn rewards put "not there" above a click beside the structure.
    truth = POOR
    beside = _rollout((C, ~POOR & GOOD), (END, ~POOR & GOOD), truth=truth)
    wrong = _rollout((END, NONE), truth=truth)
    own = RewardSettings(outcome={}, outcome_credit=0.0)
    (published,) = advantages([[beside, wrong]], own)
    assert published[1][0] > 0 > published[0][0]
    mine = RewardSettings(turn=OURS.turn, outcome={}, credit="state", divisor="none")
    (found,) = advantages([[beside, wrong]], mine)
    assert found[0][0] > 0 > found[1][0]


def test_not_there_is_right_where_nothing_is() -> None:
    right = _rollout((END, NONE), truth=NONE)
    clicked = _rollout((A, POOR), (END, POOR), truth=NONE)
    assert returns(right, OURS) == pytest.approx([0.5])
    assert returns(clicked, OURS)[0] == pytest.approx(-1 - 0.1)


def test_comparisons_that_are_too_small_give_no_credit() -> None:
    few = RewardSettings(turn=OURS.turn, outcome={}, credit="state", divisor="none", least=5)
    (found,) = advantages([GROUP], few)
    assert not any(each.any() for each in found)
    turns = RewardSettings(outcome={}, outcome_credit=0.0, least=4)
    (found,) = advantages([GROUP], turns)
    assert any(each[0] for each in found) and not any(each[1:].any() for each in found)


def test_a_branch_is_credited_for_its_own_turns_only() -> None:
    branch = _rollout((A, POOR), (C, GOOD), (END, GOOD), own=1)
    (found,) = advantages([[*GROUP, branch]], OURS)
    assert found[-1][0] == 0
    middle = (0.125 + 1.05625 + 1.05625) / 3
    assert found[-1][1] == pytest.approx(1.05625 - middle) and found[0][1] == pytest.approx(0.125 - middle)


def test_the_divisor_is_the_groups_deviation_that_of_the_batch_or_none() -> None:
    outcome = {"turn": {}, "outcome": {"iou": 1.0}, "turn_credit": 0.0}
    ends = [_rollout((A, POOR), (END, POOR)), _rollout((C, GOOD), (END, GOOD))]
    half = (0.9375 - 0.25) / 2
    for divisor, expected in (("deviation", 1.0), ("none", half), ("batch", 1.0)):
        (found,) = advantages([ends], RewardSettings(**outcome, divisor=divisor))
        assert [each[0] for each in found] == pytest.approx([-expected, expected])


def test_a_question_whose_rollouts_earned_the_same_has_nothing_to_teach() -> None:
    assert differ(GROUP, OURS) and not differ([GROUP[0], GROUP[0]], OURS)
    assert differ(GROUP, PUBLISHED) and not differ([GROUP[0], GROUP[0]], PUBLISHED)


def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    new, old = torch.tensor([0.3, -0.1, 0.1]), torch.zeros(3)
    loss, held = surrogate(new, old, 1.0, 0.2, 0.2, "sequence")
    assert loss.tolist() == pytest.approx([-math.exp(0.1)] * 3) and not held.any()
    loss, held = surrogate(new * 3, old, 1.0, 0.2, 0.2, "sequence")
    assert loss.tolist() == pytest.approx([-1.2] * 3) and held.all()


def test_a_truncated_weight_leaves_no_token_without_a_gradient() -> None:
    new = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    loss, held = surrogate(new, torch.zeros(3), 2.0, 0.2, 0.2, "cispo")
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    assert gradient.tolist() == pytest.approx([-2 * 1.2, -2.0, -2 * math.exp(-1)])
    assert held.tolist() == [True, False, False]


def test_a_higher_clip_on_one_side_lets_rare_tokens_rise_further() -> None:
    new = torch.tensor([0.25])  # a ratio of 1.284
    (low, _), (high, _) = (surrogate(new, torch.zeros(1), 1.0, 0.2, clip) for clip in (0.2, 0.3))
    assert low.item() == pytest.approx(-1.2) and high.item() == pytest.approx(-math.exp(0.25))


def test_importance_weights_are_cut() -> None:
    found = importance(torch.tensor([0.0, 1.0, -1.0]), torch.zeros(3), cap=2.0)
    assert found.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])


def test_a_loss_weighs_tokens_replies_or_nothing_alike() -> None:
    assert shares([1, 3], "token", 10) == [0.25, 0.25]
    assert shares([1, 3], "reply", 10) == pytest.approx([1 / 2, 1 / 6])
    assert shares([1, 3], "constant", 10) == [1 / 20, 1 / 20]
