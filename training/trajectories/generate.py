"""Make trajectories for training: a simulated expert's clicks on labelled pictures, written as policy replies.

    python -m training.trajectories SOURCE --out DIR            # a folder or manifest, see ibis_agent.cases.cases
    python -m training.trajectories --phantoms 500 --seed 1 --out DIR
    python -m training.trajectories SOURCE --out DIR --mistake-share 0.3 --workers 8

DIR gets `trajectories.jsonl` (one question about one picture per line, see `Sample`), the pictures without masks,
`published.json` (the published generator's format plus the sign of clicks), with --ours an ibis-trajectory/1 file for
each, and `report.json` with statistics, what was left out and problems in the data.

A run stopped by Ctrl-C or a kill resumes with the same command and ends with the same files. The same options and seed
give the same files with any number of workers on the same machine. A finished folder is kept, and only scans added to
SOURCE since are appended. `--shard 2/8` does one of eight parts, on any machine that sees DIR; the last part to end
merges them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock
from ibis_agent.cases.case import Problem
from ibis_agent.cases.cases import refuse
from ibis_agent.errors import InputError
from ibis_agent.files import check_writable_folder
from tqdm import tqdm

from training.common.commands import RESUMABLE, ending
from training.common.pictures import Group
from training.common.processes import Shard
from training.common.run_folder import same_run
from training.trajectories import folder
from training.trajectories.folder import NAME
from training.trajectories.options import arguments, groups_for, work_of
from training.trajectories.parts import Work, do_all, is_done, load_segmenter
from training.trajectories.turns import Turn


class _Asked(TypedDict):
    id: str
    image: str
    height: int
    width: int
    structure: str
    question: str
    target_rle: str
    turns: list[Turn]


class Sample(_Asked, total=False):
    """One question about one picture.

    `image` is relative to the folder. `target_rle` is empty if the structure is absent. `scan` is a digest of the
    scan's voxels; folders of older versions lack it.
    """

    scan: str


def read_trajectories(source: Path) -> Iterator[Sample]:
    """The samples of a folder made by this command, in order. Raises InputError."""
    path = Path(source) / NAME
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    sample = json.loads(line)
                except ValueError as error:
                    raise InputError(f"line {number} is not JSON", file=path, value=error) from error
                if not isinstance(sample, dict) or Sample.__required_keys__ - set(sample):
                    raise InputError(f"line {number} is not a trajectory", file=path)
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
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Make the trajectories of all groups, or resume, and return the report.

    A finished folder is kept; groups that it does not have yet are appended. With a `shard`, only its groups are
    done, and the report is empty until the last shard merges all of them. After KeyboardInterrupt the same call
    resumes. segmenter: one already loaded (worker processes load their own).

    Raises InputError for a folder of another run or a segmenter without boxes, and with `strict` for any problem.
    """
    if strict:
        refuse(problems)
    out, shard = check_writable_folder(work.out), shard or Shard()
    segmenter = segmenter or load_segmenter(work)
    if (work.recipe.box_share or work.recipe.box_later) and not segmenter.can.boxes:
        raise InputError(
            "the segmenter does not accept boxes",
            value=segmenter.identity.get("name"),
            remedy="Leave out --box-share and --box-later, or choose another --segmenter.",
        )
    with FileLock(out / ".lock"):
        _same_run(work, segmenter.identity)
        numbers = folder.numbered(out, groups)
    done = folder.finished(out, len(numbers))
    if done is not None:
        print(f"{out} is already finished", file=sys.stderr)
        return done
    check_writable_folder(out / "parts")
    check_writable_folder(out / "pictures")
    merged = folder.merged(out)
    mine = [(number, group) for number, group in numbers if number >= merged and shard.has(number)]
    begun = time.perf_counter()
    with tqdm(total=0, desc="pictures", unit="picture", mininterval=1, smoothing=0.05) as progress:
        do_all(work, mine, workers, segmenter, progress)
        made = progress.n
    seconds = time.perf_counter() - begun
    print(f"{made} pictures in {seconds:.0f} s, {made / max(seconds, 1e-9):.2f} per second", file=sys.stderr)
    with FileLock(out / ".lock"):
        done = folder.finished(out, len(numbers))
        if done is not None:  # by another shard
            return done
        missing = sum(not is_done(out, number) for number, _ in numbers if number >= merged)
        if missing:
            print(
                f"part {shard.number} of {shard.count} is done; {missing} scans of other parts are not",
                file=sys.stderr,
            )
            return {}
        return folder.merge(out, len(numbers), problems, segmenter.identity, strict)


def _same_run(work: Work, identity: dict[str, str]) -> None:
    """Raises InputError for a folder begun with other options."""
    options = {
        key: value
        for key, value in dataclasses.asdict(work).items()
        if key not in ("out", "segmenter", "device", "root", "store")
    }
    recipe = options["recipe"]
    if not recipe["box_share"] and not recipe["box_later"]:  # as older versions wrote them
        options["recipe"] = {key: value for key, value in recipe.items() if not key.startswith("box_")}
    same_run(work.out / "options.json", json.loads(json.dumps(options)), {"segmenter": identity})


def main() -> None:
    with ending(RESUMABLE):
        args = arguments(__doc__).parse_args()
        work = work_of(args)
        groups, problems = groups_for(args)
        report = make(work, groups, problems, args.workers, args.strict, shard=args.shard)
    if not report:
        return
    for problem in report["problems"]["each"]:
        print(f"{problem['kind']}: {problem['case']}: {problem['text']}", file=sys.stderr)
    print(
        f"{report.get('questions', 0)} questions about {report.get('pictures', 0)} pictures, "
        f"{report.get('turns', 0)} turns, {report.get('absent', 0)} about absent structures, "
        f"{sum(report['mistakes'].values())} with a mistake; {report['left_out']['count']} left out, "
        f"{report['problems']['count']} problems: {args.out / 'report.json'}"
    )
    if not report.get("questions"):
        raise SystemExit("error: no trajectory was made; the report says why")
