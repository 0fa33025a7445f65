"""Cut the pictures of scans and keep them on disk for trajectories, GRPO and evaluation.

    python -m training.store SCANS --out build/store --workers 8
    python -m training.store SCANS --out build/store --shard 2/8      # reads every eighth scan, on any machine

Those commands do it themselves with --store (GRPO: tasks.store); this command does it ahead of time with many
processes. Give it the same options: pictures for other options are cut again. The format is described in
training/common/store.py.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from ibis_agent.cases.cases import read_cases
from ibis_agent.errors import InputError

from training.common.choices import add_choice, choice_of
from training.common.commands import RESUMABLE, command_parser, ending
from training.common.pictures import groups_of
from training.common.processes import Shard
from training.common.store import fill
from training.evaluation.sources import SMALLEST


def main() -> None:
    parser = command_parser("store", __doc__)
    parser.add_argument("source", type=Path, help="a folder or manifest of cases, see ibis_agent.cases")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", type=Path, help="JSON with the names of the label values")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--shard", type=Shard.parse, default=Shard(), metavar="I/N", help="do part I of N")
    add_choice(parser)
    parser.add_argument(
        "--for-evaluation", action="store_true", help="choose structures as training.evaluate does"
    )
    with ending(RESUMABLE):
        args = parser.parse_args()
        if args.workers < 1:
            raise InputError("--workers must be at least 1", value=args.workers)
        choice = choice_of(args)
        if args.for_evaluation:
            choice = dataclasses.replace(choice, least_area=SMALLEST)
        cases, problems = read_cases(args.source, args.names)
        groups = groups_of(cases)
        mine = [groups[n] for n in args.shard.indices(len(groups))]
        pictures, scans, more = fill(mine, choice, args.out, args.workers)
    for problem in [*problems, *more]:
        print(f"{problem.kind}: {problem}", file=sys.stderr)
    print(f"{args.out}: {pictures} pictures of {scans} scans ({len(groups)} in total)")


if __name__ == "__main__":
    main()
