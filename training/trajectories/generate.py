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
from ibis_agent.cases.case import Problem
from ibis_agent.cases.cases import refuse, tally
from ibis_agent.errors import InputError
from ibis_agent.files import atomic_write, check_writable_folder, write_json
from tqdm import tqdm

from training.common.commands import ending
from training.common.pictures import Group
from training.common.run_folder import same_run
from training.trajectories.options import arguments, groups_for, work_of
from training.trajectories.parts import Work, do_all, load_segmenter, read_parts

NAME = "trajectories.jsonl"


class Turn(TypedDict):
    """One turn: what the policy saw and what it is to write.

    The mask before is what lies over the picture (run-length text of ibis_agent.mask.masks); `x`, `y`, `positive`
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
            remedy="Make it: python -m training.trajectories.",
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
        if key not in ("out", "segmenter", "device", "root")
    }
    cases = [[case.id, sorted(case.labels.items())] for group in groups for case in group.cases]
    cases += [[group.key, []] for group in groups if group.phantom is not None]
    listed = hashlib.sha256(json.dumps(cases).encode()).hexdigest()
    facts = {"segmenter": identity, "cases": listed}
    same_run(work.out / "options.json", json.loads(json.dumps(options)), facts)


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


def main() -> None:
    args = arguments(__doc__).parse_args()
    with ending("stopped; the same command goes on from here"):
        work = work_of(args)
        groups, problems = groups_for(args)
        report = make(work, groups, problems, args.workers, args.strict)
    for problem in report["problems"]["each"]:
        print(f"{problem['kind']}: {problem['case']}: {problem['text']}", file=sys.stderr)
    print(
        f"{report.get('questions', 0)} questions about {report.get('pictures', 0)} pictures, "
        f"{report.get('turns', 0)} turns, {report.get('absent', 0)} of what is not there, "
        f"{sum(report['mistakes'].values())} with a mistake; {report['left_out']['count']} left out, "
        f"{report['problems']['count']} problems: {args.out / 'report.json'}"
    )
    if not report.get("questions"):
        raise SystemExit("error: no question came of it; the report says why")
