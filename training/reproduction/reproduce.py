"""The paper's claim at demo size, by one command: what self-correction data and reinforcement learning add.

    python -m training.reproduction                       # four arms, three seeds; about 40 minutes on one core
    python -m training.reproduction --updates 2 --sft-steps 5 --seeds 1 --pictures 4 --asked 4 --write build/try

All arms start from one policy (--model): `sft` and `sft_self_correction` by supervised fine-tuning on an
expert's clicks, without and with mistakes and their recovery; `grpo_outcome_only` and `grpo_all_rewards` by GRPO
from the second's result. All are measured by greedy episodes on phantoms that none of them has seen. Writes
WRITE/reproduction.json (the figures of every arm), reproduction-runs.json (every run's), and plots beside them.

Every run lies in its own folder under --out; what was stopped goes on with the same command, what is finished
is not done again. Only the starting policy, the sizes and the seeds decide the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import numpy as np
import torch
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.files import check_writable_folder, write_json
from ibis_agent.policy.folder import look_into
from ibis_agent.run.episode import Limits

from training.common.commands import ending
from training.common.pictures import Choice, phantom_groups
from training.common.policy_folder import HISTORY
from training.common.questions import NEVER_PRESENT
from training.common.settings import read_settings
from training.grpo import train as grpo
from training.grpo.objective import figures
from training.grpo.settings import GrpoSettings
from training.grpo.tasks import Tasks, phantom_tasks
from training.rollouts.roller import Question, Roller
from training.rollouts.sampling import BatchPolicy
from training.sft import train as sft
from training.sft.settings import SftSettings
from training.trajectories import generate as trajectories
from training.trajectories.expert import Recipe
from training.trajectories.parts import Work

CONFIGS = Path(__file__).parents[1] / "configs"
# What an arm's GRPO is told beyond the demo's settings.
REWARDS = {
    "grpo_outcome_only": ["rewards.turn={}", "rewards.turn_credit=0", "rewards.outcome={answer: 1}"],
    "grpo_all_rewards": [],
}
ARMS = ("sft", "sft_self_correction", *REWARDS)
MISTAKES = 0.5
EXPERT_SEED, TASK_SEED, UNSEEN_SEED = 201, 101, 301
MAX_TURNS = 4


class Reproduction:
    """All arms over one starting policy. What is shared between runs is made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        look_into(args.model)
        self.out = check_writable_folder(args.out)
        torch.set_num_threads(args.threads)
        self.segmenter = segmenters.open(args.segmenter, device="cpu")
        self.tasks: Tasks = phantom_tasks(args.pictures, TASK_SEED)
        self._unseen: list[Question] = []

    def unseen(self) -> list[Question]:
        """The questions that every run is measured by; made when they are first needed."""
        if not self._unseen:
            self._unseen = phantom_tasks(self.args.asked, UNSEEN_SEED).every(2, UNSEEN_SEED)
        return self._unseen

    def result(self, arm: str, seed: int) -> dict[str, Any]:
        """The figures of one run, trained and measured where that is not done yet."""
        file = self.out / f"{arm}-{seed}" / "result.json"
        if not file.is_file():
            print(f"== {arm}, seed {seed}", flush=True)
            write_json(file, self.measure(self.policy(arm, seed)))
        return read_json(file)

    def policy(self, arm: str, seed: int) -> Path:
        """The folder of the policy that an arm makes."""
        args, out = self.args, self.out / f"{arm}-{seed}"
        if (out / "model" / HISTORY).is_file():
            return out / "model"
        if arm in REWARDS:
            start = self.policy("sft_self_correction", seed)
            changes = [f"tasks.phantoms={args.pictures}", f"tasks.phantom_seed={TASK_SEED}"]
            changes += ["evaluate_every=0", "held.phantoms=1", f"max_turns={MAX_TURNS}"]
            changes += [f"model={start}", f"out={out}", f"seed={seed}", f"threads={args.threads}"]
            changes += [f"updates={args.updates}", "rate=5e-5", *REWARDS[arm], *args.grpo]
            settings = read_settings(CONFIGS / "grpo-demo.yaml", GrpoSettings, changes)
            return grpo.train(settings, None, self.segmenter, self.tasks)
        changes = [f"model={args.model}", f"data={self.expert(arm)}", f"out={out}", f"seed={seed}"]
        changes += ["tune=full", "vision=false", "rate=1e-4", "held=0", "evaluate_every=0", "log_every=20"]
        changes += ["name=Demo policy", f"steps={args.sft_steps}", f"threads={args.threads}", *args.sft]
        return sft.fine_tune(read_settings(CONFIGS / "sft-demo.yaml", SftSettings, changes))

    def expert(self, arm: str) -> Path:
        """The folder of the trajectories that an arm is fine-tuned on; both ask the same about the same."""
        share = MISTAKES if arm == "sft_self_correction" else 0.0
        folder = self.out / ("trajectories-corrected" if share else "trajectories")
        if not (folder / trajectories.NAME).is_file():
            # As published: what never got good enough stays, with all its clicks and without an end.
            recipe = Recipe(
                mistake_share=share,
                decimals=2,
                style="plain",
                max_steps=MAX_TURNS,
                unfinished="keep",
                patience=0,
            )
            work = Work(folder, Choice(), recipe, absent=NEVER_PRESENT, seed=EXPERT_SEED, device="cpu")
            groups = phantom_groups(self.args.pictures, EXPERT_SEED)
            trajectories.make(work, groups, [], segmenter=self.segmenter)
        return folder

    def measure(self, folder: Path) -> dict[str, Any]:
        """Greedy episodes on the unseen phantoms."""
        roller = Roller(BatchPolicy.load(folder, "cpu"), self.segmenter, Limits(max_turns=MAX_TURNS))
        groups = roller.run(self.unseen(), 1, 0.0)
        each = [
            {
                "picture": rollout.question.picture,
                "structure": rollout.question.structure,
                "present": rollout.question.present,
                "iou": round(rollout.iou, 4),
                "clicks": len(rollout.clicks),
                "hit": rollout.hit,
                "ended": rollout.reason,
            }
            for (rollout,) in groups
        ]
        return {"policy": look_into(folder).sha256, "figures": figures(groups), "questions": each}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """arm → the figures of its runs together; the spread is the standard deviation between seeds."""
    arms = {}
    for arm, results in runs.items():
        values = {name: [run["figures"][name] for run in results] for name in ("iou", "clicks", "hit")}
        arms[arm] = {
            "iou_mean": round(float(np.mean(values["iou"])), 4),
            "iou_std": round(float(np.std(values["iou"], ddof=1)), 4) if len(results) > 1 else 0.0,
            "clicks_mean": round(float(np.mean(values["clicks"])), 3),
            "hit_mean": round(float(np.mean(values["hit"])), 4),
            "seeds": len(results),
        }
    return arms


def verdict(arms: dict[str, dict[str, float]], runs: dict[str, list[dict[str, Any]]]) -> str:
    """In words: whether GRPO with all rewards beats SFT, in IoU or in clicks at equal IoU, beyond the spread."""
    sft_arm, ours = arms["sft"], arms["grpo_all_rewards"]
    gain, spread = ours["iou_mean"] - sft_arm["iou_mean"], max(sft_arm["iou_std"], ours["iou_std"])
    clicks = {arm: [run["figures"]["clicks"] for run in runs[arm]] for arm in ("sft", "grpo_all_rewards")}
    saved = float(np.mean(clicks["sft"]) - np.mean(clicks["grpo_all_rewards"]))
    apart = max(float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in clicks.values())
    text = f"IoU {gain:+.3f} (spread {spread:.3f}), clicks {-saved:+.2f} (spread {apart:.2f})"
    if gain > spread:
        return f"GRPO with all rewards beats SFT in final IoU: {text}"
    if gain >= -spread and saved > apart:
        return f"GRPO with all rewards beats SFT in clicks at equal IoU: {text}"
    return f"GRPO with all rewards does not beat SFT beyond the spread: {text}"


def plot(folder: Path, out: Path, runs: dict[str, list[dict[str, Any]]], seeds: Sequence[int]) -> None:
    """The arms beside each other, every seed a dot; and the curves of the GRPO runs."""
    import json

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {"iou": "final IoU", "clicks": "clicks used", "hit": "first click on the structure"}
    figure, axes = plt.subplots(1, len(shown), figsize=(12, 3.6))
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        for place, results in enumerate(runs.values()):
            values = [run["figures"][name] for run in results]
            axis.bar(place, np.mean(values), color="#9ab", width=0.6)
            axis.plot([place] * len(values), values, "k.", ms=5)
        axis.set_xticks(range(len(runs)), [arm.replace("_", "\n") for arm in runs], fontsize=8)
        axis.set_title(title)
    figure.tight_layout()
    figure.savefig(folder / "reproduction.png", dpi=110)
    names = ("reward", "outcome_answer", "iou", "clicks", "hit", "entropy")
    figure, axes = plt.subplots(2, 3, figsize=(12, 6))
    for arm, colour in zip(REWARDS, ("#c63", "#36c"), strict=True):
        for seed in seeds:
            lines = (out / f"{arm}-{seed}" / "curves.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            for axis, name in zip(axes.flat, names, strict=True):
                points = [(row["step"], row[name]) for row in rows if name in row]
                axis.plot(*zip(*points, strict=True), color=colour, lw=1, label=arm)
                axis.set_title(name)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # one entry an arm
    axes.flat[0].legend(list(named.values()), list(named))
    figure.supxlabel("update (rollouts that it learned from)")
    figure.tight_layout()
    figure.savefig(folder / "reproduction-curves.png", dpi=110)
    plt.close("all")


def run(args: argparse.Namespace) -> str:
    """Everything that is not done yet; returns the verdict. Raises IbisError, and Cancelled where stopped."""
    if len(set(args.seeds)) != len(args.seeds):
        raise InputError("a seed stands twice", value=args.seeds)
    for name in ("updates", "sft_steps", "pictures", "asked", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1", value=getattr(args, name))
    check_writable_folder(args.write)
    work = Reproduction(args)
    start = work.out / "start.json"
    if not start.is_file():
        write_json(start, work.measure(args.model))
    # Seed by seed: whenever it is stopped, the arms can be compared over the seeds that are done.
    found = {seed: {arm: work.result(arm, seed) for arm in ARMS} for seed in args.seeds}
    runs = {arm: [found[seed][arm] for seed in args.seeds] for arm in ARMS}
    arms = summary(runs)
    said = verdict(arms, runs)
    write_json(args.write / "reproduction.json", {"arms": arms})
    write_json(
        args.write / "reproduction-runs.json",
        {
            "verdict": said,
            "sizes": {
                name: getattr(args, name) for name in ("updates", "sft_steps", "pictures", "asked", "seeds")
            },
            "changes": {"sft": args.sft, "grpo": args.grpo},
            "segmenter": work.segmenter.identity,
            "start": read_json(start) | {"questions": len(work.unseen())},
            "runs": {arm: [each["figures"] for each in results] for arm, results in runs.items()},
        },
    )
    plot(args.write, work.out, runs, args.seeds)
    for arm, values in arms.items():
        print(f"{arm:22}" + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=None, help="the policy to start from (the demo policy)")
    parser.add_argument("--segmenter", type=Path, help="a checkpoint (the demo segmenter)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"), help="where the runs lie")
    parser.add_argument("--write", type=Path, default=Path("training"), help="where the figures go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--updates", type=int, default=14, help="of GRPO")
    parser.add_argument("--sft-steps", type=int, default=150)
    parser.add_argument("--pictures", type=int, default=100, help="phantoms to learn from")
    parser.add_argument(
        "--asked", type=int, default=40, help="unseen phantoms, two present structures of each"
    )
    parser.add_argument("--sft", nargs="*", default=[], help="key=value for the fine-tuning")
    parser.add_argument("--grpo", nargs="*", default=[], help="key=value for GRPO")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with ending():
        args.model = args.model or policies.find().folder
        print(run(args))
