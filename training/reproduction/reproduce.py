"""Test the paper's claim at demo size: the effect of self-correction data and of rewards.

    python -m training.reproduction                       # seven arms, five seeds: many hours, resumable
    python -m training.reproduction --seeds 1 --updates 1 --sft-steps 2 --pictures 4 --asked 4 --write build/try

The structures leave room for improvement: "both kidneys" (two parts, so one click is not enough), lesions, aorta,
stomach. `sft` and `sft_self_correction` are fine-tuned on an expert's clicks, without and with mistakes and their
recovery, and stopped by a held-out set. The GRPO arms start from the second and differ only in rewards and credit: the
same format reward, optimal_steps 5, updates, rollouts and learning rate. All are evaluated by greedy episodes on the
same unseen questions. Differences are paired over questions and seeds, with the margins of paired.py.

Every run has its own folder under --out; stopped runs resume and finished ones are kept when the command is run again.
Two processes with different --seeds may share the folder. Writes WRITE/reproduction.json and a plot.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import numpy as np
import torch
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.files import check_writable_folder, write_json
from ibis_agent.policy.card import load_card
from ibis_agent.policy.folder import look_into
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.run.episode import Limits

from training.common.commands import command_parser, ending
from training.common.pictures import Choice, phantom_groups
from training.common.policy_folder import HISTORY
from training.common.questions import NEVER_PRESENT
from training.common.settings import read_settings
from training.grpo import train as grpo
from training.grpo.objective import figures
from training.grpo.settings import GrpoSettings
from training.grpo.tasks import Tasks, phantom_tasks
from training.reproduction.paired import MARGINS, table, verdict
from training.rollouts.roller import Question, Roller
from training.rollouts.sampling import BatchPolicy
from training.sft import train as sft
from training.sft.settings import SftSettings
from training.trajectories import generate as trajectories
from training.trajectories.expert import Recipe
from training.trajectories.parts import Work

CONFIGS = Path(__file__).parents[1] / "configs"
TASK = Choice(
    structures=("both kidneys", "lesion", "aorta", "stomach"),
    joined=(("both kidneys", ("left kidney", "right kidney")),),
)
_TURN = "credit: turn, divisor: deviation, least: 2, optimal_steps: 5"
_FORMAT = "format_fault: 1"
# The rewards of each GRPO arm; format is the same in all of them.
REWARDS = {
    "grpo_outcome": f"{{turn: {{{_FORMAT}}}, outcome: {{answer: 1}}, {_TURN}}}",
    "grpo_outcome_length": f"{{turn: {{{_FORMAT}}}, outcome: {{answer: 1, length: 1}}, {_TURN}}}",
    "grpo_turns": (f"{{turn: {{{_FORMAT}, placement: 1, improvement: 1}}, outcome: {{answer: 1}}, {_TURN}}}"),
    "grpo_published": (
        f"{{turn: {{{_FORMAT}, placement: 1, improvement: 1}}, outcome: {{answer: 1, length: 1}}, {_TURN}}}"
    ),
    "grpo_ours": (
        f"{{turn: {{{_FORMAT}, gain: 1, ending: 0.5, click: -0.03}}, outcome: {{}}, "
        "credit: state, divisor: batch, least: 4}"
    ),
}
ARMS = ("sft", "sft_self_correction", *REWARDS)
MISTAKES = 0.5
EXPERT_SEED, TASK_SEED, HELD_SEED, UNSEEN_SEED = 201, 101, 102, 301
MAX_TURNS = 5


class Reproduction:
    """All arms from one starting policy; what runs share is made once. Raises InputError."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        policies.trainable(args.model).inspect()
        # Pictures as the policy sees them in use.
        self.task = replace(TASK, frame=load_card(args.model).frame)
        self.out = check_writable_folder(args.out)
        for file in self.out.glob("*/result.json"):
            if (frame := read_json(file).get("frame", "slice")) != self.task.frame:
                raise InputError(
                    "contains runs on pictures of another frame",
                    file=self.out,
                    value=f"{frame}, the policy's card says {self.task.frame}",
                    remedy="Choose another --out.",
                )
        torch.set_num_threads(args.threads)
        self.segmenter = segmenters.open(args.segmenter, device="cpu")
        self.tasks: Tasks = phantom_tasks(args.pictures, TASK_SEED, choice=self.task)
        self.held: Tasks = phantom_tasks(max(2, args.pictures // 10), HELD_SEED, choice=self.task)
        self._unseen: list[Question] = []

    def unseen(self) -> list[Question]:
        """The questions that every run is evaluated on; made when first needed."""
        if not self._unseen:
            tasks = phantom_tasks(self.args.asked, UNSEEN_SEED, choice=self.task)
            self._unseen = tasks.every(4, UNSEEN_SEED)
        return self._unseen

    def result(self, arm: str, seed: int) -> dict[str, Any]:
        """The figures of one run, which is trained and evaluated if that is not done yet."""
        file = self.out / f"{arm}-{seed}" / "result.json"
        if not file.is_file():
            print(f"== {arm}, seed {seed}", flush=True)
            write_json(file, self.measure(self.policy(arm, seed)))
        return read_json(file)

    def policy(self, arm: str, seed: int) -> Path:
        """The folder of an arm's policy, which is trained if needed."""
        args, out = self.args, self.out / f"{arm}-{seed}"
        if (out / "model" / HISTORY).is_file():
            return out / "model"
        if arm in REWARDS:
            start = self.policy("sft_self_correction", seed)
            every = max(1, args.updates // 6)
            changes = [f"evaluate_every={every}", "branch_states=0", f"max_turns={MAX_TURNS}"]
            changes += [f"model={start}", f"out={out}", f"seed={seed}", f"threads={args.threads}"]
            # At 5e-5 both arms that were tried lost IoU.
            changes += [f"updates={args.updates}", f"warmup={min(2, args.updates)}", "rate=1e-5"]
            changes += [f"rewards={REWARDS[arm]}", *args.grpo]
            settings = read_settings(CONFIGS / "grpo-demo.yaml", GrpoSettings, changes)
            return grpo.train(settings, None, self.segmenter, self.tasks, self.held)
        changes = [f"model={args.model}", f"data={self.expert(arm)}", f"out={out}", f"seed={seed}"]
        # The demo's card limits the structures; these policies are asked for others too.
        changes += ["tune=full", "vision=false", "rate=1e-4", "card.vocabulary={}", "log_every=20"]
        changes += [
            f"evaluate_every={max(1, args.sft_steps // 10)}",
            "held=0.1",
            "asked=60",
            "name=Demo policy",
        ]
        changes += [f"steps={args.sft_steps}", f"threads={args.threads}", *args.sft]
        return sft.fine_tune(read_settings(CONFIGS / "sft-demo.yaml", SftSettings, changes))

    def expert(self, arm: str) -> Path:
        """The folder of the trajectories for an arm's fine-tuning; questions and pictures are the same for all."""
        share = MISTAKES if arm == "sft_self_correction" else 0.0
        folder = self.out / ("trajectories-corrected" if share else "trajectories")
        if not (folder / trajectories.NAME).is_file():
            # As published: runs that never get good enough are kept, with all clicks and without termination.
            recipe = Recipe(
                mistake_share=share,
                decimals=2,
                style="plain",
                max_steps=MAX_TURNS,
                unfinished="keep",
                patience=0,
            )
            work = Work(folder, self.task, recipe, absent=NEVER_PRESENT, seed=EXPERT_SEED, device="cpu")
            groups = phantom_groups(self.args.pictures, EXPERT_SEED)
            trajectories.make(work, groups, [], segmenter=self.segmenter)
        return folder

    def measure(self, folder: Path) -> dict[str, Any]:
        """Evaluate a policy folder by greedy episodes on the unseen phantoms."""
        roller = Roller(BatchPolicy.load(folder, "cpu"), self.segmenter, Limits(max_turns=MAX_TURNS))
        groups = roller.run(self.unseen(), 1, 0.0)
        each = [
            {
                "picture": rollout.question.picture,
                "structure": rollout.question.structure,
                "present": rollout.question.present,
                "iou": round(rollout.iou, 4),
                "clicks": len(rollout.prompts),
                "hit": rollout.hit,
                "ended": rollout.reason,
            }
            for (rollout,) in groups
        ]
        found = look_into(folder).sha256
        frame = self.task.frame
        return {"policy": found, "frame": frame, "figures": figures(groups), "questions": each}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Arm → its figures: the mean over questions and seeds, and the mean of each seed."""
    arms: dict[str, dict[str, Any]] = {}
    for arm, results in runs.items():
        arms[arm] = {"seeds": len(results)}
        for name, values in table(results).items():
            arms[arm][name] = round(float(np.nanmean(values)), 4)
            arms[arm][f"{name}_of_seeds"] = [round(float(np.nanmean(each)), 4) for each in values]
    return arms


def plot(folder: Path, arms: dict[str, dict[str, Any]]) -> None:
    """Plot the arms next to each other, with a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {"iou": "final IoU", "clicks": "clicks used", "false_absence": "false absences"}
    figure, axes = plt.subplots(1, len(shown), figsize=(15, 4))
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        for place, values in enumerate(arms.values()):
            axis.plot([place] * values["seeds"], values[f"{name}_of_seeds"], "k.", ms=6)
            axis.plot([place - 0.3, place + 0.3], [values[name]] * 2, color="#36c", lw=2)
        axis.set_xticks(range(len(arms)), [arm.replace("_", "\n") for arm in arms], fontsize=8)
        axis.set_title(title)
    figure.tight_layout()
    figure.savefig(folder / "reproduction.png", dpi=110)
    plt.close("all")


def run(args: argparse.Namespace) -> list[str]:
    """Do all remaining runs and return the verdict. Raises IbisError; Cancelled if stopped."""
    if len(set(args.seeds)) != len(args.seeds):
        raise InputError("a seed occurs twice", value=args.seeds)
    for name in ("updates", "sft_steps", "pictures", "asked", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1", value=getattr(args, name))
    check_writable_folder(args.write)
    work = Reproduction(args)
    start = work.out / "start.json"
    if not start.is_file():
        write_json(start, work.measure(args.model))
    # Seed by seed, so that the arms can be compared over finished seeds at any time.
    found = {seed: {arm: work.result(arm, seed) for arm in args.arms} for seed in args.seeds}
    runs = {arm: [found[seed][arm] for seed in args.seeds] for arm in args.arms}
    arms, said = summary(runs), verdict(runs)
    sizes = {name: getattr(args, name) for name in ("updates", "sft_steps", "pictures", "asked", "seeds")}
    report = {
        "verdict": said,
        "margins": MARGINS,
        "arms": arms,
        "start": read_json(start)["figures"],
        "questions": len(work.unseen()),
        "sizes": sizes,
        "changes": {"sft": args.sft, "grpo": args.grpo},
        "policy": read_json(start)["policy"],
        "segmenter": dict(work.segmenter.identity),
    }
    write_json(args.write / "reproduction.json", report)
    plot(args.write, arms)
    for arm, values in arms.items():
        print(f"{arm:22}" + "  ".join(f"{name} {values[name]:.3f}" for name in MARGINS))
    return said


def main() -> None:
    parser = command_parser("reproduction", __doc__)
    parser.add_argument(
        "--model", type=Path, default=None, help="the policy to start from (default: the demo policy)"
    )
    parser.add_argument("--segmenter", type=Path, help="a checkpoint (default: the demo segmenter)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"), help="folder of the runs")
    parser.add_argument(
        "--write", type=Path, default=Path("training/reproduction"), help="folder of the figures"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="run only these arms")
    parser.add_argument("--updates", type=int, default=60, help="updates of GRPO")
    parser.add_argument(
        "--sft-steps", type=int, default=1000, help="most steps; the best held-out state is kept"
    )
    parser.add_argument("--pictures", type=int, default=300, help="number of training phantoms")
    parser.add_argument(
        "--asked", type=int, default=130, help="number of unseen phantoms (130: about 350 questions)"
    )
    parser.add_argument("--sft", nargs="*", default=[], help="key=value for fine-tuning")
    parser.add_argument("--grpo", nargs="*", default=[], help="key=value for GRPO")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with ending():
        args.model = args.model or demo_folder()
        print("\n".join(run(args)))
