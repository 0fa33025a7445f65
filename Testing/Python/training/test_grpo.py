"""GRPO: advantages, the clipped objective, learning, stopping and going on, and what a run leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

import ibis_agent.segmenter as segmenters
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import IbisError, InputError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.folder import look_into
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut
from ibis_agent.segmenter.contract import Segmenter

from training.common.policy_folder import HISTORY
from training.common.settings import read_settings
from training.grpo import learner
from training.grpo import train as grpo
from training.grpo.credit import advantages, normalised
from training.grpo.objective import divergence, figures, surrogate
from training.grpo.settings import GrpoSettings, RewardSettings, TaskSettings
from training.grpo.tasks import Tasks, phantom_tasks
from training.rollouts.roller import ENDED, Question, Rollout, RolloutTurn
from training.rollouts.sampling import Sample
from training.rollouts.state import State
from training.sft.merge import merge

CONFIGS = Path(grpo.__file__).parents[1] / "configs"
TRUTH = np.zeros((8, 8), bool)
TRUTH[2:6, 2:6] = True
INSIDE, OUTSIDE = Click(0.5, 0.5), Click(0.05, 0.05)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return segmenters.open(device="cpu")


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return phantom_tasks(2, seed=8)


def _settings(out: Path, *changes: str) -> GrpoSettings:
    small = [
        "questions=2",
        "group=3",
        "updates=2",
        "max_turns=2",
        "save_every=1",
        "minibatches=1",
        "epochs=1",
    ]
    small += [
        "evaluate_every=0",
        "held.phantoms=1",
        "rewards.least=2",
        f"model={demo_folder()}",
        f"out={out}",
    ]
    return read_settings(CONFIGS / "grpo-demo.yaml", GrpoSettings, [*small, *changes])


def _rollout(*turns: tuple[Any, np.ndarray]) -> Rollout:
    """A rollout with given actions and the masks after them."""
    rollout = Rollout(Question("p", np.zeros((8, 8, 3), np.uint8), "liver", "Segment the liver", TRUTH))
    for number, (action, mask) in enumerate(turns, 1):
        reply = format_reply(Reply("Here.", action))
        state = State.of(reply, action, rollout.mask, mask, TRUTH, number)
        said = Sample(reply, (1, 2), np.zeros(2, np.float32))
        rollout.turns.append(RolloutTurn(None, said, state))  # type: ignore[arg-type]
        rollout.mask = mask
    rollout.reason = ENDED
    return rollout


@pytest.fixture
def first_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group has something to teach, whatever its rollouts earn: replies like its first one are better."""

    def given(groups: Any, _: Any) -> list[list[np.ndarray]]:
        best = [group[0].turns[0].said.text for group in groups]
        return [
            [np.array([1.0 if turn.said.text == text else -0.5 for turn in each.turns]) for each in group]
            for group, text in zip(groups, best, strict=True)
        ]

    monkeypatch.setattr("training.grpo.learner.advantages", given)


def test_advantages_are_centred_and_of_unit_spread_and_zero_where_all_are_equal() -> None:
    found = normalised([3.0, 1.0, 1.0, 0.0])
    assert found.mean() == pytest.approx(0) and found.std() == pytest.approx(1)
    assert not normalised([0.1 + 0.2, 0.3, 0.3]).any()


def test_a_turn_gets_credit_for_itself_and_for_the_outcome() -> None:
    end = Terminate("Done.")
    good = _rollout((INSIDE, TRUTH), (end, TRUTH))
    lucky = _rollout((OUTSIDE, TRUTH), (end, TRUTH))  # a poor click that came to the same
    failed = _rollout((OUTSIDE, ~TRUTH), (end, ~TRUTH))
    group = [good, lucky, failed]
    own = RewardSettings(turn={"placement": 1.0}, outcome={}, outcome_credit=0.0)
    outcome = RewardSettings(turn={}, outcome={"answer": 1.0}, turn_credit=0.0)
    first = [each[0] for each in advantages([group], own)[0]]
    assert first[0] > 0 > first[1] == pytest.approx(first[2])
    last = [each[1] for each in advantages([group], outcome)[0]]
    assert last[0] == pytest.approx(last[1]) and last[0] > 0 > last[2]
    both = RewardSettings(turn={"placement": 1.0}, outcome={"answer": 1.0})
    for summed, a, b in zip(*(advantages([group], each)[0] for each in (both, own, outcome)), strict=True):
        assert np.allclose(summed, a + b)


def test_a_turn_that_no_other_rollout_reached_gets_no_credit_of_its_own() -> None:
    short = _rollout((INSIDE, TRUTH))
    long = _rollout((OUTSIDE, ~TRUTH), (INSIDE, TRUTH))
    settings = RewardSettings(turn={"placement": 1.0}, outcome={}, outcome_credit=0.0)
    assert advantages([[short, long]], settings)[0][1][1] == 0


def test_the_objective_is_clipped_only_where_that_makes_it_smaller() -> None:
    old = torch.zeros(4)
    new = torch.tensor([0.0, 1.0, -1.0, 0.1], requires_grad=True)
    for advantage, held in ((1.0, [False, True, False, False]), (-1.0, [False, False, True, False])):
        loss, clip = surrogate(new, old, advantage, 0.2, 0.2)
        assert clip.tolist() == held
        (gradient,) = torch.autograd.grad(loss.sum(), new)
        assert [bool(each == 0) for each in gradient] == held
        assert all(float(each) * advantage <= 0 for each in gradient)  # good tokens become likelier


def test_the_divergence_is_zero_at_the_reference_and_positive_beside_it() -> None:
    new = torch.tensor([-1.0, -2.0, -0.5])
    assert not divergence(new, new).any()
    assert (divergence(new, new + torch.tensor([0.5, -0.5, 0.1])) > 0).all()


def test_figures_tell_what_is_there_from_what_is_not() -> None:
    found = figures([[_rollout((INSIDE, TRUTH)), _rollout((OUTSIDE, ~TRUTH))]], RewardSettings())
    assert (found["hit"], found["clicks"], found["iou"]) == (0.5, 1, 0.5)
    assert "absent_recall" not in found  # nothing absent was asked for
    assert found["turn_placement"] == 0 and found["outcome_answer"] == 1.5
    weighted = RewardSettings(turn={"placement": 1.0}, outcome={"answer": 2.0}, outcome_credit=0.0)
    assert figures([[_rollout((INSIDE, TRUTH))]], weighted)["reward"] == 1  # what has no credit is not in it


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rewards.turn.plaecment=1", "no such reward"),
        ("rewards.outcome.answer=much", "must be a number"),
        ("group=1", "at least 2"),
        ("rewards.least=4", "smaller than rewards.least"),
        ("rewards.turn_credit=0 rewards.outcome_credit=0", "no reward has a weight"),
        ("held.phantom_seed=101", "held-out phantoms overlap"),
        ("rewards.credit=turn", "branch_states needs rewards.credit: state"),
        ("importance_cap=0.5", "at least 1"),
        ("warmup=3", "longer than the run"),
        ("clip_high=28", "at most 10"),
        ("tasks.store=kept", "tasks.store needs tasks.cases"),
        ("tasks.cases=scans held.cases=scans", "held-out cases are the training cases"),
        ("tasks.cases=nowhere held.cases=missing", "missing: there is no such file"),
        ("lora.dropout=0.1", "must be 0"),
        ("questoins=3", "Did you mean"),
        ("model=nowhere", "does not exist"),
    ],
)
def test_settings_are_refused_before_anything_slow(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises((InputError, IbisError), match=said):
        grpo.Run(_settings(tmp_path, *change.split()))
    assert not list(tmp_path.iterdir())


def test_the_shipped_settings_are_whole() -> None:
    for name in ("grpo-demo.yaml", "grpo-7b-lora.yaml", "grpo-published.yaml"):
        grpo.check(read_settings(CONFIGS / name, GrpoSettings), name)


def test_what_was_better_than_its_group_becomes_likelier(
    tmp_path: Path, segmenter: Segmenter, tasks: Tasks, first_is_best: None
) -> None:
    # A policy that is sure of itself says the same in all of a group: hot enough, its rollouts differ.
    changes = ("rate=5e-5", "questions=2", "group=6", "temperature=2")
    run = grpo.Run(_settings(tmp_path, *changes), None, segmenter, tasks)
    groups = run.rollouts()
    values = learner.advantages(groups, run.settings.rewards)
    learned = run.learn(groups)
    assert learned["turns_learned"] > 0 and np.isfinite(learned["gradient"])
    told = [
        (turn, value)
        for group, mine in zip(groups, values, strict=True)
        for rollout, each in zip(group, mine, strict=True)
        for turn, value in list(zip(rollout.turns, each, strict=True))[rollout.own :]
        if value
    ]
    with torch.no_grad():
        scores = run.policy.score(
            [(turn.request, turn.said.ids) for turn, _ in told], run.settings.temperature
        )
    rise = [float(new.sum() - turn.said.logprobs.sum()) for (turn, _), new in zip(told, scores, strict=True)]
    assert np.dot([value for _, value in told], rise) > 0


def test_questions_that_have_nothing_to_teach_are_replaced(
    tmp_path: Path, segmenter: Segmenter, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = grpo.Run(_settings(tmp_path, "refill=2", "branch_states=0"), None, segmenter, tasks)
    asked: list[int] = []

    def rolled(questions: Any, group: int, *_: Any) -> list[list[Rollout]]:
        asked.append(len(questions))
        same = [_rollout((INSIDE, TRUTH)) for _ in range(group)]
        told = [_rollout((INSIDE, TRUTH)), *(_rollout((OUTSIDE, ~TRUTH)) for _ in range(group - 1))]
        return [told if n == 0 and len(asked) < 3 else same for n in range(len(questions))]

    monkeypatch.setattr(run.roller, "run", rolled)
    groups = run.rollouts()
    assert asked == [2, 1] and len(groups) == 2 and len(run.dropped) == 1
    asked.clear()
    monkeypatch.setattr(
        run.roller, "run", lambda questions, *_: [[_rollout((INSIDE, TRUTH))]] * len(questions)
    )
    assert len(run.rollouts()) == 2 and len(run.dropped) == 4  # it does not look for ever


def test_an_importance_correction_learns_as_without_where_both_are_one_model(
    tmp_path: Path, segmenter: Segmenter, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_idle(*given: Any) -> Any:
        found = advantages(*given)
        for group in found:  # whatever this policy earns: a group of equal rewards would teach nothing
            for member, turns in enumerate(group):
                turns[:] = (-1) ** member
        found[0][0][:] = 0
        return found

    monkeypatch.setattr("training.grpo.learner.advantages", one_idle)
    gradients = []
    for cap in (0, 2):
        changes = (f"importance_cap={cap}", "temperature=3", "questions=2", "group=6", "branch_states=0")
        changes += ("kl=0.1",)  # with a divergence turns without an advantage are computed, too
        run = grpo.Run(_settings(tmp_path / str(cap), *changes), None, segmenter, tasks)
        gradients.append(run.learn(run.rollouts())["gradient"])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-2) and gradients[0] > 0


def test_a_run_that_was_killed_ends_as_one_left_alone(
    tmp_path: Path,
    segmenter: Segmenter,
    tasks: Tasks,
    monkeypatch: pytest.MonkeyPatch,
    first_is_best: None,
) -> None:
    whole = grpo.train(_settings(tmp_path / "whole"), None, segmenter, tasks)
    learn = grpo.Run.learn

    def killed(run: grpo.Run, groups: Any) -> dict[str, float]:
        found = learn(run, groups)
        if run.update == 1:
            raise KeyboardInterrupt  # after the weights have moved, before anything is saved
        return found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grpo.Run, "learn", killed)
        grpo.train(_settings(tmp_path / "killed"), None, segmenter, tasks)
    resumed = grpo.train(_settings(tmp_path / "killed"), None, segmenter, tasks)
    assert look_into(resumed).sha256 == look_into(whole).sha256 != look_into(demo_folder()).sha256
    lines = (tmp_path / "killed" / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if "reward" in row] == [1, 2]
    assert any("held_iou" in row for row in rows)
    assert (tmp_path / "killed" / "curves.png").is_file()
    assert list((tmp_path / "killed" / "tensorboard").iterdir())
    with pytest.raises(InputError, match=r"other settings.*rate"):
        grpo.train(_settings(tmp_path / "killed", "rate=1e-3"), None, segmenter, tasks)
    shutil.rmtree(resumed)  # killed once more, between the last update and the end
    again = grpo.train(_settings(tmp_path / "killed"), None, segmenter, tasks)
    assert _figures_of(again) == _figures_of(whole) != {}


def _figures_of(policy: Path) -> dict[str, float]:
    return json.loads((policy / HISTORY).read_text(encoding="utf-8"))["figures"]


def test_lora_with_a_divergence_leaves_an_adapter_that_merges(
    tmp_path: Path, segmenter: Segmenter, tasks: Tasks, first_is_best: None
) -> None:
    changes = ["tune=lora", "lora.rank=2", "kl=0.1", "updates=1", "warmup=1", "epochs=2"]
    adapter = grpo.train(_settings(tmp_path / "run", *changes), None, segmenter, tasks)
    row = json.loads((tmp_path / "run" / "curves.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row["kl"] > 0
    made = merge(adapter, demo_folder(), tmp_path / "policy")
    assert made.sha256 != look_into(demo_folder()).sha256


def test_cases_are_shown_as_the_policys_card_says(tmp_path: Path) -> None:
    grey = np.random.default_rng(2).integers(-200, 300, (20, 16, 3)).astype(np.int16)
    labels = np.zeros(grey.shape, np.uint8)
    labels[4:12, 4:12, 1] = 1
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(grey, affine), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "a_labels.nii.gz")
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver"}))
    for orientation in Orientation:
        card = ModelCard(name="as trained", orientation=orientation, window=(-100.0, 150.0))
        shown = grpo.tasks_of(TaskSettings(cases=tmp_path), card).shown(0)
        wanted = cut(load_scan(tmp_path / "a.nii.gz"), "axial", 1, card.window, orientation)
        assert np.array_equal(shown.picture.rgb, wanted.rgb)
    # What a case says for itself goes before the card, as it does where the agent is measured.
    row = {"image": "a.nii.gz", "mask": "a_labels.nii.gz", "window": [0, 50]}
    (tmp_path / "own.json").write_text(json.dumps({"labels": {"1": "liver"}, "cases": [row]}))
    shown = grpo.tasks_of(TaskSettings(cases=tmp_path / "own.json"), card).shown(0)
    assert shown.picture.window == (0, 50)
