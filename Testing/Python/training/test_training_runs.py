"""The demo trainings as commands: a killed run that is started again ends as one left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training.common.commands import STOPPED
from training.demo import dataset, deepen, train_memory, train_policy, train_segmenter
from training.trajectories.mistakes import good_mask, half_way_mask, incomplete_mask, spilled_mask, wrong_mask

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms")
    dataset.make(out, 14, workers=1)
    return out


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    out = tmp_path_factory.mktemp("clips")
    dataset.make(out, 2 * dataset.FRAMES, 1, dataset._clip_slice, 0)
    return out


def command(monkeypatch, module, *options):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, options)])
    module.main()


def killed_at(monkeypatch, module, name, call):
    """The training step raises at its `call`-th call."""
    real, calls = getattr(module, name), []

    def step(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, step)


@pytest.mark.parametrize(
    ("module", "step", "options"),
    [
        (train_segmenter, "train_step", ("--dense-steps", 1, "--batch", 2, "--objects", 2, "--carried", 0)),
        (train_segmenter, "carried_step", ("--dense-steps", 0, "--batch", 2, "--objects", 2, "--carried", 1)),
        (train_segmenter, "ending_step", ("--dense-steps", 0, "--batch", 2, "--score-only")),
        (train_policy, "train_step", ("--vision-steps", 1, "--batch", 2)),
    ],
)
def test_a_run_that_was_killed_ends_as_one_left_alone(
    monkeypatch, tmp_path, slices, clips, module, step, options
):
    if module is train_segmenter:
        options = ("--clips", clips, *options)
    common = ("--data", slices, "--steps", 4, "--checkpoint-every", 2, "--held", 2, "--threads", 1, *options)
    command(monkeypatch, module, "--out", tmp_path / "whole", *common)
    with monkeypatch.context() as patch:
        killed_at(patch, module, step, 4)
        with pytest.raises(SystemExit, match=str(STOPPED)):
            command(patch, module, "--out", tmp_path / "killed", *common)
    command(monkeypatch, module, "--out", tmp_path / "killed", *common)
    whole, killed = (torch.load(tmp_path / n / "resume.pt", weights_only=True) for n in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 4
    for name, weights in whole["averaged"].items():
        assert torch.allclose(weights.float(), killed["averaged"][name].float(), atol=1e-6), name
    assert (tmp_path / "whole" / "curves.png").is_file()


def test_a_policy_that_was_made_deeper_is_trained_on(monkeypatch, tmp_path, slices):
    common = ("--data", slices, "--steps", 2, "--vision-steps", 0, "--batch", 2, "--held", 2, "--threads", 1)
    command(monkeypatch, train_policy, "--out", tmp_path / "first", *common)
    command(monkeypatch, deepen, tmp_path / "first", "--depth", 9, "--out", tmp_path / "deeper")
    command(monkeypatch, train_policy, "--start", tmp_path / "deeper", "--out", tmp_path / "on", *common)
    learnt = torch.load(tmp_path / "on" / "resume.pt", weights_only=True)["model"]
    added = learnt["model.visual.blocks.8.mlp.down_proj.weight"]
    assert added.dtype == torch.float32 and added.any()  # it was nothing at first


def test_the_memory_is_trained_and_the_encoder_left_as_it_is(monkeypatch, tmp_path, slices, clips):
    torch.manual_seed(0)
    start = tmp_path / "start.pt"
    torch.save({"averaged": train_segmenter.build().state_dict()}, start)
    common = ("--data", slices, "--clips", clips, "--steps", 2, "--batch", 2, "--held", 2, "--threads", 1)
    command(monkeypatch, train_memory, "--start", start, "--out", tmp_path / "memory", *common)
    before = torch.load(start, weights_only=True)["averaged"]
    after = torch.load(tmp_path / "memory" / "resume.pt", weights_only=True)["model"]
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert any(k.startswith("memory_attention") for k in moved)
    assert any(k.startswith("memory_encoder") for k in moved)
    assert not any(k.startswith("image_encoder") for k in moved)


def test_slices_that_were_made_before_are_not_made_again(monkeypatch, slices):
    monkeypatch.setattr(dataset, "_one", None)
    dataset.make(slices, 14, workers=1, one=None)  # nothing is left to do, so nothing is called
    assert len(dataset.load(slices)) == 14


def test_mistakes_are_what_their_names_say():
    rng = np.random.default_rng(0)
    truth, other = np.zeros((192, 192), bool), np.zeros((192, 192), bool)
    truth[60:120, 60:120] = True
    other[60:120, 124:160] = True
    for _ in range(20):
        good = good_mask(truth, rng)
        assert (good & truth).sum() / (good | truth).sum() > 0.7
        part = incomplete_mask(truth, rng)
        assert 0 < part.sum() < truth.sum() and not (part & ~truth).any()
        assert (spilled_mask(truth, [other], rng) & ~truth).sum() > 100
        assert not (wrong_mask(truth, [other], rng) & truth).any()
        assert half_way_mask(truth, [other], rng).shape == truth.shape


LEARNER = """
import argparse
from pathlib import Path
import numpy as np
import torch
from training.demo import loop

parser = argparse.ArgumentParser()
loop.add_options(parser, Path(), steps=5, rate=0.1)
parser.add_argument("--both-batches", action="store_true")
args = parser.parse_args()
loop.prepare(args)
model = torch.nn.Linear(3, 1)

def batch(rng):
    return model(torch.from_numpy(rng.standard_normal((4, 3), dtype="float32"))).square().mean()

def learn(step):
    if not args.both_batches:
        return batch(loop.random(args, step)), {}
    both = [np.random.default_rng([args.seed, step, process]) for process in (0, 1)]
    return sum(map(batch, both)) / 2, {}

learner = loop.Training(args, model, torch.optim.SGD(model.parameters(), lr=0.1), warmup=1)
learner.run(learn, lambda weights: {}, "test")
torch.save(model.state_dict(), args.out / f"{loop.rank()}.pt")
"""


def test_two_processes_learn_as_one_with_both_batches(tmp_path):
    script = tmp_path / "learner.py"
    script.write_text(LEARNER)
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for learner in (
        [sys.executable, script, "--out", one, "--both-batches"],
        [*torchrun, script, "--out", two],
    ):
        subprocess.run(learner, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    expected = torch.load(one / "0.pt", weights_only=True)
    for process in ("0.pt", "1.pt"):
        found = torch.load(two / process, weights_only=True)
        assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected), process
    assert len((two / "curves.jsonl").read_text().splitlines()) == 2  # the first process alone writes
