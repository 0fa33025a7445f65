"""Evaluate an agent: the published columns (IoU, DSC, F1), clicks, first-click hits, absence, and the segmenter alone
with one and five oracle clicks and with a box.

    python -m training.evaluate --phantoms 200 --seed 7 --json figures.json
    python -m training.evaluate --data FOLDER_OR_MANIFEST --policy DIR --segmenter FILE --out results
    python -m training.evaluate --data FOLDER --out results --shard 2/8      # one of eight such processes
    python -m training.evaluate --data FOLDER --merge results-1 results-2 --out results
    python -m training.evaluate --scan ct.nii.gz --labels ct_labels.nii.gz --label-names names.json
    python -m training.evaluate --phantom-volumes 10 --seed 7 --json figures.json
    python -m training.evaluate --lesion-volumes lesion_1.npz lesion_2.npz

With --out the result of every picture is saved when it is done; a stopped or killed run resumes with the same command
and ends with the same figures. When all pictures are done, the folder gets evaluation.json, table.md and page.html (the
worst answers as pictures); with shards, from the last one to end, or from --merge.

For each phantom, `--questions` present structures and one absent structure are asked for; for other data, all present
structures and one absent one. Structures that cover less than 0.11 % of the picture are neither asked for nor counted
as absent.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.errors import InputError
from ibis_agent.files import check_writable_folder, write_json, write_text
from ibis_agent.policy.card import ModelCard
from ibis_agent.run.episode import Limits
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.picture import check_window
from tqdm import tqdm

from training.common.commands import STOPPED, check_output, command_parser, ending
from training.common.pictures import Choice
from training.common.policy_folder import check_held
from training.common.processes import Shard
from training.evaluation import table
from training.evaluation.figures import figures
from training.evaluation.measure import Measures, Row, measure
from training.evaluation.page import page
from training.evaluation.rows import RowStore, check_same, is_done, merged, read_rows, read_settings
from training.evaluation.sources import (
    MOST_PHANTOMS,
    SMALLEST,
    LabelledData,
    Phantoms,
    Pictures,
    labelled_data,
    labelled_scan,
)

_STORE = "store"  # in --out


def options() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", __doc__)
    what = parser.add_argument_group("what to evaluate on (one of these)")
    what.add_argument("--phantoms", type=int, metavar="N", help="N phantom pictures")
    what.add_argument("--data", type=Path, help="a folder or manifest of cases, see ibis_agent.cases.cases")
    what.add_argument("--scan", type=Path, help="a labelled CT, with --labels and --label-names")
    what.add_argument("--phantom-volumes", type=int, metavar="N", help="N phantom patients, in 3D")
    what.add_argument("--lesion-volumes", type=Path, nargs="+", help="MedSAM2-style .npz with imgs and gts")
    more = parser.add_argument_group("details")
    more.add_argument("--seed", type=int, default=1, help="0 to 9999, which no training uses (1)")
    more.add_argument(
        "--questions", type=int, help="structures asked for per picture (phantoms: 2, else all)"
    )
    more.add_argument("--labels", type=Path, help="labels of --scan")
    more.add_argument("--label-names", type=Path, help="JSON: label value → name, for --scan or --data")
    more.add_argument("--plane", default="axial", help="plane of the slices of --data (axial)")
    more.add_argument(
        "--per-volume",
        type=int,
        default=8,
        help="slices of each volume of --data, 0 for all with a structure (8)",
    )
    more.add_argument(
        "--store",
        type=Path,
        help="a folder that keeps the pictures of --data, see training.store (with --shard: OUT/store)",
    )
    more.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="grey values shown as black and white, for --data",
    )
    more.add_argument(
        "--bad", choices=("skip", "refuse"), default="skip", help="what to do with bad data in --data (skip)"
    )
    more.add_argument(
        "--follow",
        choices=("auto", "memory", "linked", "carry"),
        default="auto",
        help="how masks are propagated in volumes",
    )
    more.add_argument("--seen", action="store_true", help="allow scans that the policy was trained on")
    agent = parser.add_argument_group("the agent")
    agent.add_argument("--policy", type=Path, help="a policy folder (default: the demo policy)")
    agent.add_argument("--segmenter", type=Path, help="a checkpoint (default: the demo segmenter)")
    agent.add_argument("--segmenter-config", help="its architecture, if the checkpoint does not say")
    agent.add_argument("--oracle-only", action="store_true", help="evaluate only the segmenter")
    agent.add_argument("--max-turns", type=int, default=8)
    agent.add_argument("--device", default="auto")
    agent.add_argument("--precision", default="auto", help="precision of the policy")
    out = parser.add_argument_group("results")
    out.add_argument("--json", type=Path, help="write the figures to this file")
    out.add_argument("--out", type=Path, help="save results here: rows, table and page")
    out.add_argument("--shard", type=Shard.parse, default=Shard(), metavar="I/N", help="do only part I of N")
    out.add_argument("--merge", type=Path, nargs="+", metavar="DIR", help="merge the --out folders of shards")
    out.add_argument("--worst", type=int, default=24, help="number of answers shown on the page (24)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    with ending("\nStopped."):
        args = options().parse_args(arguments)
        check(args)
        if args.phantom_volumes is not None or args.lesion_volumes is not None:
            from training.evaluation.volume_command import run_volumes

            run_volumes(args)
            return 0
        return merge(args) if args.merge else run(args)


def check(args: argparse.Namespace) -> None:
    """Check the options without reading any data. Raises InputError."""
    chosen = [args.phantoms, args.data, args.scan]
    volumes = args.phantom_volumes is not None or args.lesion_volumes is not None
    if sum(each is not None for each in chosen) + volumes != 1:
        raise InputError(
            "exactly one source is needed",
            remedy="Give --phantoms N, --data, --scan with --labels and --label-names, or volumes.",
        )
    for name in ("phantoms", "phantom_volumes", "questions", "max_turns"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1", value=value)
    if volumes and (args.out is not None or args.merge or args.shard.count > 1):
        raise InputError("volumes have no --out, --shard or --merge", remedy="Give --json instead.")
    if args.phantoms is not None and args.phantoms > MOST_PHANTOMS:
        raise InputError(f"a seed has at most {MOST_PHANTOMS} phantoms", value=args.phantoms)
    for name in ("per_volume", "worst"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} cannot be negative", value=getattr(args, name))
    if args.scan is not None and (args.labels is None or args.label_names is None):
        raise InputError("--scan needs --labels and --label-names", file=args.scan)
    if args.window is not None:
        check_window(args.window)
    if not 0 <= args.seed < 10_000:
        raise InputError(
            "--seed must be from 0 to 9999", value=args.seed, remedy="Larger ones are used for training."
        )
    if (args.shard.count > 1 or args.merge) and args.out is None:
        raise InputError("shards need a folder for their results", remedy="Give --out.")
    check_output(args.json)


def run(args: argparse.Namespace) -> int:
    """Evaluate the remaining pictures, and write the results when all are done. Raises IbisError."""
    if args.out is not None:
        check_writable_folder(args.out)
    pictures = pictures_of(args)
    segmenter = segmenters.open(args.segmenter, args.segmenter_config, args.device)
    policy = None
    if not args.oracle_only:
        if args.policy is not None and isinstance(pictures, LabelledData) and not args.seen:
            check_held(args.policy, pictures.scans, remedy="Evaluate on other patients, or add --seen.")
        policy = policies.open(args.policy, args.device, args.precision)
    how = measures_of(args, pictures)
    settings = settings_of(pictures, how, policy.identity if policy else None, segmenter.identity)
    with RowStore(args.out, settings, args.shard) as store:
        mine = args.shard.indices(len(pictures))
        todo = [index for index in mine if not is_done(store.rows.get(index))]
        progress = tqdm(todo, total=len(mine), initial=len(mine) - len(todo), desc="pictures", mininterval=2)
        try:
            for index in progress:
                try:
                    row = measure(pictures, index, policy, segmenter, how)
                except InputError as error:
                    row = {"index": index, "name": pictures.name(index), "problem": str(error)}
                store.add(row)
        except KeyboardInterrupt:
            progress.close()
            return stopped(args, pictures, settings, store.rows)
        return finish(args, pictures, settings, store.rows)


def merge(args: argparse.Namespace) -> int:
    """Merge the results of several folders into --out. Raises IbisError."""
    pictures = pictures_of(args)
    settings = read_settings(args.merge[0])
    check_same({**settings, "source": pictures.identity}, settings, args.merge[0])
    rows = merged(args.merge, len(pictures))
    with RowStore(args.out, settings, Shard()) as store:
        for index, row in rows.items():
            if not is_done(store.rows.get(index)):
                store.add(row)
    return finish(args, pictures, settings, rows)


def pictures_of(args: argparse.Namespace) -> Pictures:
    """The pictures to evaluate on. Raises InputError."""
    if args.oracle_only:
        card = ModelCard(name="none", orientation=Orientation.RADIOLOGICAL)
    else:
        card = policies.find(args.policy).card
    if args.phantoms is not None:
        return Phantoms(args.phantoms, args.seed, card.frame)
    if args.scan is not None:
        return labelled_scan(args.scan, args.labels, args.label_names, card)
    window = None if args.window is None else check_window(args.window)
    choice = Choice(
        planes=(args.plane,),
        per_plane=args.per_volume,
        least_area=SMALLEST,
        orientation=card.orientation.value,
        window=window,
        card_window=card.window,
        frame=card.frame,
    )
    store = args.store
    if store is None and args.shard.count > 1:  # otherwise every shard would read all scans
        store = args.out / _STORE
    if store is None and args.merge:  # what the shards have read is not read again
        there = (folder / _STORE for folder in (args.out, *args.merge))
        store = next((folder for folder in there if folder.is_dir()), None)
    return labelled_data(args.data, args.label_names, choice, args.bad == "refuse", store, args.shard)


def measures_of(args: argparse.Namespace, pictures: Pictures) -> Measures:
    questions = pictures.questions if args.questions is None else args.questions
    return Measures(questions, args.seed, Limits(max_turns=args.max_turns))


def settings_of(
    pictures: Pictures, how: Measures, policy: dict[str, str] | None, segmenter: dict[str, str]
) -> dict[str, Any]:
    """The settings that all rows of an evaluation share, as JSON values."""
    return {
        "source": pictures.identity,
        "questions": how.questions,
        "seed": how.seed,
        "max_turns": how.limits.max_turns,
        "policy": policy,
        "segmenter": segmenter,
    }


def results(
    args: argparse.Namespace, pictures: Pictures, settings: dict[str, Any], rows: dict[int, Row]
) -> dict[str, Any]:
    """The figures, with the pictures and models they are for."""
    result = figures([row for _, row in sorted(rows.items())])
    result["bad"] = [{"name": each.case, "problem": each.text} for each in pictures.problems] + result["bad"]
    if args.phantoms is not None:
        on = f"{args.phantoms} phantoms, seed {args.seed}"
    else:
        on = f"{(args.scan or args.data).name}, {len(pictures)} pictures"
    result["measured"] = {"pictures": on, **{key: settings[key] for key in ("policy", "segmenter")}}
    return result


def finish(
    args: argparse.Namespace, pictures: Pictures, settings: dict[str, Any], rows: dict[int, Row]
) -> int:
    """Print the results, and write them if every picture is done."""
    if args.out is not None:
        rows = read_rows(args.out)  # including those of other shards
    result = results(args, pictures, settings, rows)
    print(table.text(result))
    if len(rows) < len(pictures):
        print(f"\n{len(rows)} of {len(pictures)} pictures are done; the rest belong to other shards.")
        return 0
    if args.json is not None:
        write_json(args.json, result)
    if args.out is not None:
        write_json(args.out / "evaluation.json", result)
        write_text(args.out / "table.md", table.markdown(result))
        ordered = [row for _, row in sorted(rows.items())]
        write_text(args.out / "page.html", page(result, ordered, pictures, args.worst))
        print(f"\n{args.out / 'page.html'}")
    return 0


def stopped(
    args: argparse.Namespace, pictures: Pictures, settings: dict[str, Any], rows: dict[int, Row]
) -> int:
    """After Ctrl-C, print the results so far and how to resume."""
    if rows:
        print(table.text(results(args, pictures, settings, rows)))
    kept = "Run the same command to resume." if args.out else "Give --out to save results."
    print(f"\nStopped after {len(rows)} of {len(pictures)} pictures. {kept}")
    return STOPPED


if __name__ == "__main__":
    raise SystemExit(main())
