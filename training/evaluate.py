"""Measure an agent: the published columns (IoU, DSC, F1), clicks, first-click hits, absence, oracle clicks.

    python -m training.evaluate --phantoms 200 --seed 7 --json figures.json
    python -m training.evaluate --scan ct.nii.gz --labels ct_labels.nii.gz --label-names names.json
    python -m training.evaluate --phantom-volumes 10 --seed 7 --json figures.json
    python -m training.evaluate --lesion-volumes lesion_1.npz lesion_2.npz

On phantoms, each picture is asked for `--questions` structures that it shows and one that it does not. A
structure counts as shown from 0.11 % of the picture on; slivers below that are neither asked for nor counted
as absent. "Oracle" is the segmenter alone under simulated clicks (training.clicks). F1 is that of finding:
a mask with IoU ≥ 0.5 is a find, any other mask a false one, any other structure a missed one. An answer
"not there" about a structure that is there scores IoU 0.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.actions import Click
from ibis_agent.episode import Episode, Limits
from ibis_agent.errors import IbisError, InputError
from ibis_agent.masks import dice, iou
from ibis_agent.picture import Picture, PictureGeometry, apply_window, cut
from ibis_agent.policy import LocalPolicy
from ibis_agent.request import demo_policy
from ibis_agent.scan import load_scan
from ibis_agent.segmenter import Segmenter
from tqdm import tqdm

from training.clicks import simulate
from training.phantoms import STRUCTURES, random_slice
from training.questions import question

WINDOW = (-160.0, 240.0)
SMALLEST = 0.0011  # share of the picture
FOUND = 0.5
# The labels of TotalSegmentator that make up our structures.
ORGANS = {
    "liver": ("liver",),
    "spleen": ("spleen",),
    "left kidney": ("kidney_left",),
    "right kidney": ("kidney_right",),
    "aorta": ("aorta",),
    "spine": ("vertebrae",),
    "stomach": ("stomach",),
}


@dataclass
class Case:
    """One picture, the truth of everything it shows, and what is plainly not in it."""

    name: str
    picture: Picture
    truths: dict[str, np.ndarray]
    absent: list[str]


@dataclass
class Outcome:
    """What one question came to."""

    case: str
    structure: str
    present: bool
    iou: float
    dsc: float
    clicks: int
    hit: bool
    said_absent: bool
    unreadable: bool
    seconds: float


def phantom_cases(count: int, seed: int) -> Iterator[Case]:
    """`count` pictures of patients never trained on, as Slicer shows them, in a soft-tissue window."""
    for n in range(count):
        s = random_slice(seed * 100_000 + n, mirrored=False)
        grey = apply_window(s.hu, WINDOW)
        picture = Picture(np.repeat(grey[:, :, None], 3, 2), PictureGeometry.of_picture(*grey.shape), WINDOW)
        yield case_of(f"phantom {seed}-{n}", picture, {k: s.masks[k] for k in STRUCTURES})


def scan_cases(scan_file: Path, label_file: Path, names_file: Path, orientation: Any) -> Iterator[Case]:
    """Every axial slice of a labelled CT."""
    scan, labels = load_scan(scan_file), load_scan(label_file)
    if labels.voxels.shape != scan.voxels.shape:
        raise InputError(
            "labels and scan differ in size",
            file=label_file,
            value=labels.voxels.shape,
            mend=f"They must be {scan.voxels.shape}.",
        )
    names = json.loads(names_file.read_text(encoding="utf-8"))
    numbers = {
        organ: [int(k) for k, v in names.items() if v.startswith(starts)] for organ, starts in ORGANS.items()
    }
    axis = int(np.abs(scan.affine[2, :3]).argmax())
    for index in range(scan.voxels.shape[axis]):
        picture = cut(scan, "axial", index, WINDOW, orientation)
        truth = picture.geometry.extract(labels.voxels)
        yield case_of(f"slice {index}", picture, {o: np.isin(truth, n) for o, n in numbers.items() if n})


def case_of(name: str, picture: Picture, masks: dict[str, np.ndarray]) -> Case:
    """Sort what the picture shows from what it does not."""
    least = SMALLEST * picture.rgb.shape[0] * picture.rgb.shape[1]
    truths = {k: m for k, m in masks.items() if m.sum() >= least}
    return Case(name, picture, truths, [k for k, m in masks.items() if not m.any()])


def ask(
    case: Case, structure: str, wording: str, policy: Any, segmenter: Segmenter, limits: Limits
) -> Outcome:
    """The agent alone, from a question to its end."""
    started = time.perf_counter()
    episode = Episode(case.picture, wording, policy, segmenter, limits)
    episode.run()
    truth = case.truths.get(structure)
    empty = np.zeros(case.picture.rgb.shape[:2], bool)
    clicks = [s.action for s in episode.steps if isinstance(s.action, Click)]
    hit = False
    if truth is not None and clicks:
        height, width = truth.shape
        x, y = clicks[0].x, clicks[0].y
        hit = clicks[0].positive and bool(
            truth[min(height - 1, int(y * height)), min(width - 1, int(x * width))]
        )
    goal = empty if truth is None else truth
    found = episode.mask
    return Outcome(
        case.name,
        structure,
        truth is not None,
        iou(found, goal) if truth is not None else float(not found.any()),
        dice(found, goal) if truth is not None else float(not found.any()),
        len(clicks),
        hit,
        episode.answer is not None and not clicks,
        episode.status == "paused",
        time.perf_counter() - started,
    )


def oracle(case: Case, segmenter: Segmenter, clicks: int = 5) -> dict[str, list[float]]:
    """structure → IoU after 1 … `clicks` simulated clicks; a mask without fault is clicked no further."""
    embedding = segmenter.embed(case.picture.rgb)
    curves = {}
    for name, truth in case.truths.items():
        steps = simulate(segmenter, case.picture.rgb, truth, 1.01, clicks, embedding=embedding)
        ious = [s.iou for s in steps]
        curves[name] = ious + [ious[-1]] * (clicks - len(ious))
    return curves


def summary(outcomes: list[Outcome]) -> dict[str, float]:
    """The figures of the agent."""
    present = [o for o in outcomes if o.present]
    absent = [o for o in outcomes if not o.present]
    finds = sum(o.iou >= FOUND for o in present)
    false = sum(o.clicks > 0 and o.iou < FOUND for o in outcomes)
    missed = len(present) - finds

    def mean(values: list[Any]) -> float:
        return float(np.mean(values)) if values else float("nan")

    figures = {
        "iou": mean([o.iou for o in present]),
        "dsc": mean([o.dsc for o in present]),
        "f1": 2 * finds / max(1, 2 * finds + false + missed),
        "clicks": mean([o.clicks for o in present]),
        "first_click_hit": mean([o.hit for o in present]),
        "absent_recall": mean([o.said_absent for o in absent]),
        "false_absence": mean([o.said_absent for o in present]),
        "unreadable": mean([o.unreadable for o in outcomes]),
        "seconds": mean([o.seconds for o in outcomes]),
        "questions": len(outcomes),
    }
    return {k: v for k, v in figures.items() if not (isinstance(v, float) and np.isnan(v))}


def evaluate(
    cases: Iterator[Case],
    count: int,
    policy: Any,
    segmenter: Segmenter,
    questions: int | None,
    seed: int,
    limits: Limits,
) -> dict[str, Any]:
    """All figures over `cases`; `questions` None asks for everything a picture shows."""
    rng = np.random.default_rng([seed, 11])
    outcomes: list[Outcome] = []
    curves: dict[str, list[list[float]]] = defaultdict(list)
    for case in tqdm(cases, total=count, desc="pictures", mininterval=2):
        for name, curve in oracle(case, segmenter).items():
            curves[name].append(curve)
        if policy is None:
            continue
        shown = list(case.truths)
        if questions is not None:
            shown = [str(n) for n in rng.permutation(shown)[:questions]] if shown else []
        wanted = shown + ([str(rng.choice(case.absent))] if case.absent else [])
        for name in wanted:
            wording = question(name, rng) if questions is not None else f"Segment the {name}"
            outcomes.append(ask(case, name, wording, policy, segmenter, limits))
    every = [c for cs in curves.values() for c in cs]
    result: dict[str, Any] = {"agent": summary(outcomes) if outcomes else {}}
    if every:
        result["oracle"] = {
            "iou_at_1": float(np.mean([c[0] for c in every])),
            "iou_at_5": float(np.mean([c[4] for c in every])),
        }
    result["per_structure"] = {
        name: {
            "pictures": len(curves[name]),
            "oracle_iou_at_1": float(np.mean([c[0] for c in curves[name]])),
            "oracle_iou_at_5": float(np.mean([c[4] for c in curves[name]])),
            **{
                k: v
                for k, v in summary([o for o in outcomes if o.structure == name]).items()
                if k in ("iou", "dsc", "clicks", "first_click_hit", "absent_recall", "false_absence")
            },
        }
        for name in curves
    }
    return result


def print_table(result: dict[str, Any]) -> None:
    """The figures as a table for people."""
    columns = (
        "iou",
        "dsc",
        "first_click_hit",
        "clicks",
        "absent_recall",
        "false_absence",
        "oracle_iou_at_1",
        "oracle_iou_at_5",
    )
    rows = {
        "all": {**result["agent"], **{f"oracle_{k}": v for k, v in result.get("oracle", {}).items()}},
        **result["per_structure"],
    }
    print(f"{'':14}" + "".join(f"{c.replace('_', ' '):>17}" for c in columns))
    for name, row in rows.items():
        print(f"{name:14}" + "".join(f"{row[c]:17.3f}" if c in row else f"{'–':>17}" for c in columns))
    if "f1" in result["agent"]:
        print(
            f"F1 {result['agent']['f1']:.3f}, unreadable {result['agent']['unreadable']:.3f}, "
            f"{result['agent']['seconds']:.2f} s a question, {result['agent']['questions']} questions"
        )


def run_volumes(args: argparse.Namespace) -> None:
    """The command on whole volumes. Raises IbisError."""
    from ibis_agent.volume_run import VolumeLimits

    from training.volumes import measure_lesions, measure_phantoms

    if args.phantoms is not None or args.scan is not None:
        raise InputError("slices and volumes are measured one after the other", mend="Give one of them.")
    if args.phantom_volumes is not None and args.phantom_volumes < 1:
        raise InputError("--phantom-volumes must be at least 1", value=args.phantom_volumes)
    check_seed_and_json(args)
    segmenter = Segmenter.load(args.segmenter, device=args.device)
    result: dict[str, Any] = {}
    policy = None
    if args.phantom_volumes is not None:
        if not args.oracle_only:
            policy = LocalPolicy.load(args.policy or demo_policy(), device=args.device)
        limits = VolumeLimits(episode=Limits(max_turns=args.max_turns), follow=args.follow)
        result = measure_phantoms(args.phantom_volumes, args.seed, policy, segmenter, limits)
    if args.lesion_volumes is not None:
        result["lesions"] = measure_lesions(args.lesion_volumes, segmenter, args.follow)
    result["measured"] = {
        "volumes": f"{args.phantom_volumes or 0} phantoms, seed {args.seed}",
        "policy": policy.identity if policy else None,
        "segmenter": segmenter.identity,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "measured"}, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def check_seed_and_json(args: argparse.Namespace) -> None:
    """Raises InputError before slow work."""
    if not 0 <= args.seed < 10_000:
        raise InputError(
            "--seed must be from 0 to 9999", value=args.seed, mend="Larger ones could meet the training's."
        )
    if args.json is not None and not args.json.resolve().parent.is_dir():
        raise InputError(
            "there is no such folder", file=args.json.resolve().parent, mend="Make it, or choose another."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantoms", type=int, help="how many phantom pictures")
    parser.add_argument(
        "--seed", type=int, default=1, help="which ones; below 10000, where no training seed lies"
    )
    parser.add_argument(
        "--questions", type=int, default=2, help="structures asked for in each phantom picture"
    )
    parser.add_argument("--scan", type=Path, help="a labelled CT instead of phantoms")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--label-names", type=Path, help="JSON: label number → TotalSegmentator's name")
    parser.add_argument("--phantom-volumes", type=int, help="whole phantom patients (see training.volumes)")
    parser.add_argument("--follow", choices=("auto", "memory", "carry"), default="auto")
    parser.add_argument("--lesion-volumes", type=Path, nargs="+", help="MedSAM2-style .npz with imgs and gts")
    parser.add_argument("--policy", type=Path, help="a policy's folder (the demo policy)")
    parser.add_argument("--segmenter", type=Path, help="a checkpoint (the demo segmenter)")
    parser.add_argument("--oracle-only", action="store_true", help="the segmenter alone")
    parser.add_argument("--max-turns", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    try:
        run(args)
    except IbisError as error:
        raise SystemExit(f"error: {error}") from error


def run(args: argparse.Namespace) -> None:
    """The command, once its options are read."""
    if args.phantom_volumes is not None or args.lesion_volumes is not None:
        run_volumes(args)
        return
    if (args.phantoms is None) == (args.scan is None):
        raise InputError(
            "nothing to measure on", mend="Give --phantoms N, or --scan with --labels and --label-names."
        )
    if args.phantoms is not None and args.phantoms < 1:
        raise InputError("--phantoms must be at least 1", value=args.phantoms)
    if args.scan is not None and (args.labels is None or args.label_names is None):
        raise InputError("--scan needs --labels and --label-names", file=args.scan)
    check_seed_and_json(args)
    segmenter = Segmenter.load(args.segmenter, device=args.device)
    policy = None if args.oracle_only else LocalPolicy.load(args.policy or demo_policy(), device=args.device)
    if args.phantoms is not None:
        cases, count, questions = phantom_cases(args.phantoms, args.seed), args.phantoms, args.questions
    else:
        orientation = policy.card.orientation if policy else "radiological"
        cases, questions = scan_cases(args.scan, args.labels, args.label_names, orientation), None
        count = 0
    result = evaluate(cases, count, policy, segmenter, questions, args.seed, Limits(max_turns=args.max_turns))
    result["measured"] = {
        "pictures": f"{args.phantoms} phantoms, seed {args.seed}" if args.phantoms else args.scan.name,
        "policy": policy.identity if policy else None,
        "segmenter": segmenter.identity,
    }
    print_table(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
