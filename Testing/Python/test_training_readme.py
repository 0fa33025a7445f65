"""training/README.md says what is so: its commands exist with those options, its table is the computed one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from training import costs
from training.grpo_settings import GrpoSettings
from training.settings import read_settings
from training.sft_settings import SftSettings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [
    (module, shlex.split(rest.removesuffix("&").rstrip(), comments=True))
    for module, rest in re.findall(r"-m (?:-- )?(training\.[\w.]+)(.*)", BLOCKS)
]


def test_there_are_commands_for_every_step() -> None:
    steps = {"check_cases", "trajectories", "reasoning", "sft", "merge", "grpo", "evaluate", "verl.rows"}
    assert {f"training.{step}" for step in steps} <= {module for module, _ in COMMANDS}


@pytest.mark.parametrize(("module", "words"), COMMANDS, ids=[f"{m}-{n}" for n, (m, _) in enumerate(COMMANDS)])
def test_every_command_is_there_with_its_options(module: str, words: list[str]) -> None:
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    assert path.is_file()
    # The options of a long command may have a file of their own.
    source = path.read_text(encoding="utf-8")
    beside = re.findall(r"^from (training\.\w+) import", source, re.MULTILINE)
    beside += [
        f"training.{name}" for name in re.findall(r"^from training import (\w+)", source, re.MULTILINE)
    ]
    sources = [path, *(ROOT / Path(*each.split(".")).with_suffix(".py") for each in beside)]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources if source.is_file())
    for option in (word for word in words if word.startswith("--")):
        assert option == "--help" or f'"{option}"' in text, option


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"training.sft": SftSettings, "training.grpo": GrpoSettings}[module], words)
        for module, words in COMMANDS
        if module in ("training.sft", "training.grpo")
    ],
)
def test_every_setting_is_one_that_the_training_knows(kind: type, words: list[str]) -> None:
    assert read_settings(ROOT / words[0], kind, words[1:])


def test_files_that_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / "training" / target).exists(), target


def test_the_table_is_what_the_command_computes() -> None:
    for row in costs.rows(costs.Assumptions(), [1, 8]):
        assert "| " + " | ".join(row) + " |" in README


def test_costs_grow_with_the_work_and_shrink_with_the_gpus() -> None:
    few, many = costs.Assumptions(scans=100), costs.Assumptions(scans=200)
    for compute in (costs.trajectories, lambda a: costs.learning(a, a.turns, 3, 1)):
        assert compute(many) == pytest.approx(2 * compute(few))
    assert costs.learning(many, 1000, 3, 8) < costs.learning(many, 1000, 3, 1) / 4
    # By hand: 25,600 samples of 854 tokens, 6 operations for each of 7.07 billion weights, and the pictures.
    operations = 25_600 * (6 * 7.07e9 * 854 + 2 * 1337 * 0.63e9)
    assert costs.learning(many, many.turns, 3, 1) == pytest.approx(operations / 346e12)
