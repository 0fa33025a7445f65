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

from . import __version__, files, inspection, published, review, runner, terminal
from .errors import Cancelled, IbisError, InputError, ModelError, OutputError
from .geometry import PLANES, Orientation
from .record import read_json
from .request import MASK_FORMATS, Request
from .session import Session, Stopped
from .trajectory import Trajectory
from .volume_record import VolumeTrajectory, is_volume_record
from .volume_review import write_volume_review

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
    if options.volume:
        return _run_volume(options, screen)
    for option in ("--range", "--roi", "--looks", "--follow"):
        if getattr(options, option[2:]) is not None:
            raise InputError(f"{option} is for whole volumes", mend="Add --volume, or leave it out.")
    run = runner.Run(_request(options))
    session = Session(run, screen, by_hand=options.step, as_json=options.json)
    session.load()
    session.go()
    return PAUSED if run.episode.status == "paused" and not options.step else OK


def _run_volume(options: argparse.Namespace, screen: terminal.Screen) -> int:
    from .volume_job import VolumeJob, VolumeRequest
    from .volume_session import VolumeSession

    slices = None if options.range is None else (options.range[0], options.range[1])
    roi = None if options.roi is None else tuple(options.roi)
    asked = VolumeRequest(_request(options), slices, roi, options.looks, options.follow or "auto")
    session = VolumeSession(VolumeJob(asked), screen, by_hand=options.step, as_json=options.json)
    session.load()
    return PAUSED if session.go() == "paused" and not options.step else OK


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
    screen = terminal.Screen(quiet=options.quiet)
    asked = Request(
        segmenter=options.segmenter, segmenter_config=options.segmenter_config, device=options.device
    )
    record = read_json(options.trajectory)
    if is_volume_record(record):
        return _replay_volume(options, VolumeTrajectory.from_json(record, options.trajectory), asked, screen)
    recorded = Trajectory.from_json(record, options.trajectory)
    geometry = recorded.picture.geometry
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


def _replay_volume(
    options: argparse.Namespace, recorded: VolumeTrajectory, asked: Request, screen: terminal.Screen
) -> int:
    segmenter: Any = runner.load_segmenter(asked)
    replay = recorded.replay(segmenter)
    for note in replay.warnings:
        screen.line(screen.warn(terminal.one_line(note)))
    differences = {each.number: each for each in replay.differences}
    for index in sorted(recorded.masks):
        found = differences.get(index)
        screen.line(f"slice {index:>4}  " + (screen.bad(str(found)) if found else "the same mask"))
    if options.mask is not None:
        geometry = next(iter(recorded.pictures.values())).geometry
        runner.write_mask(options.mask, replay.volume, geometry, recorded.question, recorded.answer)
        screen.line(f"     {screen.dim('mask')}  {terminal.one_line(options.mask)}")
    return DIFFERENT if differences else OK


def _review(options: argparse.Namespace) -> int:
    record = read_json(options.trajectory)
    path = options.out or options.trajectory.with_name(runner.REVIEW_NAME)
    if is_volume_record(record):
        VolumeTrajectory.from_json(record, options.trajectory)
        write_volume_review(record, path)
    else:
        review.write_review(Trajectory.from_json(record, options.trajectory).to_json(), path)
    print(path)
    if options.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return OK


def _convert(options: argparse.Namespace) -> int:
    content = read_json(options.trajectory)
    if isinstance(content, dict) and "schema" in content:
        recorded = Trajectory.from_json(content, options.trajectory)
        published.save(options.out, [published.from_trajectory(recorded)])
        print(options.out)
        return OK
    found = published.load(options.trajectory)
    folder = options.scans or options.trajectory.parent
    # All of them before the first is written: a scan that is missing leaves nothing half done.
    made = [published.to_trajectory(each, folder, options.prompt) for each in found]
    for number, each in enumerate(made, 1):
        path = options.out if len(made) == 1 else options.out / f"{number:04}.json"
        if len(made) > 1:
            files.check_writable_folder(options.out)
        each.save(path)
        print(path)
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

    volume = run.add_argument_group("whole volumes")
    volume.add_argument(
        "--volume",
        action="store_true",
        help="find the object in the whole volume: a key slice, its neighbours, second looks",
    )
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
    volume.add_argument(
        "--looks", type=int, metavar="N", help="second looks at doubtful slices, 0 for none (default: 4)"
    )
    volume.add_argument(
        "--follow",
        choices=("auto", "memory", "carry"),
        help="from slice to slice by the segmenter's memory, or by a click that is carried on (default: auto, "
        "memory where it was trained)",
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
    limits.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="go on from a trajectory.json; with --volume name SCAN too",
    )

    out = run.add_argument_group("what comes out")
    out.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: ibis-out/SCAN-PLANE-SLICE)"
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

    convert = commands.add_parser(
        "convert",
        help="turn a trajectory into the published format, or the other way",
        description="Which way it goes is told by what the file holds.",
    )
    convert.set_defaults(do=_convert)
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
