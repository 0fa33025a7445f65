"""The command-line options of training.trajectories, checked before anything is read or written."""

from __future__ import annotations

import argparse
from pathlib import Path

from ibis_agent.cases.case import Problem
from ibis_agent.cases.cases import read_cases
from ibis_agent.errors import InputError

from training.common.choices import add_choice, choice_of
from training.common.commands import command_parser
from training.common.pictures import Group, groups_of, phantom_groups
from training.common.processes import Shard
from training.common.questions import NEVER_PRESENT
from training.trajectories import templates
from training.trajectories.expert import Recipe
from training.trajectories.parts import Work
from training.trajectories.wrong_clicks import KINDS


def arguments(description: str = "") -> argparse.ArgumentParser:
    parser = command_parser("trajectories", description)
    add = parser.add_argument
    add("source", type=Path, nargs="?", help="a folder, a .csv or a .json manifest")
    add("--out", type=Path, required=True)
    add("--phantoms", type=int, help="number of phantom pictures, instead of a source")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1, help="processes, each with one core and its own segmenter")
    add("--shard", type=Shard.parse, default=Shard(), metavar="I/N", help="do only part I of N of the scans")
    add("--names", type=Path, help="JSON with the names of the label values")
    add("--strict", action="store_true", help="refuse bad data instead of skipping it")
    add("--image", type=Path, help="a single scan or picture, with --mask (and --names), instead of a source")
    add("--mask", type=Path)
    which = add_choice(parser).add_argument
    which("--per-picture", type=int, default=0, help="structures per picture, chosen at random; default: all")
    which("--absent-share", type=float, default=0.1, help="share of questions about absent structures")
    which("--absent", nargs="*", default=None, help="further names of absent structures, for these questions")
    which("--question", default="", help='such as "Segment the {structure}"; default: many wordings')
    how = parser.add_argument_group("the simulated expert").add_argument
    how("--iou-threshold", type=float, default=0.8)
    how("--max-steps", type=int, default=20)
    how(
        "--unfinished",
        choices=("best", "keep", "drop"),
        default="best",
        help="what to do with runs below the threshold",
    )
    how("--least-iou", type=float, default=0.5, help="with best: least IoU of the final mask")
    how("--patience", type=int, default=3, help="stop after this many clicks without improvement; 0: never")
    how("--repeats", action="store_true", help="allow repeated clicks, as published")
    how("--as-published", action="store_true", help="--unfinished keep --patience 0 --repeats")
    how("--decimals", type=int, default=4, choices=(2, 3, 4), help="decimals of coordinates")
    how("--mistake-share", type=float, default=0.0, help="share of questions with one wrong click")
    how("--mistake-kinds", nargs="+", default=list(KINDS), choices=KINDS)
    how("--box-share", type=float, default=0.0, help="share of questions that start with a box")
    how(
        "--box-later", type=float, default=0.0, help="share of the others with a box after a poor first click"
    )
    how(
        "--box-jitter",
        type=float,
        default=0.05,
        help="standard deviation of a box's edges, as a share of its side",
    )
    how("--style", choices=templates.STYLES, default="varied", help="style of the thinking")
    how("--ours", action="store_true", help="also write each trajectory as ibis-trajectory/1")
    model = parser.add_argument_group("the segmenter").add_argument
    model("--segmenter", "--model-path", type=Path, help="a checkpoint; default: the demo segmenter")
    model("--config", help="its architecture, if the checkpoint does not say")
    model("--device", default="auto")
    return parser


def work_of(args: argparse.Namespace) -> Work:
    """The Work given by the options. Raises InputError."""
    _check(args)
    published = args.as_published
    return Work(
        out=args.out,
        choice=choice_of(args),
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
            box_share=args.box_share,
            box_later=args.box_later,
            box_jitter=args.box_jitter,
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
        store=args.store,
        root=None if args.source is None else args.source if args.source.is_dir() else args.source.parent,
    )


def _check(args: argparse.Namespace) -> None:
    for name, low, high in (
        ("seed", 0, 10**9),
        ("workers", 1, 1024),
        ("per_picture", 0, 10**6),
        ("absent_share", 0.0, 0.95),
        ("iou_threshold", 0.01, 1.01),
        ("max_steps", 1, 1000),
        ("least_iou", 0.0, 1.0),
        ("patience", 0, 1000),
        ("mistake_share", 0.0, 1.0),
        ("box_share", 0.0, 1.0),
        ("box_later", 0.0, 1.0),
        ("box_jitter", 0.0, 0.5),
        ("phantoms", 1, 10_000_000),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} must be from {low} to {high}", value=value)
    if args.question and "{structure}" not in args.question:
        raise InputError("--question must contain {structure}", value=args.question, remedy="Add it.")
    sources = [args.source is not None, args.phantoms is not None, args.image is not None]
    if sum(sources) != 1 or (args.image is None) != (args.mask is None):
        raise InputError(
            "exactly one source is needed", remedy="Give a SOURCE, --phantoms N, or --image with --mask."
        )


def groups_for(args: argparse.Namespace) -> tuple[list[Group], list[Problem]]:
    """(groups, problems with the rest of the data). Raises InputError."""
    if args.phantoms is not None:
        return phantom_groups(args.phantoms, args.seed), []
    if args.image is not None:
        from ibis_agent.cases.manifests import single_case

        return groups_of([single_case(args.image, args.mask, args.names)]), []
    cases, problems = read_cases(args.source, args.names)
    return groups_of(cases), problems
