"""Evaluate volume runs: 3D Dice of propagation from one oracle click, and of the agent.

Used by training.evaluate (`--phantom-volumes`, `--lesion-volumes`). Propagation starts on the slice where the structure
is largest, with one click at its deepest point. The agent is evaluated twice in one run: after propagation, and after
its second looks. A structure that it does not find has Dice 0.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import dice
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Policy
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Follow, Settings
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import Stack, stack_of
from ibis_agent.segmenter.contract import Segmenter
from tqdm import tqdm

from training.phantoms.phantom import STRUCTURES, make_volume
from training.trajectories.clicks import next_click

ORGANS = tuple(name for name in STRUCTURES if name != "lesion")
WINDOW = (-160.0, 240.0)
SPACING = (2.5, 2.5, 5.0)
SMALLEST_ML = 5.0


def phantom_scan(seed: int) -> tuple[Scan, dict[str, np.ndarray]]:
    """A phantom's scan, and the (I, J, K) bool masks of its organs of at least SMALLEST_ML."""
    made = make_volume(seed, SPACING)
    name = f"phantom-{seed}"
    scan = Scan(made.hu, made.affine, "volume", Path(f"{name}.nii.gz"), name, "CT")
    voxel_ml = float(np.prod(SPACING)) / 1000
    organs = {n: made.masks[n] for n in ORGANS if made.masks[n].sum() * voxel_ml >= SMALLEST_ML}
    return scan, organs


def oracle_propagation(
    stack: Stack, truth: np.ndarray, segmenter: Segmenter, key: int | None = None, follow: Follow = "auto"
) -> float:
    """3D Dice after one click at the deepest point of slice `key`, propagated both ways.

    truth: (I, J, K) bool. key: None for the slice with the largest area. Raises InputError for an empty slice.
    """
    axis = stack.geometry(stack.first).axis
    if key is None:
        key = int(truth.sum(tuple(each for each in range(3) if each != axis)).argmax())
    run = Run(stack, "oracle", None, segmenter, Settings(follow=follow))
    click = next_click(None, stack.geometry(key).extract(truth))
    if click is None:
        raise InputError("there is nothing to segment", file=stack.scan.path)
    run.click(key, click)
    run.grow()
    return float(dice(run.volume() != 0, truth))


def agent_alone(
    stack: Stack, question: str, truth: np.ndarray, policy: Policy, segmenter: Segmenter, limits: Settings
) -> dict[str, float]:
    """3D Dice after propagation ("dsc_without_second_looks") and at the end ("dsc"), and the number of looks."""
    run = Run(stack, question, policy, segmenter, limits)
    while run.stage in ("look", "work", "grow") and run.status == "ready":
        run.step()
    before = float(dice(run.volume() != 0, truth))
    while run.stage == "review" and run.status == "ready":
        run.step()
    return {
        "dsc": float(dice(run.volume() != 0, truth)),
        "dsc_without_second_looks": before,
        "looks": float(run.looks),
    }


def measure_phantoms(
    count: int, seed: int, policy: Policy | None, segmenter: Segmenter, limits: Settings | None = None
) -> dict[str, Any]:
    """Figures over `count` phantoms and all their organs; without a policy, of propagation only."""
    limits = limits or Settings()
    spread: dict[str, list[float]] = {}
    agent: list[dict[str, Any]] = []
    for n in tqdm(range(count), desc="volumes", mininterval=2):
        scan, organs = phantom_scan(seed * 100_000 + n)
        card = policy.card if policy else ModelCard(orientation=Orientation.RADIOLOGICAL)
        stack = stack_of(scan, "axial", WINDOW, card.orientation, frame=card.frame)
        for name, truth in organs.items():
            spread.setdefault(name, []).append(
                oracle_propagation(stack, truth, segmenter, follow=limits.follow)
            )
            if policy is not None:
                row = agent_alone(stack, f"Segment the {name}", truth, policy, segmenter, limits)
                agent.append({"volume": scan.name, "structure": name, **row})
    every = [each for values in spread.values() for each in values]
    result: dict[str, Any] = {
        "propagation": {
            "dsc": _mean(every),
            "per_structure": {name: _mean(values) for name, values in spread.items()},
        }
    }
    if agent:
        keys = ("dsc", "dsc_without_second_looks", "looks")
        result["agent"] = {
            **{key: _mean([row[key] for row in agent]) for key in keys},
            "per_structure": {
                name: {key: _mean([row[key] for row in agent if row["structure"] == name]) for key in keys}
                for name in spread
            },
            "limits": dataclasses.asdict(limits),
        }
    return result


def measure_lesions(files: list[Path], segmenter: Segmenter, follow: Follow = "auto") -> dict[str, float]:
    """File stem → 3D Dice of one oracle click on the middle slice of the lesion, propagated both ways.

    files: MedSAM2-style `.npz` with `imgs` (K, H, W) uint8 and `gts` of the same shape. Raises InputError.
    """
    found = {}
    for file in files:
        scan = load_scan(file)
        with np.load(file) as held:
            if "gts" not in held:
                raise InputError("contains no ground truth", file=file, remedy="Give a file with gts.")
            truth = (np.asarray(held["gts"]) != 0).transpose()
        if truth.shape != scan.voxels.shape:
            raise InputError("truth and scan differ in size", file=file, value=truth.shape)
        shown = np.flatnonzero(truth.any((0, 1)))
        # The slices of such a file are along its last axis, whatever the orientation.
        middle = int(shown[len(shown) // 2])
        found[file.stem] = oracle_propagation(stack_of(scan, "z"), truth, segmenter, middle, follow)
    return found


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
