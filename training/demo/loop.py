"""The training loop shared by the demo trainings: exact resuming, schedule, averaged weights, curves.

Their steps are in training.demo.train_policy, train_segmenter and train_memory. Under torchrun every process draws its
own batch and the gradients are averaged, as if it were one batch. On two cores, two processes with one thread process
1.5 times as many pictures per hour as one process with two threads:

    torchrun --standalone --nproc-per-node 2 -m -- training.demo.train_policy --threads 1

(Without `--`, torchrun would take --start for its own option.)
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
    parser.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--checkpoint-every", type=int, default=every, help="in steps; a killed run resumes from there"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held", type=int, default=60, help="number of held-out slices, the last ones")


def prepare(args: argparse.Namespace) -> None:
    """Set threads and seed, join other processes if there are any, and make the output folder."""
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)


def rank() -> int:
    """The rank of this process; rank 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def once(make: Callable[[], object]) -> None:
    """Call `make` in rank 0 only; the others wait for it."""
    if rank() == 0:
        make()
    if distributed.is_initialized():
        distributed.barrier()


def random(args: argparse.Namespace, step: int, *more: int) -> np.random.Generator:
    """The random generator of a step: the same if the step is repeated, different in each process."""
    return np.random.default_rng([args.seed, step, *more, rank()])


def share_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over all processes; parameters without a gradient count as 0."""
    if not distributed.is_initialized():
        return
    flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    together = torch.cat([g.flatten() for g in flat])
    distributed.all_reduce(together)
    together /= distributed.get_world_size()
    for p, part in zip(parameters, together.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


class Training:
    """A training run in `args.out`; resumes from its `resume.pt` if there is one.

    `heads` exist in training only. Parameter groups may have a "scale" for the learning rate.
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
        """Train to the last step and return the averaged weights.

        learn(step) gives the loss of a step and its figures; it must depend only on the weights, the seed and the
        step, for resuming to be exact. measure(weights) evaluates averaged weights.
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
