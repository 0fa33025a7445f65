"""One update, recomputed by hand: what each switch of the literature makes of a token's gradient."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

import ibis_agent.segmenter as segmenters
from ibis_agent.policy.qwen25.source import demo_folder

from training.common.settings import read_settings
from training.grpo import train as grpo
from training.grpo.settings import GrpoSettings
from training.grpo.tasks import phantom_tasks

CONFIGS = Path(grpo.__file__).parents[1] / "configs"
SWITCHES = (
    "clip_low",
    "clip_high",
    "average",
    "ratio",
    "importance_cap",
    "refill",
    "branch_states",
    "divisor",
)
LOW, HIGH = 0.2, 0.28


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of the demo policy before its first update, with the turns that it would learn from."""
    changes = ["questions=1", "group=3", "max_turns=2", "rewards.least=2", "held.phantoms=1", "clip=1e9"]
    changes += [f"model={demo_folder()}", f"out={tmp_path_factory.mktemp('run')}", "branch_states=0"]
    settings = read_settings(CONFIGS / "grpo-demo.yaml", GrpoSettings, changes)
    made = grpo.Run(settings, None, segmenters.open(device="cpu"), phantom_tasks(1, seed=8))
    (group,) = made.rollouts()
    made.turns = [turn for rollout in group for turn in rollout.turns]
    return made


def _factor(new: float, old: float, advantage: float, mean: float, ratio: str) -> float:
    """The derivative of a token's objective by its log-probability, without its share of the loss."""
    apart = math.exp(mean if ratio == "sequence" else new - old)
    if ratio == "cispo":
        return min(apart, 1 + HIGH) * advantage
    clipped = apart > 1 + HIGH if advantage > 0 else apart < 1 - LOW
    return 0.0 if clipped else apart * advantage


@pytest.mark.parametrize(
    ("ratio", "average", "cap"),
    [("token", "token", 0), ("token", "token", 1.5), ("sequence", "reply", 0), ("cispo", "constant", 2.0)],
)
def test_the_gradient_is_the_sum_over_tokens_that_one_works_out_by_hand(
    run: Any, monkeypatch: pytest.MonkeyPatch, ratio: str, average: str, cap: float
) -> None:
    learner = run.learner
    changed = {"ratio": ratio, "average": average, "importance_cap": cap, "clip_low": LOW, "clip_high": HIGH}
    monkeypatch.setattr(learner, "settings", dataclasses.replace(run.settings, **changed))
    monkeypatch.setattr(learner.optimiser, "step", lambda: None)
    rng = np.random.default_rng(3)
    scores = [learner.policy.score([(turn.request, turn.said.ids)], 1.0)[0] for turn in run.turns]
    turns, before = [], {}
    for n, (turn, new) in enumerate(zip(run.turns, scores, strict=True)):
        # As if the engine had computed in other numbers, and the weights had moved since.
        sampled = new.detach().numpy() + rng.normal(0, 0.3, len(new)).astype(np.float32)
        said = dataclasses.replace(turn.said, logprobs=sampled)
        turns.append((dataclasses.replace(turn, said=said), (1.0, -0.5, 0.25)[n % 3]))
        before[id(said)] = new.detach() + torch.from_numpy(rng.normal(0, 0.3, len(new)).astype(np.float32))
    monkeypatch.setattr(learner, "_before", before)

    hand = torch.zeros(())
    lengths = [len(new) for new in scores]
    for (turn, advantage), new in zip(turns, scores, strict=True):
        share = {
            "token": 1 / sum(lengths),
            "reply": 1 / (len(lengths) * len(new)),
            "constant": 1 / (len(lengths) * run.card.max_new_tokens),
        }[average]
        sampled, moved = turn.said.logprobs.tolist(), before[id(turn.said)].tolist()
        old = moved if cap else sampled
        mean = float(np.mean(np.array(new.tolist()) - np.array(old)))
        for t, token in enumerate(new):
            weight = min(math.exp(moved[t] - sampled[t]), cap) if cap else 1.0
            hand = hand - _factor(token.item(), old[t], advantage, mean, ratio) * weight * share * token
    names, weights = zip(*learner.trained.items(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(hand, weights, allow_unused=True), strict=True))
    sums = dict.fromkeys(("clipped", "kl", "gradient", "tokens", "steps"), 0.0)
    learner.step(turns, sums, 0)
    assert sums["tokens"] == sum(lengths)
    largest = max(float(each.abs().max()) for each in wanted.values() if each is not None)
    for name, weight in learner.trained.items():
        if wanted[name] is not None:
            assert weight.grad.numpy() == pytest.approx(wanted[name].numpy(), abs=1e-3 * largest), name


@pytest.mark.parametrize("name", ["grpo-demo.yaml", "grpo-7b-lora.yaml", "grpo-published.yaml"])
def test_every_switch_stands_in_every_configuration_off_or_on(name: str) -> None:
    keys = [line.split(":")[0].strip() for line in (CONFIGS / name).read_text("utf-8").splitlines()]
    assert not set(SWITCHES) - set(keys)


def test_the_published_recipe_has_none_of_them() -> None:
    given = read_settings(CONFIGS / "grpo-published.yaml", GrpoSettings)
    assert (given.clip_low, given.clip_high, given.average, given.ratio) == (0.2, 0.2, "token", "token")
    assert (given.importance_cap, given.refill, given.branch_states, given.kl) == (0, 0, 0, 0)
    assert (given.rewards.credit, given.rewards.divisor) == ("turn", "deviation")
    assert given.rewards.optimal_steps == 5 and len({**given.rewards.turn, **given.rewards.outcome}) == 5
