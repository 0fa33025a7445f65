"""The command `ibis-agent`: its options, its exit codes, and what each subcommand prints.

What a run does is in runner; how the terminal is written and read is in terminal. No torch is imported before
everything that can be checked without it has been checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__, inspection, review, runner, terminal
from .errors import Cancelled, IbisError, ModelError, OutputError
from .geometry import PLANES, Orientation
from .request import MASK_FORMATS, Request
from .session import Session, Stopped
from .trajectory import Trajectory

OK, BUG, BAD_INPUT, BAD_MODEL, BAD_OUTPUT, PAUSED, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

_EXIT_CODES = """\
exit codes:
  0    done: the agent ended, reached a limit, or the person accepted, discarded or stopped
  1    an error in this program itself
  2    the command line, the scan, or another input cannot be used
  3    a model cannot be loaded, or failed
  4    the results cannot be written
  5    the agent paused: its reply could not be read twice; what it did so far is kept
  6    replay: the masks differ from the recorded ones
  130  stopped by Ctrl-C; the steps so far are kept

Research use only. Not a medical device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; SystemExit only for --help and a wrong command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows a question mark; it does not end the run.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not sys.warnoptions:
        # Libraries warn their programmers; a person gets one line that says what to do.
        warnings.simplefilter("ignore")
    options = _parser().parse_args(_with_negative_numbers(sys.argv[1:] if arguments is None else arguments))
    try:
        return int(options.do(options))
    except Stopped as stop:
        return _fail(options, INTERRUPTED, str(stop))
    except (KeyboardInterrupt, Cancelled):
        return _fail(options, INTERRUPTED, "stopped; nothing was written")
    except BrokenPipeError:
        # Whoever read our output is gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except IbisError as error:
        code = {ModelError: BAD_MODEL, OutputError: BAD_OUTPUT}
        return _fail(options, next((code[k] for k in code if isinstance(error, k)), BAD_INPUT), str(error))
    except OSError as error:
        # What no module of ours has put into better words: the machine refuses, the program is not wrong.
        return _fail(
            options, BAD_INPUT, f"{error.filename or 'a file'}: {error.strerror or error}. Check the path."
        )
    except Exception:
        traceback.print_exc()
        return _fail(options, BUG, "this is an error in ibis-agent itself; please report the lines above")


def _fail(options: argparse.Namespace, code: int, text: str) -> int:
    line = terminal.one_line(text)
    if getattr(options, "json", False):
        print(json.dumps({"event": "error", "exit_code": code, "text": line}), flush=True)
    print(f"ibis-agent: {line}", file=sys.stderr, flush=True)
    return code


# ---- run -------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    screen = terminal.Screen(quiet=options.quiet or options.json)
    run = runner.Run(_request(options))
    session = Session(run, screen, by_hand=options.step, as_json=options.json)
    session.load()
    session.go()
    return PAUSED if run.episode.status == "paused" and not options.step else OK


def _request(options: argparse.Namespace) -> Request:
    return Request(
        scan=options.scan,
        question=options.prompt,
        plane=options.plane,
        index=options.slice,
        window=tuple(options.window) if options.window else None,
        orientation=Orientation(options.orientation) if options.orientation else None,
        series=options.series,
        policy=options.policy,
        segmenter=options.segmenter,
        segmenter_config=options.segmenter_config,
        device=options.device,
        precision=options.precision,
        max_turns=options.max_turns,
        max_repeats=options.max_repeats,
        history=options.history,
        out=options.out,
        mask=options.mask,
        mask_formats=tuple(options.mask_format or ()),
        resume=options.resume,
        review=not options.no_review,
    )


# ---- the other subcommands -------------------------------------------------------------------------------


def _replay(options: argparse.Namespace) -> int:
    recorded = Trajectory.load(options.trajectory)
    geometry = recorded.picture.geometry
    screen = terminal.Screen(quiet=options.quiet)
    asked = Request(
        segmenter=options.segmenter, segmenter_config=options.segmenter_config, device=options.device
    )
    replay = recorded.replay(runner.load_segmenter(asked))
    for note in replay.warnings:
        screen.line(screen.warn(terminal.one_line(note)))
    differences = {each.number: each for each in replay.differences}
    for number in range(1, len(recorded.steps) + 1):
        found = differences.get(number)
        screen.line(f"{number:>3}  " + (screen.bad(str(found)) if found else "the same mask"))
    if options.mask is not None and replay.steps:
        runner.write_mask(options.mask, replay.masks[-1], geometry, recorded.question, recorded.answer or "")
        screen.line(f"     {screen.dim('mask')}  {terminal.one_line(options.mask)}")
    return DIFFERENT if differences else OK


def _review(options: argparse.Namespace) -> int:
    recorded = Trajectory.load(options.trajectory)
    path = options.out or options.trajectory.with_name(runner.REVIEW_NAME)
    review.write_review(recorded.to_json(), path)
    print(path)
    if options.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return OK


def _info(options: argparse.Namespace) -> int:
    found = inspection.inspect(options.path, config=options.segmenter_config, load=options.load)
    if options.json:
        print(json.dumps(found, indent=1))
        return OK
    screen = terminal.Screen()
    for title, facts in found.items():
        screen.line(screen.bold(terminal.one_line(title)))
        for term, value in facts.items():
            screen.line(f"  {screen.dim(f'{term:<16}')} {terminal.one_line(value)}")
    return OK


def _import_prompts(options: argparse.Namespace) -> int:
    from .prompts import import_prompts

    print(import_prompts(options.checkout, options.policy))
    return OK


# ---- the options -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, with a wrong command told in one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"ibis-agent: {terminal.one_line(message)}. See: {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ibis-agent",
        description="Ask a scan a question and watch the answer being worked out, click by click.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ibis-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run(commands)
    _add_others(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="ask about a scan",
        description="Ask about one slice of a scan. Leaves the mask, trajectory.json and review.html.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(do=_run)
    run.add_argument(
        "scan",
        nargs="?",
        type=Path,
        metavar="SCAN",
        help=(
            "PNG or JPEG, NIfTI, NRRD, MetaImage, MedSAM2-style .npz, or a DICOM folder; none with --resume"
        ),
    )
    run.add_argument("--prompt", metavar="TEXT", help='the question, such as "Segment the liver"')

    picture = run.add_argument_group("which picture")
    picture.add_argument(
        "--slice", type=int, metavar="N", help="voxel index across the plane (default: the middle)"
    )
    picture.add_argument(
        "--plane", choices=PLANES, metavar="PLANE", help=f"{', '.join(PLANES)} (default: axial)"
    )
    picture.add_argument(
        "--window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help=(
            "grey values shown as black and white (default: the scan's own, the policy's card's, or the "
            "slice's 1st and 99th percentile)"
        ),
    )
    picture.add_argument(
        "--orientation",
        choices=[each.value for each in Orientation],
        help=("how the slice is turned (default: as the policy was trained)"),
    )
    picture.add_argument("--series", metavar="UID", help="which series of a DICOM folder")

    models = run.add_argument_group("which models")
    models.add_argument(
        "--policy", type=Path, metavar="DIR", help="a Qwen2.5-VL folder (default: the demo policy)"
    )
    _add_segmenter(models)
    models.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16", "int4"],
        help=("of the policy (default: auto)"),
    )

    limits = run.add_argument_group("how far")
    limits.add_argument("--max-turns", type=int, metavar="N", help="stop after so many turns (default: 20)")
    limits.add_argument(
        "--max-repeats",
        type=int,
        metavar="N",
        help=("stop when the same action comes so many times in a row (default: 3)"),
    )
    limits.add_argument(
        "--history",
        type=int,
        metavar="N",
        help=("how many earlier turns stay in the conversation, 0 for none (default: the policy's card)"),
    )
    limits.add_argument("--step", action="store_true", help="wait for the person after each action")
    limits.add_argument("--resume", type=Path, metavar="FILE", help="go on from a trajectory.json")

    out = run.add_argument_group("what comes out")
    out.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: ibis-out/SCAN-SLICE)"
    )
    _add_mask_format(out)
    out.add_argument(
        "--mask", type=Path, metavar="FILE", help="write the mask to this file, in place of the folder"
    )
    out.add_argument("--no-review", action="store_true", help="write no review.html")
    shown = out.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print nothing but errors")
    shown.add_argument("--json", action="store_true", help="print one JSON object a line in place of text")


def _add_others(commands: Any) -> None:
    replay = commands.add_parser("replay", help="rebuild the masks of a trajectory with the segmenter alone")
    replay.set_defaults(do=_replay)
    replay.add_argument("trajectory", type=Path, metavar="TRAJECTORY.json")
    _add_segmenter(replay)
    replay.add_argument("--mask", type=Path, metavar="FILE", help="write the rebuilt last mask to this file")
    replay.add_argument("--quiet", action="store_true", help="print nothing but errors")

    review = commands.add_parser("review", help="write the review page of a trajectory")
    review.set_defaults(do=_review)
    review.add_argument("trajectory", type=Path, metavar="TRAJECTORY.json")
    review.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: review.html beside the trajectory)"
    )
    review.add_argument("--open", action="store_true", help="show it in the browser")

    info = commands.add_parser(
        "info", help="what a checkpoint, a trajectory or a scan is, and whether it can be used"
    )
    info.set_defaults(do=_info)
    info.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="DIR|FILE",
        help=(
            "a policy's folder, a segmenter's checkpoint, a trajectory or a scan (default: the demo models)"
        ),
    )
    info.add_argument(
        "--segmenter-config", metavar="NAME|FILE", help="architecture of a segmenter's checkpoint"
    )
    info.add_argument("--load", action="store_true", help="load a model however large it is")
    info.add_argument("--json", action="store_true", help="print JSON")

    prompts = commands.add_parser(
        "import-prompts",
        help="fill a policy's card with the prompts of the published code",
        description="Read the prompts from your own checkout of the published code. Nothing in it is run.",
    )
    prompts.set_defaults(do=_import_prompts)
    prompts.add_argument("checkout", type=Path, metavar="CHECKOUT", help="folder of the published code")
    prompts.add_argument("policy", type=Path, metavar="DIR", help="folder of the policy")


def _add_segmenter(group: Any) -> None:
    group.add_argument(
        "--segmenter",
        type=Path,
        metavar="FILE",
        help=("SAM2, SAM2.1 or MedSAM2 weights (default: the demo segmenter)"),
    )
    group.add_argument(
        "--segmenter-config", metavar="NAME|FILE", help="its architecture, where the weights do not tell"
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


def _with_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """argparse takes "-1e3" for an option; as " -1e3" it is a number. For the two values of --window."""
    made = list(arguments)
    for at, word in enumerate(made):
        if word == "--window":
            for following in range(at + 1, min(at + 3, len(made))):
                with contextlib.suppress(ValueError):
                    float(made[following])
                    made[following] = " " + made[following].strip()
    return made


if __name__ == "__main__":
    sys.exit(main())
