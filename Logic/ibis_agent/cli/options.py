"""The command line of `ibis-agent`: subcommands and options. Their implementation is in commands."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ibis_agent import __version__
from ibis_agent.cli import terminal
from ibis_agent.cli.chosen_policy import any_place
from ibis_agent.cli.exit_codes import BAD_INPUT, EXIT_CODES
from ibis_agent.cli.option_groups import (
    add_cut,
    add_given,
    add_mask_format,
    add_modality,
    add_models,
    add_search,
    add_segmenter,
    add_sent_slices,
    add_series,
    add_server,
    add_shown,
    add_turns,
)
from ibis_agent.cli.record_path import record_in
from ibis_agent.scan.windows import PRESETS

_RECORD = "a run's record, or the folder of the run"


class _Parser(argparse.ArgumentParser):
    """argparse that reports an invalid command in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"ibis-agent: {terminal.one_line(message)}. See: {self.prog} --help\n")


class _Once(argparse.Action):
    """An option that may be given only once; argparse would silently ignore the first value."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} may be given only once: name all structures in it")
        setattr(namespace, self.dest, values)


def parser() -> argparse.ArgumentParser:
    """The parser; the name of the subcommand is stored as `command`."""
    made = _Parser(
        prog="ibis-agent",
        description="Ask a question about a scan and watch an agent answer it, click by click.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"ibis-agent {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    run = _add_run(commands)
    _add_cohort(commands, vars(run.parse_args([])))
    _add_others(commands)
    return made


def _add_run(commands: Any) -> argparse.ArgumentParser:
    run = commands.add_parser(
        "run",
        help="ask about a scan",
        description="Ask about one slice of a scan, or with --volume about the whole scan. Writes the mask, "
        "trajectory.json and review.html; for several structures, these are in one folder each, with a "
        "common label file, measures.csv and index.html beside them.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "scan",
        nargs="?",
        type=Path,
        metavar="SCAN",
        help=(
            "PNG or JPEG, NIfTI, NRRD, MetaImage, MedSAM2-style .npz, or a DICOM folder; not needed with --resume"
        ),
    )
    run.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help='the question, such as "Segment the liver"; for several structures "Segment the liver and the '
        'spleen", or give it several times',
    )

    picture = run.add_argument_group("scan and slice")
    picture.add_argument(
        "--slice", type=int, metavar="N", help="index of the slice, from 0 (default: the middle)"
    )
    add_cut(picture)
    add_series(picture)

    add_models(run)

    volume = run.add_argument_group("whole volumes")
    add_search(volume)
    volume.add_argument(
        "--range", type=int, nargs=2, metavar=("A", "B"), help="first and last slice (default: all)"
    )
    volume.add_argument(
        "--roi",
        type=int,
        nargs=6,
        metavar=("I0", "I1", "J0", "J1", "K0", "K1"),
        help="region of interest: first and last voxel along each axis of the file; the mask stays inside",
    )

    add_given(run.add_argument_group("existing masks"))

    limits = run.add_argument_group("limits and continuing")
    add_turns(limits)
    limits.add_argument("--step", action="store_true", help="wait for you after each action")
    limits.add_argument(
        "--resume",
        type=record_in,
        metavar="FILE",
        help="continue from a trajectory.json or structures.json, or from the folder of a run; for several "
        "structures or a volume, give SCAN too",
    )

    out = run.add_argument_group("results")
    out.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: ibis-out/SCAN-PLANE-SLICE)"
    )
    add_mask_format(out)
    out.add_argument(
        "--mask", type=Path, metavar="FILE", help="write the mask to this file instead of the folder"
    )
    out.add_argument(
        "--report",
        action="store_true",
        help="for a DICOM scan: write a DICOM SEG and a measurement report (SR) of its structures",
    )
    out.add_argument("--no-review", action="store_true", help="write no review.html")
    add_shown(out)
    made: argparse.ArgumentParser = run
    return made


def _add_cohort(commands: Any, as_a_run: dict[str, Any]) -> None:
    """as_a_run: the default values of `run`, which also apply to a cohort."""
    cohort = commands.add_parser(
        "cohort",
        help="ask one question about many scans",
        description="Ask one question about many scans. Every scan gets a folder in DIR with the results of a run; "
        "beside them are a table of measurements and a page with the most doubtful results first. Give "
        "the same command again to continue after an interruption.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cohort.set_defaults(**as_a_run)
    cohort.add_argument(
        "scans", metavar="SCANS", help="a folder, a pattern in quotes, or a manifest (CSV, JSON, Parquet)"
    )
    cohort.add_argument(
        "--prompt",
        action=_Once,
        metavar="TEXT",
        help="the question; a prompt column in the manifest takes precedence",
    )
    cohort.add_argument(
        "--structures",
        metavar="A,B,…",
        help="segment several structures in each scan, instead of --prompt: one label file per scan, one table row "
        "per structure",
    )
    cohort.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the results")
    cohort.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of worker processes, distributed over the GPUs (default: 1)",
    )
    cohort.add_argument(
        "--ray",
        metavar="auto|ADDRESS",
        help="run the workers on a Ray cluster that shares the scans and DIR; auto: a cluster running here, or this "
        "machine",
    )
    add_cut(cohort.add_argument_group("scans and slices"))
    add_models(cohort)
    add_search(cohort.add_argument_group("whole volumes"))
    add_given(
        cohort.add_argument_group(
            "existing masks",
            "FILE is a folder of masks with the same names as the scans, or a path that contains {scan} (the scan's "
            "path without the extension), {folder} or {name}; the columns start_mask and exclude of a manifest take "
            "precedence",
        )
    )
    add_turns(cohort.add_argument_group("limits"))
    out = cohort.add_argument_group("results")
    add_mask_format(out)
    add_shown(out)


def _add_others(commands: Any) -> None:
    replay = commands.add_parser(
        "replay", help="reproduce the masks of a trajectory with the segmenter alone"
    )
    replay.add_argument("trajectory", type=record_in, metavar="TRAJECTORY.json", help=_RECORD)
    add_segmenter(replay)
    replay.add_argument(
        "--mask", type=Path, metavar="FILE", help="write the last reproduced mask to this file"
    )
    replay.add_argument("--quiet", action="store_true", help="print nothing but errors")
    replay.add_argument("--json", action="store_true", help="print JSON")

    review = commands.add_parser("review", help="write the review page of a trajectory")
    review.add_argument("trajectory", type=record_in, metavar="TRAJECTORY.json", help=_RECORD)
    review.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: review.html beside the trajectory)"
    )
    review.add_argument("--open", action="store_true", help="open it in the browser")

    _add_compare(commands)
    _add_mcp(commands)

    convert = commands.add_parser(
        "convert",
        help="convert a trajectory to the published format, or back",
        description="The direction depends on the contents of the file.",
    )
    convert.add_argument("trajectory", type=record_in, metavar="FILE.json", help=_RECORD)
    convert.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        required=True,
        help="the output file, or a folder for several trajectories",
    )
    convert.add_argument(
        "--scans",
        type=Path,
        metavar="DIR",
        help="folder with the scans of published trajectories (default: beside them)",
    )
    convert.add_argument(
        "--prompt", metavar="TEXT", help="the question for published trajectories, which do not contain it"
    )

    info = commands.add_parser(
        "info", help="describe a checkpoint, a trajectory or a scan, and say whether it can be used"
    )
    info.add_argument(
        "path",
        nargs="?",
        type=any_place,
        metavar="DIR|FILE|URL",
        help="a policy's folder or the address of its server, a segmenter's checkpoint or nninteractive:URL, a "
        "trajectory or a scan (default: the demo models)",
    )
    add_server(info)
    add_sent_slices(info)
    info.add_argument(
        "--segmenter-config", metavar="NAME|FILE", help="architecture of a segmenter checkpoint"
    )
    add_series(info)
    add_modality(info)
    info.add_argument("--load", action="store_true", help="load the model to test it, even if it is large")
    info.add_argument("--json", action="store_true", help="print JSON")

    prompts = commands.add_parser(
        "import-prompts",
        help="fill in a policy's card with the prompts of the published code",
        description="Read the prompts from your own checkout of the published code. None of its code is run.",
    )
    prompts.add_argument("checkout", type=Path, metavar="CHECKOUT", help="folder of the published code")
    prompts.add_argument("policy", type=Path, metavar="DIR", help="folder of the policy")


def _add_compare(commands: Any) -> None:
    """Add the subcommand `compare`."""
    found = commands.add_parser(
        "compare",
        help="compare two runs, or a run and a reference mask: Dice, HD95, volumes, and a page that shows them side "
        "by side",
        description="Compare two masks of the same scan. Each can be a run's folder, its trajectory.json, or a mask "
        "file.",
    )
    found.add_argument("a", type=Path, metavar="A", help="a run, or a mask file")
    found.add_argument("b", type=Path, metavar="B", help="a run, or a mask file such as the reference")
    found.add_argument(
        "--label", metavar="NAME|N", help="use only this label of mask files (default: all except zero)"
    )
    found.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: comparison.html beside the run)"
    )
    found.add_argument("--no-page", action="store_true", help="write no page, only print the figures")
    found.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    found.add_argument("--open", action="store_true", help="open the page in the browser")


def _add_mcp(commands: Any) -> None:
    """Add the subcommand `mcp`, see tool_server."""
    made = commands.add_parser(
        "mcp",
        help="tools for other agents over the Model Context Protocol",
        description="Offer questions about scans as typed tools on standard input and output.",
    )
    made.add_argument("--scans", type=Path, metavar="DIR", required=True, help="folder to read scans from")
    made.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder to write results to")
    add_models(made)


def with_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """Prepare the two values of --window: argparse takes "-1e3" for an option, but " -1e3" for a number.

    A window's name is replaced by its two values.
    """
    made = list(arguments)
    for at, word in enumerate(made):
        if word == "--window":
            preset = PRESETS.get(made[at + 1].lower()) if at + 1 < len(made) else None
            if preset is not None:
                made[at + 1 : at + 2] = [f" {value:g}" for value in preset]
            for following in range(at + 1, min(at + 3, len(made))):
                with contextlib.suppress(ValueError):
                    float(made[following])
                    made[following] = " " + made[following].strip()
    return made
