"""GRPO: the policy learns from its own episodes, several turns each, with the segmenter in the loop.

    python -m training.grpo training/configs/grpo-demo.yaml
    python -m training.grpo training/configs/grpo-7b-lora.yaml model=policies/sft tasks.cases=scans

The keys are explained in training/grpo/settings.py. One update: draw questions, sample a group of rollouts for
each, compute the advantage of every turn, and train on the policy's own tokens with the clipped objective. It runs
on one device; for several machines see training/grpo/verl. Simplifications, and why:
- with a frozen vision tower, image features are computed once and shared by rollouts and learning;
- turns with zero advantage are not computed again;
- the same model samples and learns with the same numerics, so there is no second engine to correct for.

OUT gets curves of every reward, IoU and clicks (curves.jsonl, curves.png, tensorboard/), a checkpoint, and at the
end `adapter/` (LoRA; then run training.sft.merge) or `model/` (full). A run stopped by Ctrl-C or a kill resumes
with the same command, with the same result as an uninterrupted one: random numbers depend only on the seed and the
update's number.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import numpy as np
import torch
from ibis_agent.cases.cases import read_cases
from ibis_agent.errors import Cancelled
from ibis_agent.files import check_writable_folder, write_json
from ibis_agent.policy.card import ModelCard, load_card, save_card
from ibis_agent.run.episode import Limits
from ibis_agent.segmenter.contract import Segmenter

from training.common.best import BEST, Best
from training.common.commands import ending, settings_parser
from training.common.pictures import Choice
from training.common.policy_folder import (
    HISTORY,
    check_held,
    history_of,
    named,
    new_folder,
    scans_learned,
    write_policy,
)
from training.common.resuming import Curves, save_atomically
from training.common.run_folder import SETTINGS, same_run
from training.common.settings import read_settings, settings_to_json
from training.grpo.credit import differ
from training.grpo.learner import Learner
from training.grpo.objective import figures
from training.grpo.settings import FREE, GrpoSettings, TaskSettings, check
from training.grpo.tasks import Tasks, case_tasks, phantom_tasks
from training.rollouts.roller import Roller, Rollout
from training.sft.reply_trainer import Stopping
from training.sft.train import device_of

_CHECKPOINT = "resume.pt"


class Run:
    """A run's models and tasks, and the parts of one update."""

    def __init__(
        self,
        settings: GrpoSettings,
        file: str | None = None,
        segmenter: Segmenter | None = None,
        tasks: Tasks | None = None,
        held: Tasks | None = None,
    ) -> None:
        """Check everything, then load. Pass `segmenter`, `tasks` or `held` if already loaded. Raises IbisError."""
        check(settings, file)
        self.settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.found = policies.trainable(settings.model).inspect()
        self.card = load_card(settings.model)
        device, _ = device_of(settings.device, settings.precision)
        self.segmenter = segmenter or segmenters.open(settings.segmenter, device=device)
        self.out = check_writable_folder(settings.out)
        if held is None and settings.held.cases is not None:
            read_cases(settings.held.cases)  # report problems before the training scans are cut
        self.tasks = tasks or tasks_of(settings.tasks, self.card)
        self.held = held or tasks_of(settings.held, self.card)
        check_held(settings.model, self.held.scans, self.tasks.scans, file)
        facts = {
            "model": self.found.sha256,
            "segmenter": self.segmenter.identity["sha256"],
            "tasks": self.tasks.identity,
            "held": self.held.identity,
        }
        _same_run(settings, facts)
        self.update, self.measured, self.collapsed = 0, dict[str, float](), ""
        self.learner = Learner(settings, self.found, self.card)
        self.policy, self.trained = self.learner.policy, self.learner.trained
        limits = Limits(max_turns=settings.max_turns)
        self.roller = Roller(self.policy, self.segmenter, limits, settings.replies)
        self.dropped: list[list[Rollout]] = []
        self.best = Best(self.out / BEST, settings.collapse, device)
        self._resume()

    def _resume(self) -> None:
        """Load the checkpoint, if there is one."""
        checkpoint = self.out / _CHECKPOINT
        if checkpoint.is_file():
            state = torch.load(checkpoint, weights_only=True, map_location=self.policy.device)
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    parameter.copy_(state["trained"][name])
            self.learner.optimiser.load_state_dict(state["optimiser"])
            self.update = int(state["update"])

    def rollouts(self) -> list[list[Rollout]]:
        """Sample this update's groups. Depends only on the weights, the seed and the update's number."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, self.update])
        generator = torch.Generator(self.policy.device).manual_seed(int(rng.integers(2**62)))
        branches = (settings.branch_states, settings.branch_replies) if settings.branch_states else None
        kept: list[list[Rollout]] = []
        dropped: list[list[Rollout]] = []
        for attempt in range(1 + settings.refill):
            missing = settings.questions - len(kept)
            questions = self.tasks.draw(missing, rng, settings.tasks.absent)
            with self.learner.computing():
                found = self.roller.run(
                    questions, settings.group, settings.temperature, generator, branches, rng
                )
            if attempt == settings.refill:  # the last round keeps all; the only one if there is no refill
                kept += found
                break
            kept += [group for group in found if differ(group, settings.rewards)]
            dropped += [group for group in found if not differ(group, settings.rewards)]
            if len(kept) == settings.questions:
                break
        self.dropped = dropped
        return kept

    def learn(self, groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
        """Learn from this update's groups and return figures for the curves."""
        return self.learner.learn(groups, self.update)

    def measure(self) -> dict[str, float]:
        """Greedy figures on the held-out questions. Keeps the state if it is the best so far."""
        questions, most = self.held.every(2, self.settings.seed), self.settings.replies
        groups: list[list[Rollout]] = []
        with self.learner.computing():
            for start in range(0, len(questions), most):  # the requests of all may not fit in memory
                groups += self.roller.run(questions[start : start + most], 1, 0.0)
        self.measured = {f"held_{k}": v for k, v in figures(groups).items()}
        self.collapsed = self.best.note(self.update, self.measured, self.trained)
        return self.measured

    def remember(self, curves: Curves) -> None:
        """Restore the figures measured after the last update, if the run was stopped after that."""
        rows = [row for row in curves.rows if row["step"] == self.update]
        self.measured = {k: v for row in rows for k, v in row.items() if k.startswith("held_")}
        if self.measured:  # a run may stop between the collapse and its end
            self.collapsed = self.best.collapse(self.measured)

    def save(self) -> None:
        """Write the checkpoint: trainable weights, optimiser state, number of updates done."""
        trained = {name: parameter.detach() for name, parameter in self.trained.items()}
        state = {"trained": trained, "optimiser": self.learner.optimiser.state_dict(), "update": self.update}
        save_atomically(state, self.out / _CHECKPOINT)

    def finish(self, seconds: float) -> Path:
        """Write the adapter or the policy's folder from the best or last state. Raises OutputError."""
        settings, before = self.settings, self.card.name
        found, kept = self.measured, self.update
        if self.collapsed or (settings.keep == "best" and self.best.step >= 0):
            found, kept = self.best.figures, self.best.step
            self.best.restore(self.trained)
        how = f"LoRA of rank {settings.lora.rank}" if settings.tune == "lora" else "all weights"
        origin = (
            f"GRPO ({how}, {kept} updates of {settings.questions} × {settings.group} rollouts, "
            f"seed {settings.seed}) of {before} ({self.found.sha256[:12]})."
        )
        history = history_of(
            "grpo",
            self.found,
            before,
            settings=settings_to_json(settings),
            segmenter=self.segmenter.identity,
            updates=self.update,
            kept_update=kept,
            **({"collapsed": self.collapsed} if self.collapsed else {}),
            scans=scans_learned(self.found.folder, self.tasks.scans),
            seconds=round(seconds, 1),
            figures={key: round(value, 5) for key, value in found.items()},
        )
        card = named(self.card, settings.name, origin)
        result = result_of(settings)
        if settings.tune == "full":
            write_policy(self.learner.whole, self.found, result, card, history)
        else:
            with new_folder(result) as folder:
                self.learner.whole.save_pretrained(folder)
                save_card(card, folder)
                write_json(folder / HISTORY, history)
        return result


def train(
    settings: GrpoSettings,
    file: str | None = None,
    segmenter: Segmenter | None = None,
    tasks: Tasks | None = None,
    held: Tasks | None = None,
) -> Path:
    """Train, or resume, and return the folder of the adapter or of the new policy.

    Raises IbisError before slow work if something is wrong, and Cancelled if the run was stopped; the same call
    then resumes it.
    """
    check(settings, file)
    result = result_of(settings)
    if (result / HISTORY).is_file():
        _same_run(settings, {}, write=False)
        print(f"{result} is already finished", flush=True)
        return result
    begun = time.perf_counter()
    run = Run(settings, file, segmenter, tasks, held)
    if run.update:
        print(f"resuming from update {run.update}", flush=True)
    curves = Curves(settings.out, run.update, tensorboard=True)
    stopping = Stopping()
    run.remember(curves)
    try:
        with stopping.listening():
            if settings.evaluate_every and not run.update:
                curves.add(step=run.update, **run.measure())
            while run.update < settings.updates and not run.collapsed:
                started = time.perf_counter()
                groups = run.rollouts()
                rolled = time.perf_counter()
                learned = run.learn(groups)
                run.update += 1
                every = [*groups, *run.dropped]
                row = {**figures(every, settings.rewards), **learned}
                if settings.refill:
                    row["refilled"] = float(len(run.dropped))
                row |= {"rollout_seconds": rolled - started, "learn_seconds": time.perf_counter() - rolled}
                curves.add(step=run.update, **row)
                last = run.update == settings.updates
                if last or (settings.evaluate_every and run.update % settings.evaluate_every == 0):
                    curves.add(step=run.update, **run.measure())
                if last or run.collapsed or stopping.asked or run.update % settings.save_every == 0:
                    run.save()
                if stopping.asked and not last and not run.collapsed:
                    raise Cancelled(f"stopped at update {run.update}; run the same command to resume")
    finally:
        curves.plot(settings.out / "curves.png", run.card.name)
    if run.collapsed:
        print(f"{run.collapsed}; keeping the state of update {run.best.step}", file=sys.stderr, flush=True)
    elif settings.keep == "best" and (warning := run.best.warning()):
        print(warning, file=sys.stderr, flush=True)
    return run.finish(time.perf_counter() - begun)


def result_of(settings: GrpoSettings) -> Path:
    """The folder of a finished run's policy or adapter."""
    return settings.out / ("adapter" if settings.tune == "lora" else "model")


def _same_run(settings: GrpoSettings, facts: dict[str, Any], write: bool = True) -> None:
    same_run(settings.out / SETTINGS, settings_to_json(settings), facts, FREE, GrpoSettings, write)


def tasks_of(settings: TaskSettings, card: ModelCard) -> Tasks:
    """The pictures to ask about, oriented and windowed as the policy's card says. Raises InputError."""
    if settings.cases is not None:
        choice = Choice(
            per_plane=settings.per_volume,
            orientation=card.orientation.value,
            card_window=card.window,
            frame=card.frame,
        )
        return case_tasks(settings.cases, choice, settings.store)
    choice = Choice(frame=card.frame)
    return phantom_tasks(settings.phantoms, settings.phantom_seed, settings.first, choice)


def main() -> None:
    parser = settings_parser("grpo", __doc__, "grpo-demo.yaml", "updates=50 lora.rank=16")
    args = parser.parse_args()
    with ending():
        print(train(read_settings(args.config, GrpoSettings, args.changes), str(args.config)))
