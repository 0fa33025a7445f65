"""Paired comparison of two arms over the same questions and seeds: the mean difference and its interval.

Both seeds and questions are random samples, so both are resampled (two-way bootstrap, 95 % percentile interval).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 10_000
# Fixed before any run: a difference counts if its whole interval is beyond the margin; "no worse" means that the
# interval stays within it.
MARGINS = {"iou": 0.01, "clicks": 0.05, "false_absence": 0.01}


@dataclass(frozen=True)
class Difference:
    """Arm minus reference: the mean, and the limits of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def difference(arm: np.ndarray, reference: np.ndarray, seed: int = 0) -> Difference:
    """The difference of two (seeds, questions) arrays, NaN for questions that do not count."""
    apart = np.asarray(arm, float) - np.asarray(reference, float)
    apart = apart[:, ~np.isnan(apart).any(axis=0)]
    rng = np.random.default_rng(seed)
    seeds, questions = apart.shape
    means = np.empty(DRAWS)
    for n in range(DRAWS):
        rows = apart[rng.integers(seeds, size=seeds)]
        means[n] = rows[:, rng.integers(questions, size=questions)].mean()
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(apart.mean()), float(low), float(high))


def table(runs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Figure → (seeds, questions) of an arm's runs, all with the same questions in the same order."""
    rows = [run["questions"] for run in runs]

    def values(one: Any) -> np.ndarray:
        return np.array([[one(each) if each["present"] else np.nan for each in run] for run in rows], float)

    return {
        "iou": values(lambda each: each["iou"]),
        "clicks": values(lambda each: each["clicks"]),
        "false_absence": values(lambda each: each["clicks"] == 0 and each["ended"] == "ended"),
    }


def verdict(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The statements of the claim about the arms that were run, and whether each is shown. One seed shows nothing."""
    tables = {arm: table(each) for arm, each in runs.items()}
    lines = []
    for figure, arm, reference in (
        ("iou", "grpo_outcome", "sft"),
        ("iou", "grpo_ours", "grpo_outcome"),
        ("iou", "grpo_ours", "sft"),
        ("clicks", "grpo_ours", "sft"),
        ("false_absence", "grpo_ours", "sft"),
    ):
        if not {arm, reference} <= runs.keys():
            continue
        found = difference(tables[arm][figure], tables[reference][figure])
        if figure == "iou":
            claim, holds = f"IoU of {arm} above {reference}", found.low > MARGINS[figure]
        else:
            claim, holds = f"{figure} of {arm} not above {reference}", found.high <= MARGINS[figure]
        shown = "not shown" if not holds else "shown" if len(runs[arm]) > 1 else "not shown by one seed"
        lines.append(f"{claim}: {shown}, {found}")
    return lines
