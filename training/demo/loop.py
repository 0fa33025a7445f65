"""The loop that the demo trainings share: exact resuming, schedules, averaged weights, curves.

What is learnt in a step is the trainings' own: training.demo.train_policy, train_segmenter, train_memory. Under
torchrun every process draws a batch of its own and the gradients are averaged, as if the batches were one. On two
cores two processes of one thread see half as many pictures again in an hour as one process of two threads:

    torchrun --standalone --nproc-per-node 2 -m -- training.demo.train_policy --threads 1

(The `--` keeps torchrun from taking --start for an option of its own.)
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn

from training.common.resuming import Averaged, Curves, learning_rate, save_atomically

Figures = dict[str, float]


def add_options(
    parser: argparse.ArgumentParser, out: Path, steps: int, rate: float, every: int = 250
) -> None:
    """The options that every demo training has."""
    parser.add_argument("--data", type=Path, nargs="+", default=[Path("build/phantoms")])
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rate", type=float, default=rate, help="the peak of the learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--checkpoint-every", type=int, default=every, help="steps; a killed run goes on from there"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held", type=int, default=60, help="slices, the last ones, that are measured on")


def prepare(args: argparse.Namespace) -> None:
    """Threads, seed, the output folder, and the other processes if there are any."""
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)


def rank() -> int:
    """Which process this is; 0, the only one or the first, is the one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def once(make: Callable[[], object]) -> None:
    """Let the first process alone `make` a file, and the others wait for it."""
    if rank() == 0:
        make()
    if distributed.is_initialized():
        distributed.barrier()


def random(args: argparse.Namespace, step: int, *more: int) -> np.random.Generator:
    """What chance decides in a step: the same whenever it is made, another one in each process."""
    return np.random.default_rng([args.seed, step, *more, rank()])


def share_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Their mean over all processes; a parameter that a batch did not need counts as 0."""
    if not distributed.is_initialized():
        return
    flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    together = torch.cat([g.flatten() for g in flat])
    distributed.all_reduce(together)
    together /= distributed.get_world_size()
    for p, part in zip(parameters, together.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


class Training:
    """A model that learns step by step in `args.out`; goes on from `resume.pt` there if a run was killed.

    `heads` exist in training only. Parameter groups may have a "scale" of their own for the learning rate.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        heads: nn.Module | None = None,
        decay: float = 0.998,
        warmup: int = 200,
    ):
        self.args, self.model, self.optimiser, self.heads, self.warmup = args, model, optimiser, heads, warmup
        self.averaged, self.step, self.file = Averaged(model, decay), 0, args.out / "resume.pt"
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            model.load_state_dict(state["model"])
            if heads is not None:
                heads.load_state_dict(state["heads"])
            optimiser.load_state_dict(state["optimiser"])
            self.averaged.state, self.step = state["averaged"], state["step"]
            print(f"resumed at step {self.step}", flush=True)
        self.curves = Curves(args.out, self.step) if rank() == 0 else None

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averaged": self.averaged.state,
            "step": self.step,
        }
        if self.heads is not None:
            state["heads"] = self.heads.state_dict()
        save_atomically(state, self.file)

    def run(
        self,
        learn: Callable[[int], tuple[Tensor, Figures]],
        measure: Callable[[dict[str, Tensor]], Figures],
        title: str,
        report_every: int = 50,
        measure_every: int = 1000,
        measure_after: int = 0,
    ) -> dict[str, Tensor]:
        """`learn(step)` gives the loss of a step and its figures; `measure(weights)` judges averaged weights.

        Returns the averaged weights. Same seed, same step, same loss: that is the caller's part of resuming.
        """
        steps, every = self.args.steps, self.args.checkpoint_every
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        sums: dict[str, tuple[float, int]] = {}
        started, since = time.time(), 0
        while self.step < steps:
            rate = learning_rate(self.step, steps, self.args.rate, self.warmup)
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            loss, figures = learn(self.step)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            share_gradients(trained)
            nn.utils.clip_grad_norm_(trained, 1.0)
            self.optimiser.step()
            self.step, since = self.step + 1, since + 1
            self.averaged.update(self.model, self.step)
            if self.curves is None:
                continue
            for name, figure in figures.items():
                total, times = sums.get(name, (0.0, 0))
                sums[name] = (total + figure, times + 1)
            last = self.step == steps
            if self.step % report_every == 0 or last:
                means = {name: total / times for name, (total, times) in sums.items()}
                self.curves.add(step=self.step, seconds=(time.time() - started) / since, **means)
                sums, since, started = {}, 0, time.time()
            if self.step % every == 0 or last:
                self.save()
            if (self.step % measure_every == 0 and self.step > measure_after) or last:
                self.curves.add(step=self.step, **measure(self.averaged.state))
                self.curves.plot(self.args.out / "curves.png", title)
                started, since = time.time(), 0
        return self.averaged.state
