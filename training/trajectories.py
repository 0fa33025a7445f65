"""Trajectories to learn from: an expert's clicks on pictures whose truth is known, as a policy would write them.

    python -m training.trajectories SOURCE --out DIR            # a folder or a manifest, see training/cases.py
    python -m training.trajectories --phantoms 500 --seed 1 --out DIR
    python -m training.trajectories SOURCE --out DIR --mistake-share 0.3 --workers 8

DIR gets `trajectories.jsonl` (one question about one picture a line, see `Sample`), the pictures without any
mask on them, `published.json` (the published generator's format, with the click's sign), with --ours a file of
our own trajectory form for each, and `report.json`: what came of it and what was wrong with the data, by name.

A run that was stopped, by Ctrl-C or a kill, goes on with the same command and ends with the same files as one
left alone. The same options and seed give the same files, with any number of workers on the same machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from ibis_agent.errors import IbisError, InputError
from ibis_agent.files import atomic_write, check_writable_folder, write_json
from ibis_agent.geometry import PLANES, Orientation
from ibis_agent.model_card import load_card
from ibis_agent.picture import check_window
from ibis_agent.record import read_json
from tqdm import tqdm

from training import templates
from training.cases import Problem, read_cases, refuse, tally
from training.expert import Recipe
from training.pictures import Choice, Group, groups_of, phantom_groups
from training.questions import NEVER_PRESENT
from training.trajectory_parts import STOPPED, Work, do_all, load_segmenter, read_parts
from training.wrong_clicks import KINDS

NAME = "trajectories.jsonl"


class Turn(TypedDict):
    """One turn: what the policy saw and what it is to write.

    The mask before is what lies over the picture (run-length text of ibis_agent.masks); `x`, `y`, `positive`
    of a click, `answer` of an end; `reply` is the whole text. `learn` is false for a deliberate mistake, whose
    kind `mistake` tells: it carries no loss, its recovery does.
    """

    number: int
    mask_before_rle: str
    iou_before: float
    kind: Literal["click", "terminate"]
    x: float | None
    y: float | None
    positive: bool | None
    answer: str | None
    thinking: str
    reply: str
    learn: bool
    mistake: Literal["beside", "neighbour", "sign", "repeat"] | None
    iou_after: float


class Sample(TypedDict):
    """One question about one picture. `image` is relative to the folder; an empty target is not there."""

    id: str
    image: str
    height: int
    width: int
    structure: str
    question: str
    target_rle: str
    turns: list[Turn]


def read_trajectories(folder: Path) -> Iterator[Sample]:
    """The samples of a folder that this command filled, in their order. Raises InputError."""
    path = Path(folder) / NAME
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    sample = json.loads(line)
                except ValueError as error:
                    raise InputError(f"line {number} is not JSON", file=path, value=error) from error
                if not isinstance(sample, dict) or set(Sample.__annotations__) - set(sample):
                    raise InputError(f"line {number} is no question about a picture", file=path)
                yield sample  # type: ignore[misc]
    except OSError as error:
        raise InputError(
            "cannot be read",
            file=path,
            value=error.strerror,
            mend="Make it: python -m training.trajectories.",
        ) from error


def make(
    work: Work,
    groups: Sequence[Group],
    problems: Sequence[Problem],
    workers: int = 1,
    strict: bool = False,
    segmenter: Any = None,
) -> dict[str, Any]:
    """Make the trajectories of all groups, or go on making them, and return the report.

    Raises InputError for a folder that holds another run's, and with `strict` for the first problem;
    KeyboardInterrupt leaves everything so that the same call goes on. segmenter: one that is loaded already
    (other processes load their own).
    """
    if strict:
        refuse(problems)
    out = check_writable_folder(work.out)
    check_writable_folder(out / "parts")
    check_writable_folder(out / "pictures")
    segmenter = segmenter or load_segmenter(work)
    _same_run(work, groups, segmenter.identity)
    begun = time.perf_counter()
    with tqdm(total=0, desc="pictures", unit="picture", mininterval=1, smoothing=0.05) as progress:
        do_all(work, groups, workers, segmenter, progress)
        made = progress.n
    seconds = time.perf_counter() - begun
    report = _merge(work, groups, list(problems), segmenter.identity, strict)
    shutil.rmtree(out / "parts")
    print(f"{made} pictures in {seconds:.0f} s, {made / max(seconds, 1e-9):.2f} a second", file=sys.stderr)
    return report


def _same_run(work: Work, groups: Sequence[Group], identity: dict[str, str]) -> None:
    """Refuse a folder that other options began."""
    options = {
        key: value
        for key, value in dataclasses.asdict(work).items()
        if key not in ("out", "segmenter", "device")
    }
    cases = [[case.id, sorted(case.labels.items())] for group in groups for case in group.cases]
    cases += [[group.key, []] for group in groups if group.phantom is not None]
    listed = hashlib.sha256(json.dumps(cases).encode()).hexdigest()
    now = json.loads(json.dumps({"options": options, "segmenter": identity, "cases": listed}))
    path = work.out / "options.json"
    if not path.exists():
        write_json(path, now)
    elif (before := read_json(path)) != now:
        changed = [
            key
            for key in {**now["options"], **before.get("options", {})}
            if now["options"].get(key) != before.get("options", {}).get(key)
        ]
        changed += [key for key in ("segmenter", "cases") if now[key] != before.get(key)]
        raise InputError(
            "the folder holds trajectories that were made with other options",
            file=work.out,
            value=", ".join(changed),
            mend="Choose another folder, or remove it.",
        )


def _merge(
    work: Work, groups: Sequence[Group], problems: list[Problem], identity: dict[str, str], strict: bool
) -> dict[str, Any]:
    """All parts as the final files. Every question is written once, in the order of the groups."""
    counts: Counter[str] = Counter()
    mistakes: Counter[str] = Counter()
    clicks: dict[str, list[int]] = defaultdict(list)
    ious: dict[str, list[float]] = defaultdict(list)
    left_out: list[dict[str, str]] = []
    with atomic_write(work.out / NAME) as lines, atomic_write(work.out / "published.json") as published:
        with (
            lines.open("w", encoding="utf-8") as line_file,
            published.open("w", encoding="utf-8") as json_file,
        ):
            begun = False
            for number in range(len(groups)):
                for part in read_parts(work.out, number):
                    problems += [Problem(**each) for each in part["problems"]]
                    left_out += part.get("left_out", [])
                    counts["pictures"] += bool(part.get("samples"))
                    for sample in part.get("samples", []):
                        line_file.write(json.dumps(sample, ensure_ascii=False) + "\n")
                        _count(sample, counts, mistakes, clicks, ious)
                    for each in part.get("published", []):
                        counts["without_published_form"] += each is None
                        if each is not None:
                            json_file.write(
                                (",\n" if begun else "[\n") + json.dumps(each, ensure_ascii=False)
                            )
                            begun = True
            json_file.write("\n]\n" if begun else "[]\n")
        if strict:
            refuse(problems)
    report = {
        **counts,
        "mistakes": dict(sorted(mistakes.items())),
        "structures": {
            name: {
                "questions": len(clicks[name]),
                "clicks_mean": round(float(np.mean(clicks[name])), 3),
                "iou_mean": round(float(np.mean(ious[name])), 4),
            }
            for name in sorted(clicks)
        },
        "left_out": {"count": len(left_out), "each": left_out},
        "problems": tally(problems),
        "segmenter": identity,
    }
    write_json(work.out / "report.json", report)
    return report


def _count(sample: Any, counts: Any, mistakes: Any, clicks: Any, ious: Any) -> None:
    turns = sample["turns"]
    counts["questions"] += 1
    counts["turns"] += len(turns)
    mistakes.update(turn["mistake"] for turn in turns if turn["mistake"])
    if sample["target_rle"]:
        clicks[sample["structure"]].append(sum(turn["kind"] == "click" for turn in turns))
        ious[sample["structure"]].append(turns[-1]["iou_after"])
    else:
        counts["absent"] += 1


# ---- command ---------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.trajectories",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, nargs="?", help="a folder, a .csv or a .json manifest")
    add("--out", type=Path, required=True)
    add("--phantoms", type=int, help="so many phantom pictures instead of a source")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1)
    add("--names", type=Path, help="JSON: the names of the masks' values")
    add("--strict", action="store_true", help="refuse bad data instead of skipping it")
    add("--image", type=Path, help="a single scan or picture, with --mask (and --names) instead of a source")
    add("--mask", type=Path)
    which = parser.add_argument_group("which pictures and structures").add_argument
    which("--planes", "--slice-axis", nargs="+", default=["axial"], choices=[*PLANES, *"xyz"])
    which("--slices", "--slice-idx", default="shown", help='"shown", "all", or numbers such as 12,14,16')
    which("--every", type=int, default=1, help="only every so manieth of these slices")
    which("--per-plane", type=int, default=0, help="at most so many slices of a scan, evenly spread")
    which("--structures", nargs="+", default=[], help="names; default: all")
    which("--mask-value", type=int, nargs="+", default=[], help="values of the masks; default: all")
    which("--per-picture", type=int, default=0, help="structures of a picture, at random; default: all")
    which("--least-area", type=float, default=0.001, help="share of the picture that a structure covers")
    which("--reverse-mask", action="store_true", help="masks of pictures show the structure in black")
    which("--window-min", type=float)
    which("--window-max", type=float)
    which("--orientation", choices=[each.value for each in Orientation])
    which("--card", type=Path, help="a policy's folder: its orientation and window")
    which("--absent-share", type=float, default=0.1, help="share of questions about what is not there")
    which("--absent", nargs="*", default=None, help="names that no picture shows, for such questions")
    which("--question", default="", help='such as "Segment the {structure}"; default: many wordings')
    how = parser.add_argument_group("how the expert works").add_argument
    how("--iou-threshold", type=float, default=0.8)
    how("--max-steps", type=int, default=20)
    how("--unfinished", choices=("best", "keep", "drop"), default="best", help="runs below the threshold")
    how("--least-iou", type=float, default=0.5, help="with best: of the mask it ends with")
    how("--patience", type=int, default=3, help="clicks without a better mask; 0: no limit")
    how("--repeats", action="store_true", help="click the same place again, as published")
    how("--as-published", action="store_true", help="--unfinished keep --patience 0 --repeats")
    how("--decimals", type=int, default=4, choices=(2, 3, 4), help="of the coordinates")
    how("--mistake-share", type=float, default=0.0, help="share of questions with one wrong click")
    how("--mistake-kinds", nargs="+", default=list(KINDS), choices=KINDS)
    how("--style", choices=templates.STYLES, default="varied", help="of the thinking")
    how("--ours", action="store_true", help="also write each as ibis-trajectory/1")
    model = parser.add_argument_group("the segmenter").add_argument
    model("--segmenter", "--model-path", type=Path, help="a checkpoint (the demo segmenter)")
    model("--config", help="its architecture, where the checkpoint does not tell")
    model("--device", default="auto")
    return parser


def work_of(args: argparse.Namespace) -> Work:
    """The options, checked. Raises InputError."""
    _check(args)
    window = None
    orientation = Orientation.RADIOLOGICAL.value
    if args.card is not None:
        card = load_card(args.card)
        orientation, window = card.orientation.value, card.window
    if (args.window_min is None) != (args.window_max is None):
        raise InputError("a window has two ends", mend="Give --window-min and --window-max.")
    if args.window_min is not None:
        window = check_window((args.window_min, args.window_max))
    published = args.as_published
    return Work(
        out=args.out,
        choice=Choice(
            planes=tuple(args.planes),
            slices=args.slices,
            every=args.every,
            per_plane=args.per_plane,
            structures=tuple(args.structures),
            mask_values=tuple(args.mask_value),
            least_area=args.least_area,
            orientation=args.orientation or orientation,
            window=window,
            reverse_mask=args.reverse_mask,
        ),
        recipe=Recipe(
            iou_threshold=args.iou_threshold,
            max_steps=args.max_steps,
            unfinished="keep" if published else args.unfinished,
            least_iou=args.least_iou,
            patience=0 if published else args.patience,
            repeats=published or args.repeats,
            decimals=args.decimals,
            mistake_share=args.mistake_share,
            mistake_kinds=tuple(args.mistake_kinds),
            style=args.style,
        ),
        question=args.question,
        per_picture=args.per_picture,
        absent_share=args.absent_share,
        absent=tuple(
            args.absent if args.absent is not None else NEVER_PRESENT if args.phantoms is not None else ()
        ),
        trajectories=args.ours,
        seed=args.seed,
        segmenter=args.segmenter,
        config=args.config,
        device=args.device,
    )


def _check(args: argparse.Namespace) -> None:
    for name, low, high in (
        ("seed", 0, 10**9),
        ("workers", 1, 1024),
        ("every", 1, 10**6),
        ("per_plane", 0, 10**6),
        ("per_picture", 0, 10**6),
        ("least_area", 0.0, 0.9),
        ("absent_share", 0.0, 0.95),
        ("iou_threshold", 0.01, 1.01),
        ("max_steps", 1, 1000),
        ("least_iou", 0.0, 1.0),
        ("patience", 0, 1000),
        ("mistake_share", 0.0, 1.0),
        ("phantoms", 1, 10_000_000),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} must be from {low} to {high}", value=value)
    if args.question and "{structure}" not in args.question:
        raise InputError(
            "--question never names the structure", value=args.question, mend="Put {structure} into it."
        )
    numbers = args.slices.split(",")
    if args.slices not in ("shown", "all") and not all(word.strip().isdigit() for word in numbers):
        raise InputError("--slices must be shown, all, or numbers such as 12,14", value=args.slices)
    sources = [args.source is not None, args.phantoms is not None, args.image is not None]
    if sum(sources) != 1 or (args.image is None) != (args.mask is None):
        raise InputError(
            "nothing to work on, or too much", mend="Give a SOURCE, --phantoms N, or --image with --mask."
        )


def groups_for(args: argparse.Namespace) -> tuple[list[Group], list[Problem]]:
    """What to work on, and what is wrong with the rest. Raises InputError."""
    if args.phantoms is not None:
        return phantom_groups(args.phantoms, args.seed), []
    if args.image is not None:
        from training.case_manifests import single_case

        return groups_of([single_case(args.image, args.mask, args.names)]), []
    cases, problems = read_cases(args.source, args.names)
    return groups_of(cases), problems


def main() -> None:
    args = arguments().parse_args()
    try:
        work = work_of(args)
        groups, problems = groups_for(args)
        report = make(work, groups, problems, args.workers, args.strict)
    except IbisError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    for problem in report["problems"]["each"]:
        print(f"{problem['kind']}: {problem['case']}: {problem['text']}", file=sys.stderr)
    print(
        f"{report.get('questions', 0)} questions about {report.get('pictures', 0)} pictures, "
        f"{report.get('turns', 0)} turns, {report.get('absent', 0)} of what is not there, "
        f"{sum(report['mistakes'].values())} with a mistake; {report['left_out']['count']} left out, "
        f"{report['problems']['count']} problems: {args.out / 'report.json'}"
    )


if __name__ == "__main__":
    main()
