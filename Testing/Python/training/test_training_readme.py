"""training/README.md says what is so: its commands exist with those options, its table is the computed one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from training.bench import costs
from training.common.settings import read_settings
from training.grpo.settings import GrpoSettings
from training.sft.settings import SftSettings

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [
    (module, shlex.split(rest.removesuffix("&").rstrip(), comments=True))
    for module, rest in re.findall(r"-m (?:-- )?(training\.[\w.]+)(.*)", BLOCKS)
]


def test_there_are_commands_for_every_step() -> None:
    steps = {
        "check_cases",
        "trajectories",
        "trajectories.reasoning",
        "sft",
        "sft.merge",
        "grpo",
        "grpo.verl.rows",
        "evaluate",
    }
    assert {f"training.{step}" for step in steps} <= {module for module, _ in COMMANDS}


@pytest.mark.parametrize(("module", "words"), COMMANDS, ids=[f"{m}-{n}" for n, (m, _) in enumerate(COMMANDS)])
def test_every_command_is_there_with_its_options(module: str, words: list[str]) -> None:
    path = ROOT / Path(*module.split("."))
    # A package is a command through its __main__; its options stand in a file beside it.
    files = sorted(path.glob("*.py")) if (path / "__main__.py").is_file() else [path.with_suffix(".py")]
    # What several commands of a package offer alike stands in a file beside them.
    files += sorted(path.parent.glob("*.py")) if path.parent.name != "training" else []
    files += sorted((ROOT / "training" / "common").glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
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
