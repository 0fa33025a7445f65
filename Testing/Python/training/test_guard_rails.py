"""What a training refuses or notices by itself: held data that is learned from, a policy that falls apart."""

from __future__ import annotations

import dataclasses
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
from ibis_agent.errors import InputError
from ibis_agent.policy.card import load_card
from ibis_agent.policy.qwen25.chat import Chat
from ibis_agent.policy.qwen25.source import demo_folder
from phantom_trajectories import make_trajectories

from training.common.best import Best
from training.common.policy_folder import HISTORY, check_picture_limits, write_picture_limits
from training.common.settings import read_settings
from training.grpo import train as grpo
from training.grpo.settings import GrpoSettings
from training.grpo.tasks import case_tasks, phantom_tasks
from training.sft.settings import SftSettings
from training.sft.train import fine_tune
from training.sft.turn_data import check_data, scan_of

CONFIGS = Path(grpo.__file__).parents[1] / "configs"


def _scan(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    grey = np.random.default_rng(seed).integers(-200, 300, (20, 16, 3)).astype(np.int16)
    labels = np.zeros(grey.shape, np.uint8)
    labels[4:12, 4:12, 1] = 1
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(grey, affine), folder / name)
    nib.save(nib.Nifti1Image(labels, affine), folder / name.replace(".nii", "_labels.nii"))
    (folder / "labels.json").write_text(json.dumps({"1": "liver"}))


def _grpo(out: Path, *changes: str) -> GrpoSettings:
    small = [
        "questions=2",
        "group=2",
        "rewards.least=2",
        "updates=3",
        "max_turns=2",
        "save_every=1",
        "minibatches=1",
    ]
    small += ["evaluate_every=1", "held.phantoms=2", f"model={demo_folder()}", f"out={out}"]
    return read_settings(CONFIGS / "grpo-demo.yaml", GrpoSettings, [*small, *changes])


def test_a_held_scan_that_is_also_learned_from_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    _scan(tmp_path / "scans", "a.nii.gz", 1)
    _scan(tmp_path / "scans", "b.nii.gz", 2)
    _scan(tmp_path / "held", "patient.nii", 2)
    given = [f"tasks.cases={tmp_path / 'scans'}", f"held.cases={tmp_path / 'held'}"]
    with pytest.raises(InputError, match=r"1 of 1 held-out scans .* \(got patient is b\)"):
        grpo.Run(_grpo(tmp_path / "out", *given))
    assert len(case_tasks(tmp_path / "scans").scans) == 2


def _trajectories_of_scans(folder: Path) -> Path:
    """Trajectories about three pictures that tell of three scans."""
    make_trajectories(folder, pictures=3, seed=90)
    lines = (folder / "trajectories.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["id"] = f"{folder.name}/{record['id']}"
        record["scan"] = f"{Path(record['image']).stem:0>32}"
    text = "".join(json.dumps(each) + "\n" for each in records)
    (folder / "trajectories.jsonl").write_text(text, "utf-8")
    return folder


def _policy_that_learned(folder: Path, scans: set[str]) -> Path:
    shutil.copytree(demo_folder(), folder)
    (folder / HISTORY).write_text(json.dumps({"scans": sorted(scans)}), "utf-8")
    return folder


def test_an_sft_holds_out_no_scan_that_an_earlier_stage_learned_from(tmp_path: Path) -> None:
    folder, card = _trajectories_of_scans(tmp_path / "a"), load_card(demo_folder())
    chat = Chat.load(demo_folder(), card)
    every = set(check_data([folder], demo_folder(), chat, card).scans)
    held = every - set(check_data([folder], demo_folder(), chat, card, held=0.3).scans)
    assert len(held) == 1
    further = _policy_that_learned(tmp_path / "further", held)
    found = check_data([folder], further, chat, card, held=0.3)
    assert found.held and held < set(found.scans) < every
    whole = _policy_that_learned(tmp_path / "whole", every)
    with pytest.raises(InputError, match=r"1 of 1 held.* was trained on before\)\. .*hold out nothing"):
        check_data([folder], whole, chat, card, held=0.3)
    assert set(check_data([folder], whole, chat, card).scans) == every


def test_two_folders_about_one_scan_are_held_out_together(tmp_path: Path) -> None:
    folders = [_trajectories_of_scans(tmp_path / name) for name in "ab"]
    card = load_card(demo_folder())
    found = check_data(folders, demo_folder(), Chat.load(demo_folder(), card), card, held=0.3)
    sides = []
    for places in (found.places, found.held):
        scans = set()
        for place in places:
            with open(place.folder / "trajectories.jsonl", "rb") as stream:
                stream.seek(place.offset)
                scans.add(scan_of(place.folder, json.loads(stream.readline())))
        assert {place.folder for place in places} == set(folders)
        sides.append(scans)
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert set(found.scans) == sides[0]


def test_the_best_state_is_kept_and_a_collapse_is_told_from_a_bad_day(tmp_path: Path) -> None:
    best, weights = Best(tmp_path / "best.pt", share=0.5), torch.zeros(2)
    for step, quality in enumerate((0.9, 0.6, 0.8, 0.8, 0.5)):
        weights.fill_(step)
        assert not best.note(step, {"held_quality": quality}, {"w": weights})
    again = Best(tmp_path / "best.pt", share=0.5)
    assert "collapsed" in again.note(5, {"held_quality": 0.44, "held_unreadable": 0.4}, {"w": weights})
    again.restore({"w": weights})
    assert again.step == 2 and weights.tolist() == [2, 2]  # the start is not a result of the training
    # … but it is told that it was better.
    assert "was 0.90 at step 0, and at best 0.80 later, at step 2" in again.warning()
    assert not Best(tmp_path / "best.pt", share=0.0).collapse({"held_quality": 0.0})  # not asked for


def test_a_collapse_at_once_goes_back_to_the_start(tmp_path: Path) -> None:
    best, weights = Best(tmp_path / "best.pt"), torch.zeros(2)
    assert not best.note(0, {"held_quality": 0.9}, {"w": weights})
    assert best.note(1, {"held_quality": 0.1}, {"w": weights + 1})
    assert best.step == 0 and not best.warning()


def test_replies_that_can_no_longer_be_read_are_a_collapse_also_where_none_was_good(tmp_path: Path) -> None:
    best, weights = Best(tmp_path / "best.pt"), torch.zeros(2)
    assert not best.note(0, {"held_quality": 0.0, "held_unreadable": 0.1}, {"w": weights})
    assert "60 % of the replies" in best.collapse({"held_quality": 0.0, "held_unreadable": 0.6})
    assert not best.collapse({"held_quality": 0.0, "held_unreadable": 0.5})
    untaught = Best(tmp_path / "other.pt")  # that cannot write a reply yet is not a collapse
    assert not untaught.note(0, {"held_quality": 0.0, "held_unreadable": 1.0}, {"w": weights})
    assert not untaught.note(1, {"held_quality": 0.0, "held_unreadable": 1.0}, {"w": weights})


def test_what_the_policy_learned_in_an_earlier_stage_is_not_held(tmp_path: Path) -> None:
    _scan(tmp_path / "scans", "a.nii.gz", 1)
    _scan(tmp_path / "held", "patient.nii", 2)
    (learned,) = case_tasks(tmp_path / "held").scans
    policy = _policy_that_learned(tmp_path / "policy", {learned})
    given = [f"tasks.cases={tmp_path / 'scans'}", f"held.cases={tmp_path / 'held'}", f"model={policy}"]
    with pytest.raises(InputError, match=r"patient is what the policy was trained on before"):
        grpo.Run(_grpo(tmp_path / "out", *given))


def test_a_grpo_run_that_collapses_ends_with_the_best_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter, tasks = segmenters.open(device="cpu"), phantom_tasks(2, seed=8)
    learn = grpo.Run.learn

    def ruined(run: grpo.Run, groups: Any) -> dict[str, float]:
        found = learn(run, groups)
        if run.update == 1:
            with torch.no_grad():
                run.policy.model.lm_head.weight.normal_()
        return found

    monkeypatch.setattr(grpo.Run, "learn", ruined)
    made = grpo.train(_grpo(tmp_path / "out"), None, segmenter, tasks)
    assert "collapsed" in capsys.readouterr().err
    history = json.loads((made / HISTORY).read_text())
    assert history["updates"] == 2 and history["kept_update"] < 2
    assert history["figures"]["held_unreadable"] < 0.5 and "collapsed" in history
    shutil.rmtree(made)  # killed before the folder was written: it ends the same
    again = json.loads((grpo.train(_grpo(tmp_path / "out"), None, segmenter, tasks) / HISTORY).read_text())
    assert {k: again[k] for k in ("updates", "kept_update", "collapsed", "figures")} == {
        k: history[k] for k in ("updates", "kept_update", "collapsed", "figures")
    }


def test_a_fine_tuning_that_collapses_ends_with_the_best_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_trajectories(tmp_path / "data", pictures=3)
    changes = [
        f"data={data}",
        f"out={tmp_path / 'out'}",
        f"model={demo_folder()}",
        "tune=full",
        "vision=false",
    ]
    changes += ["steps=20", "batch=2", "rate=0.3", "warmup=0", "evaluate_every=2", "asked=3", "held=0.3"]
    made = fine_tune(read_settings(CONFIGS / "sft-demo.yaml", SftSettings, changes))
    assert "collapsed" in capsys.readouterr().err
    history = json.loads((made / HISTORY).read_text())
    assert history["kept_step"] <= history["steps"] < 20 and history["figures"]["held_quality"] >= 0


def test_turns_without_an_advantage_do_not_change_the_scale_of_the_loss(tmp_path: Path) -> None:
    run = grpo.Run(
        _grpo(tmp_path / "out", "clip=1000000"),
        None,
        segmenters.open(device="cpu"),
        phantom_tasks(2, seed=8),
    )
    turns = [turn for group in run.rollouts() for rollout in group for turn in rollout.turns]
    gradients = []
    for idle in (0, len(turns) - 1):
        sums = dict.fromkeys(("clipped", "kl", "gradient", "tokens", "steps"), 0.0)
        before = {name: each.detach().clone() for name, each in run.trained.items()}
        run.learner.step([(turns[0], 1.0), *((turn, 0.0) for turn in turns[1 : 1 + idle])], sums, 0)
        gradients.append(sums["gradient"] * sums["tokens"])
        with torch.no_grad():
            for name, each in run.trained.items():
                each.copy_(before[name])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)


def test_a_policys_folder_has_its_cards_limits_of_pixels_for_other_programs(tmp_path: Path) -> None:
    shutil.copyfile(demo_folder() / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    card = dataclasses.replace(load_card(demo_folder()), min_pixels=784, max_pixels=262144)
    with pytest.raises(InputError, match=r"min_pixels is not the model card"):
        check_picture_limits(card, tmp_path)
    write_picture_limits(card, tmp_path)
    check_picture_limits(card, tmp_path)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (values["max_pixels"], values["size"]["longest_edge"], values["patch_size"]) == (
        262144,
        262144,
        12,
    )
