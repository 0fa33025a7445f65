"""The reproduction's comparison: intervals over questions and seeds, and what may be called shown."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sam2")

from ibis_agent.errors import InputError
from ibis_agent.policy.card import load_card
from ibis_agent.policy.qwen25.source import demo_folder

from training.common.policy_folder import HISTORY
from training.common.settings import settings_from
from training.grpo.settings import GrpoSettings, check
from training.grpo.tasks import phantom_tasks
from training.reproduction import paired, reproduce


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "DRAWS", 500)


def test_a_difference_that_is_the_same_everywhere_has_no_width() -> None:
    base = np.random.default_rng(1).random((3, 40))
    found = paired.difference(base + 0.05, base)
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))


def test_questions_that_do_not_count_are_left_out() -> None:
    base = np.full((2, 4), 0.5)
    arm = base + np.array([0.1, 0.1, 9.0, 0.1])
    base[:, 2] = np.nan
    assert paired.difference(arm, base).mean == pytest.approx(0.1)


def test_an_interval_knows_that_seeds_differ_and_not_only_questions() -> None:
    rng = np.random.default_rng(2)
    base = rng.random((5, 400))
    by_seed = np.array([-0.1, 0.0, 0.1, 0.2, -0.15])[:, None]
    found = paired.difference(base + by_seed, base)
    assert found.low < -0.05 and found.high > 0.05  # 400 questions do not make up for five seeds


def _runs(iou: float, clicks: int) -> list[dict[str, Any]]:
    each = {"present": True, "iou": iou, "clicks": clicks, "ended": "ended"}
    return [{"questions": [each] * 6 + [{**each, "present": False, "iou": 1.0}]} for _ in range(3)]


def test_the_claim_is_shown_only_beyond_the_margin_written_down_before() -> None:
    runs = {"sft": _runs(0.70, 2), "grpo_outcome": _runs(0.72, 2), "grpo_ours": _runs(0.725, 2)}
    said = paired.verdict(runs)
    assert "grpo_outcome above sft: shown" in said[0]
    assert "grpo_ours above grpo_outcome: not shown" in said[1]  # 0.005 is within the margin
    assert "clicks of grpo_ours not above sft: shown" in said[3]
    runs["grpo_ours"] = _runs(0.75, 3)
    assert "clicks of grpo_ours not above sft: not shown" in paired.verdict(runs)[3]


def test_one_seed_shows_nothing() -> None:
    runs = {"sft": _runs(0.70, 2)[:1], "grpo_ours": _runs(0.75, 2)[:1]}
    assert all("not shown by one seed" in line for line in paired.verdict(runs))


def test_of_fewer_arms_only_what_they_can_show_is_said() -> None:
    runs = {"sft": _runs(0.70, 2), "grpo_ours": _runs(0.725, 2)}
    assert [line.split(":")[0] for line in paired.verdict(runs)] == [
        "IoU of grpo_ours above sft",
        "clicks of grpo_ours not above sft",
        "false_absence of grpo_ours not above sft",
    ]


def test_the_arms_differ_in_rewards_and_credit_alone() -> None:
    import yaml

    kinds = {}
    for arm, text in reproduce.REWARDS.items():
        rewards = yaml.safe_load(text)
        settings = settings_from({"model": "m", "out": "o", "rewards": rewards}, GrpoSettings)
        check(settings)
        assert settings.rewards.turn["format_fault"] == 1 and settings.rewards.optimal_steps == 5
        kinds[arm] = settings.rewards
    assert [arm for arm, each in kinds.items() if "length" in each.outcome] == [
        "grpo_outcome_length",
        "grpo_published",
    ]
    assert {arm for arm, each in kinds.items() if each.credit == "state"} == {"grpo_ours"}


def test_both_kidneys_are_asked_for_as_one_structure() -> None:
    for number in range(6):
        shown = phantom_tasks(6, 3, choice=reproduce.TASK).shown(number)
        apart = phantom_tasks(6, 3).shown(number)
        if "both kidneys" in shown.truths:
            parts = [apart.truths.get(n, apart.traces.get(n)) for n in ("left kidney", "right kidney")]
            union = np.logical_or.reduce([part for part in parts if part is not None])
            assert np.array_equal(shown.truths["both kidneys"], union) and "left kidney" not in shown.truths
            return
    raise AssertionError("no phantom shows a kidney")


@pytest.mark.parametrize("updates", [1, 60])
def test_the_settings_of_every_grpo_arm_are_accepted_also_of_a_short_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    trained = tmp_path / "sft_self_correction-1" / "model"
    trained.mkdir(parents=True)
    (trained / HISTORY).write_text("{}")
    given = {"model": demo_folder(), "out": tmp_path, "segmenter": None, "pictures": 1, "asked": 1}
    args = argparse.Namespace(**given, threads=1, updates=updates, seeds=[1], grpo=[], sft=[])
    work = reproduce.Reproduction(args)
    monkeypatch.setattr(reproduce.grpo, "train", lambda settings, *_: settings)
    for arm in reproduce.REWARDS:
        settings: Any = work.policy(arm, 1)
        check(settings)
        assert (settings.updates, settings.warmup) == (updates, min(2, updates))


def test_the_reproduction_sees_slices_as_the_policy_does_at_work(tmp_path: Path) -> None:
    args = argparse.Namespace(
        model=demo_folder(), out=tmp_path, threads=1, segmenter=None, pictures=2, asked=1, seeds=[1]
    )
    work = reproduce.Reproduction(args)
    frame = load_card(demo_folder()).frame
    assert frame == "body" and work.task == replace(reproduce.TASK, frame=frame)
    framed, whole = (
        phantom_tasks(2, reproduce.TASK_SEED, choice=c).shown(0) for c in (work.task, reproduce.TASK)
    )
    assert np.array_equal(work.tasks.shown(0).picture.rgb, framed.picture.rgb)
    assert framed.picture.rgb.shape != whole.picture.rgb.shape
    (tmp_path / "sft-1").mkdir()
    (tmp_path / "sft-1" / "result.json").write_text("{}")  # as begun before results told the frame
    with pytest.raises(InputError, match=r"another frame.*slice.*body"):
        reproduce.Reproduction(args)
