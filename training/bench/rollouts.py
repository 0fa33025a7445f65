"""Speed of rollouts and learning: all rollouts together, against one episode at a time.

    python -m training.bench.rollouts [--json F] [--questions 4] [--group 4] [--clock cpu]

Measures one update of training.grpo on phantoms: its rollouts (all advance together, equal states are computed once)
and the learning step. For comparison, as many episodes of the same questions run one after another, with nothing kept
between them. Replies are sampled, so the number of turns differs: compare turns per second. `--clock` is explained in
training.bench.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ibis_agent.files import write_json
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.segmenter.sam2.segmenter import Sam2Segmenter

from training.bench.clock import use_processor_time
from training.bench.steps import machine
from training.common.commands import check_output, command_parser, ending
from training.grpo.settings import GrpoSettings, TaskSettings
from training.grpo.train import Run
from training.rollouts.roller import Roller, Rollout


def measure_rollouts(settings: GrpoSettings, single: int = 0) -> dict[str, Any]:
    """The figures that `--json` writes. single: episodes one at a time; 0 for as many as together.

    Raises IbisError.
    """
    run = Run(settings)
    run.roller.run([run.tasks.draw(1, np.random.default_rng(0), 0.0)[0]], 1)  # warm-up
    _forget(run)
    begun = time.perf_counter()
    groups = run.rollouts()
    rolled = time.perf_counter() - begun
    begun = time.perf_counter()
    learned = run.learn(groups)
    learning = time.perf_counter() - begun
    together = [rollout for group in groups for rollout in group]
    alone: list[Rollout] = []
    generator = torch.Generator(run.policy.device).manual_seed(settings.seed)
    begun = time.perf_counter()
    for rollout in together[: single or len(together)]:
        _forget(run)
        alone += run.roller.run([rollout.question], 1, settings.temperature, generator)[0]
    one_by_one = time.perf_counter() - begun
    result: dict[str, Any] = {
        "machine": machine(str(run.policy.device)),
        "policy": {"name": run.card.name, "sha256": run.found.sha256},
        "segmenter": dict(run.segmenter.identity),
        "questions": settings.questions,
        "group": settings.group,
        "in_step": _speed(together, rolled),
        "one_at_a_time": _speed(alone, one_by_one),
        "learning": {
            "seconds": learning,
            "turns": learned["turns_learned"],
            "epochs": settings.epochs,
            "turns_per_second": settings.epochs * learned["turns_learned"] / learning,
        },
    }
    result["ratio"] = result["in_step"]["turns_per_second"] / result["one_at_a_time"]["turns_per_second"]
    return result


def table_of(result: dict[str, Any]) -> str:
    """A table for the terminal."""
    lines = [
        result["machine"],
        f"{'':34}{'episodes':>10}{'turns':>8}{'seconds':>9}{'turns/s':>9}{'tokens/s':>10}",
    ]
    for name, key in (("rollouts together", "in_step"), ("one episode at a time", "one_at_a_time")):
        row = result[key]
        lines.append(
            f"{name:34}{row['episodes']:10}{row['turns']:8}{row['seconds']:9.2f}"
            f"{row['turns_per_second']:9.2f}{row['tokens_per_second']:10.1f}"
        )
    row = result["learning"]
    name = f"learning, {row['epochs']} epochs of the turns"
    lines.append(f"{name:34}{'':10}{row['turns']:8.0f}{row['seconds']:9.2f}{row['turns_per_second']:9.2f}")
    lines.append(f"together, a turn is {result['ratio']:.1f} times as fast")
    return "\n".join(lines)


def _speed(rollouts: list[Rollout], seconds: float) -> dict[str, Any]:
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    return {
        "episodes": len(rollouts),
        "turns": len(turns),
        "seconds": seconds,
        "turns_per_second": len(turns) / seconds,
        "tokens_per_second": sum(len(turn.said.ids) for turn in turns) / seconds,
    }


def _forget(run: Run) -> None:
    """Clear cached features and embeddings."""
    run.policy.forget_pictures()
    assert isinstance(run.segmenter, Sam2Segmenter)
    run.segmenter.kept.forget()
    run.roller = Roller(run.policy, run.segmenter, run.roller.limits, run.roller.batch)


def main() -> None:
    parser = command_parser("bench.rollouts", __doc__)
    parser.add_argument("--policy", type=Path, help="a policy folder (default: the demo policy)")
    parser.add_argument("--segmenter", type=Path, help="a checkpoint (default: the demo segmenter)")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument(
        "--single", type=int, default=0, help="episodes one at a time (default: as many as together)"
    )
    parser.add_argument("--tune", choices=("lora", "full"), default="full")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if args.clock == "cpu":
        use_processor_time()
    with ending(), tempfile.TemporaryDirectory() as folder:
        check_output(args.json)
        settings = GrpoSettings(
            model=args.policy or demo_folder(),
            segmenter=args.segmenter,
            out=Path(folder),
            tasks=TaskSettings(phantoms=2 * args.questions),
            held=TaskSettings(phantoms=1, phantom_seed=102),
            questions=args.questions,
            group=args.group,
            tune=args.tune,
            device=args.device,
        )
        result = measure_rollouts(settings, args.single)
    print(table_of(result))
    if args.json is not None:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
