"""The command line of `ibis-agent`: subcommands and options. What they do is in commands."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ibis_agent import __version__
from ibis_agent.cli import terminal
from ibis_agent.cli.chosen_policy import place, segmenter_place
from ibis_agent.cli.exit_codes import BAD_INPUT, EXIT_CODES
from ibis_agent.cli.more_options import add_compare, add_given, add_mcp
from ibis_agent.mask import MASK_FORMATS
from ibis_agent.scan.geometry import PLANES, Orientation
from ibis_agent.scan.windows import PRESETS


class _Parser(argparse.ArgumentParser):
    """argparse, with a wrong command told in one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"ibis-agent: {terminal.one_line(message)}. See: {self.prog} --help\n")


class _Once(argparse.Action):
    """An option that is refused the second time, where the first would be forgotten in silence."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} may be given once: name all structures in it")
        setattr(namespace, self.dest, values)


def parser() -> argparse.ArgumentParser:
    """All of it; the subcommand's name comes out as `command`."""
    made = _Parser(
        prog="ibis-agent",
        description="Ask a scan a question and watch the answer being worked out, click by click.",
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
        description="Ask about one slice of a scan. Leaves the mask, trajectory.json and review.html; of several "
        "structures these in a folder each, and beside them one file of labels, measures.csv and index.html.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "scan",
        nargs="?",
        type=Path,
        metavar="SCAN",
        help=(
            "PNG or JPEG, NIfTI, NRRD, MetaImage, MedSAM2-style .npz, or a DICOM folder; none with --resume"
        ),
    )
    run.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help='the question, such as "Segment the liver"; for several structures "the liver and the spleen", or given '
        "several times",
    )

    picture = run.add_argument_group("which picture")
    picture.add_argument(
        "--slice", type=int, metavar="N", help="voxel index across the plane (default: the middle)"
    )
    _add_cut(picture)
    _add_series(picture)

    _add_models(run)

    volume = run.add_argument_group("whole volumes")
    _add_search(volume)
    volume.add_argument(
        "--range", type=int, nargs=2, metavar=("A", "B"), help="first and last slice (default: all)"
    )
    volume.add_argument(
        "--roi",
        type=int,
        nargs=6,
        metavar=("I0", "I1", "J0", "J1", "K0", "K1"),
        help="first and last voxel of each axis of the file that the mask stays in",
    )

    add_given(run.add_argument_group("masks that are there"))

    limits = run.add_argument_group("how far")
    _add_turns(limits)
    limits.add_argument("--step", action="store_true", help="wait for the person after each action")
    limits.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="go on from a trajectory.json, or a structures.json of several; of these and of a volume name SCAN too",
    )

    out = run.add_argument_group("what comes out")
    out.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: ibis-out/SCAN-PLANE-SLICE)"
    )
    _add_mask_format(out)
    out.add_argument(
        "--mask", type=Path, metavar="FILE", help="write the mask to this file, in place of the folder"
    )
    out.add_argument(
        "--report", action="store_true", help="of a DICOM scan: a DICOM SEG and a report of its measures (SR)"
    )
    out.add_argument("--no-review", action="store_true", help="write no review.html")
    shown = out.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print nothing but errors")
    shown.add_argument("--json", action="store_true", help="print one JSON object a line in place of text")
    made: argparse.ArgumentParser = run
    return made


def _add_cut(group: Any) -> None:
    group.add_argument(
        "--plane", choices=PLANES, metavar="PLANE", help=f"{', '.join(PLANES)} (default: axial)"
    )
    group.add_argument(
        "--window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help=(
            "grey values shown as black and white, or of a CT by name: "
            f"{', '.join(sorted(PRESETS))} (default: the scan's own, the policy's card's, or the slice's 1st and "
            "99th percentile)"
        ),
    )
    group.add_argument(
        "--orientation",
        choices=[each.value for each in Orientation],
        help=("how the slice is turned (default: as the policy was trained)"),
    )
    _add_modality(group)


def _add_models(parser: Any) -> None:
    models = parser.add_argument_group("which models")
    models.add_argument(
        "--policy",
        type=place,
        metavar="DIR|URL",
        help="a policy's folder, or the address of a server such as http://localhost:8080/v1 (default: the demo "
        "policy); a server's key is read from IBIS_API_KEY",
    )
    _add_server(models)
    _add_segmenter(models)
    models.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16", "int4"],
        help=("of the policy (default: auto)"),
    )


def _add_search(group: Any) -> None:
    group.add_argument(
        "--volume",
        action="store_true",
        help="find the object in the whole volume: a key slice, its neighbours, second looks",
    )
    group.add_argument(
        "--looks", type=int, metavar="N", help="second looks at doubtful slices, 0 for none (default: 4)"
    )
    group.add_argument(
        "--follow",
        choices=("auto", "memory", "linked", "carry"),
        help="from slice to slice by the segmenter's memory, or by a click and the mask carried on, without the "
        "islands that touch nothing of the slice before (linked) or with them (carry) (default: auto, memory "
        "where it was trained, else linked)",
    )


def _add_turns(group: Any) -> None:
    group.add_argument("--max-turns", type=int, metavar="N", help="stop after so many turns (default: 20)")
    group.add_argument(
        "--max-repeats",
        type=int,
        metavar="N",
        help=("stop when the same action comes so many times in a row (default: 3)"),
    )
    group.add_argument(
        "--history",
        type=int,
        metavar="N",
        help=("how many earlier turns stay in the conversation, 0 for none (default: the policy's card)"),
    )


def _add_cohort(commands: Any, as_a_run: dict[str, Any]) -> None:
    """as_a_run: what a run that says nothing is asked; all of that a cohort is asked too."""
    cohort = commands.add_parser(
        "cohort",
        help="one question to many scans",
        description="Ask many scans one question. Every scan gets a folder in DIR, with what a run leaves; beside "
        "them a table of measures and a page, the most doubtful first. The same command goes on after a stop.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cohort.set_defaults(**as_a_run)
    cohort.add_argument(
        "scans", metavar="SCANS", help="a folder, a pattern in quotes, or a manifest (CSV, JSON, Parquet)"
    )
    cohort.add_argument(
        "--prompt", action=_Once, metavar="TEXT", help="the question; a manifest's column prompt comes first"
    )
    cohort.add_argument(
        "--structures",
        metavar="A,B,…",
        help="in place of --prompt, several structures for each scan: one file of labels, a line of the table for each",
    )
    cohort.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the results")
    cohort.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes at once, shared out over the cards (default: 1)",
    )
    cohort.add_argument(
        "--ray",
        metavar="auto|ADDRESS",
        help="workers on a Ray cluster that shares the scans and DIR; auto: one that runs here, or this machine",
    )
    _add_cut(cohort.add_argument_group("which picture"))
    _add_models(cohort)
    _add_search(cohort.add_argument_group("whole volumes"))
    _add_turns(cohort.add_argument_group("how far"))
    out = cohort.add_argument_group("what comes out")
    _add_mask_format(out)
    shown = out.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print nothing but errors")
    shown.add_argument("--json", action="store_true", help="print one JSON object a line in place of text")


def _add_series(group: Any) -> None:
    group.add_argument(
        "--series",
        metavar="UID|NAME=VALUE",
        help="which series of a DICOM folder, and which of several images of each place, such as EchoTime=4.6; both "
        "with a comma between",
    )


def _add_modality(group: Any) -> None:
    group.add_argument(
        "--modality",
        metavar="NAME",
        help="what the scan is, such as CT or MR (default: as its file says, or by its grey values)",
    )


def _add_others(commands: Any) -> None:
    replay = commands.add_parser("replay", help="rebuild the masks of a trajectory with the segmenter alone")
    replay.add_argument("trajectory", type=Path, metavar="TRAJECTORY.json")
    _add_segmenter(replay)
    replay.add_argument("--mask", type=Path, metavar="FILE", help="write the rebuilt last mask to this file")
    replay.add_argument("--quiet", action="store_true", help="print nothing but errors")
    replay.add_argument("--json", action="store_true", help="print JSON")

    review = commands.add_parser("review", help="write the review page of a trajectory")
    review.add_argument("trajectory", type=Path, metavar="TRAJECTORY.json")
    review.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: review.html beside the trajectory)"
    )
    review.add_argument("--open", action="store_true", help="show it in the browser")

    add_compare(commands)
    add_mcp(commands, _add_models)

    convert = commands.add_parser(
        "convert",
        help="turn a trajectory into the published format, or the other way",
        description="Which way it goes is told by what the file holds.",
    )
    convert.add_argument("trajectory", type=Path, metavar="FILE.json")
    convert.add_argument(
        "--out", type=Path, metavar="PATH", required=True, help="the file; a folder where there are several"
    )
    convert.add_argument(
        "--scans",
        type=Path,
        metavar="DIR",
        help="where the scans of published ones are (default: beside them)",
    )
    convert.add_argument("--prompt", metavar="TEXT", help="the question of published ones, which lack it")

    info = commands.add_parser(
        "info", help="what a checkpoint, a trajectory or a scan is, and whether it can be used"
    )
    info.add_argument(
        "path",
        nargs="?",
        type=place,
        metavar="DIR|FILE|URL",
        help="a policy's folder or the address of its server, a segmenter's checkpoint, a trajectory or a scan "
        "(default: the demo models)",
    )
    _add_server(info)
    info.add_argument(
        "--segmenter-config", metavar="NAME|FILE", help="architecture of a segmenter's checkpoint"
    )
    _add_series(info)
    _add_modality(info)
    info.add_argument("--load", action="store_true", help="load a model however large it is")
    info.add_argument("--json", action="store_true", help="print JSON")

    prompts = commands.add_parser(
        "import-prompts",
        help="fill a policy's card with the prompts of the published code",
        description="Read the prompts from your own checkout of the published code. Nothing in it is run.",
    )
    prompts.add_argument("checkout", type=Path, metavar="CHECKOUT", help="folder of the published code")
    prompts.add_argument("policy", type=Path, metavar="DIR", help="folder of the policy")


def _add_server(group: Any) -> None:
    group.add_argument("--model", metavar="NAME", help="the policy's name on the server")
    group.add_argument(
        "--card",
        type=Path,
        metavar="DIR|FILE",
        help="the card of a policy on a server (default: the published settings)",
    )
    group.add_argument(
        "--send-pictures-to",
        metavar="HOST",
        help="yes, the slices and the question may be sent to the server on this other machine",
    )


def _add_segmenter(group: Any) -> None:
    group.add_argument(
        "--segmenter",
        type=segmenter_place,
        metavar="FILE|nninteractive:URL",
        help="SAM2, SAM2.1 or MedSAM2 weights, or a server of nnInteractive (nninteractive:http://localhost:1527), "
        "whose published weights are CC BY-NC-SA: not for commercial use (default: the demo segmenter)",
    )
    group.add_argument(
        "--send-slices-to", metavar="HOST", help="yes, slices may go to this host of nnInteractive"
    )
    group.add_argument(
        "--segmenter-config", metavar="NAME|FILE", help="its architecture, where the weights do not tell"
    )
    group.add_argument(
        "--first-box",
        action="store_true",
        help="ask a first click a second time with a box around its mask, as MedSAM2 was trained",
    )
    group.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


def _add_mask_format(group: Any) -> None:
    formats = sorted(MASK_FORMATS)
    group.add_argument(
        "--mask-format",
        action="append",
        choices=formats,
        metavar="FORMAT",
        help=(f"{', '.join(formats)}; may be given several times (default: nii.gz, or png for a picture)"),
    )


def with_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """argparse takes "-1e3" for an option; as " -1e3" it is a number. For the two values of --window.

    The name of a window becomes its two values.
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
