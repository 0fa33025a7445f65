"""The command `ibis-agent`: what each subcommand does and prints, and how errors end it.

The options are in options, runs in runner, terminal input and output in terminal. torch is imported only after
everything that can be checked without it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ibis_agent.policy as policies
from ibis_agent import files
from ibis_agent.cli import info, runner, terminal
from ibis_agent.cli.chosen_policy import chosen
from ibis_agent.cli.compare import run_compare
from ibis_agent.cli.exit_codes import (
    BAD_INPUT,
    BAD_MODEL,
    BAD_OUTPUT,
    BUG,
    DIFFERENT,
    INTERRUPTED,
    OK,
    PAUSED,
    UNREAD,
)
from ibis_agent.cli.given_masks import MaskFiles
from ibis_agent.cli.mask_paths import spare_other_kinds
from ibis_agent.cli.request import Request
from ibis_agent.cli.runner import Runner
from ibis_agent.cli.session import Session, Stopped
from ibis_agent.cli.several import Several, is_of_several, questions_of
from ibis_agent.cli.several_session import SeveralSession
from ibis_agent.cli.start import options_of
from ibis_agent.errors import Cancelled, IbisError, InputError, ModelError, OutputError
from ibis_agent.facts import values
from ibis_agent.fields import read_json
from ibis_agent.mask.files import check_mask_path
from ibis_agent.policy.prompts import check_question
from ibis_agent.record import published
from ibis_agent.record.review import write_review
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.geometry import Orientation
from ibis_agent.segmenter.sam2 import HOW_TO_INSTALL

_OF_THE_MODELS = {
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "sam2",
    "hydra",
    "omegaconf",
    "yaml",
    "iopath",
}
_INSTALL = f"Run: pip install 'ibis-agent[models]', then {HOW_TO_INSTALL}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; SystemExit only for --help and a wrong command."""
    return act(options_of(arguments))


def act(options: argparse.Namespace) -> int:
    """Execute a parsed command line. Returns the exit code."""
    try:
        return _COMMANDS[options.command](options)
    except Stopped as stop:
        return _fail(options, INTERRUPTED, str(stop))
    except (KeyboardInterrupt, Cancelled):
        return _fail(options, INTERRUPTED, "stopped; nothing was written")
    except BrokenPipeError:
        # The reader of our output is gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except IbisError as error:
        code = {ModelError: BAD_MODEL, OutputError: BAD_OUTPUT}
        return _fail(options, next((code[k] for k in code if isinstance(error, k)), BAD_INPUT), str(error))
    except OSError as error:
        # An error of the operating system that none of our modules has translated.
        return _fail(
            options, BAD_INPUT, f"{error.filename or 'a file'}: {error.strerror or error}. Check the path."
        )
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OF_THE_MODELS:
            text = f"the packages for the models are not installed: {package} is missing. {_INSTALL}"
            return _fail(options, BAD_MODEL, text)
        return _bug(options)
    except Exception:
        return _bug(options)


def _bug(options: argparse.Namespace) -> int:
    traceback.print_exc()
    return _fail(options, BUG, "this is an error in ibis-agent itself; please report the lines above")


def _fail(options: argparse.Namespace, code: int, text: str) -> int:
    line = terminal.one_line(text)
    if getattr(options, "json", False):
        print(json.dumps({"event": "error", "exit_code": code, "text": line}), flush=True)
    print(f"ibis-agent: {line}", file=sys.stderr, flush=True)
    return code


def _run(options: argparse.Namespace) -> int:
    screen = terminal.Screen(quiet=options.quiet or options.json)
    asked, prompts = _request(options), options.prompt or []
    several = is_of_several(asked.resume)
    if asked.resume is None:
        several = len(questions_of(asked, prompts)) > 1
    elif prompts[1:] and not several:
        raise InputError(
            "the run to resume has only one question", file=asked.resume, remedy="Leave --prompt out."
        )
    session: Session | SeveralSession
    if several:
        runs = Several(asked, prompts or None)
        session = SeveralSession(runs, screen, by_hand=options.step, as_json=options.json)
    else:
        runner = Runner(replace(asked, question=prompts[0] if prompts else None))
        session = Session(runner, screen, by_hand=options.step, as_json=options.json)
    session.load()
    return PAUSED if session.go() == "paused" and not options.step else OK


def _cohort(options: argparse.Namespace) -> int:
    from ibis_agent.cli.cohort import run_cohort

    return run_cohort(_request(options), options)


def _mcp(options: argparse.Namespace) -> int:
    from ibis_agent.cli.tool_server import run_mcp

    return run_mcp(Request(**_models(options)), options.scans, options.out)


def _models(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "policy": chosen(options),
        "segmenter": options.segmenter,
        "segmenter_config": options.segmenter_config,
        "send_slices_to": options.send_slices_to or "",
        "first_box": options.first_box,
        "device": options.device,
        "precision": options.precision,
    }


def _request(options: argparse.Namespace) -> Request:
    """Several prompts make several runs: see several."""
    prompts = [options.prompt] if isinstance(options.prompt, str) else options.prompt or []
    return Request(
        scan=options.scan,
        question=prompts[0] if len(prompts) == 1 else None,
        plane=options.plane,
        index=options.slice,
        window=tuple(options.window) if options.window else None,
        orientation=Orientation(options.orientation) if options.orientation else None,
        series=options.series,
        modality=options.modality,
        **_models(options),
        max_turns=options.max_turns,
        max_repeats=options.max_repeats,
        history=options.history,
        out=options.out,
        mask=options.mask,
        # A report is about a DICOM SEG, which is written in addition to the other formats.
        mask_formats=(*(options.mask_format or ["nii.gz"]), "dicom-seg")
        if options.report
        else tuple(options.mask_format or ()),
        report=options.report,
        resume=options.resume,
        review=not options.no_review,
        volume=options.volume,
        slices=None if options.range is None else (options.range[0], options.range[1]),
        roi=None if options.roi is None else tuple(options.roi),
        looks=options.looks,
        follow=options.follow,
        masks=MaskFiles(
            tuple(options.start_mask or ()),
            options.start_label,
            options.exclude,
            tuple(options.exclude_label or ()),
        ),
    )


def _replay(options: argparse.Namespace) -> int:
    screen = terminal.Screen(quiet=options.quiet or options.json)
    asked = Request(
        segmenter=options.segmenter,
        segmenter_config=options.segmenter_config,
        send_slices_to=options.send_slices_to or "",
        first_box=options.first_box,
        device=options.device,
    )
    recorded = Trajectory.load(options.trajectory)
    if options.mask is not None:
        where = recorded.picture.geometry
        check_mask_path(options.mask, "picture" if where.plane == "picture" else "volume")
        if options.mask.exists() and options.mask.name == recorded.source:
            files.check_not_input(options.mask, [options.mask])
    replay = recorded.replay(runner.load_segmenter(asked))
    for note in replay.warnings:
        screen.line(screen.warn(terminal.one_line(note)))
    differences = {each.number: each for each in replay.differences}
    numbers = range(1, len(recorded.steps) + 1) if recorded.alone else recorded.visited
    for number in numbers:
        found, what = differences.get(number), f"{number:>3}" if recorded.alone else f"slice {number:>4}"
        screen.line(f"{what}  " + (screen.bad(str(found)) if found else "the same mask"))
    if options.mask is not None and recorded.actions:
        mask = replay.masks[-1] if recorded.alone else replay.volume
        runner.write_mask(options.mask, mask, where, recorded.question, recorded.answer or "")
        screen.line(f"     {screen.dim('mask')}  {terminal.one_line(options.mask)}")
    equal = f"All {len(numbers)} masks match the record."
    verdict = f"{len(differences)} of {len(numbers)} masks differ from the record." if differences else equal
    screen.line(screen.bad(verdict) if differences else screen.good(verdict))
    if options.json:
        different = {str(number): str(found) for number, found in differences.items()}
        told = {"event": "replay", "equal": not differences, "masks": len(numbers), "different": different}
        print(json.dumps({**told, "warnings": list(replay.warnings)}), flush=True)
    return DIFFERENT if differences else OK


def _review(options: argparse.Namespace) -> int:
    record = Trajectory.load(options.trajectory)
    path = options.out or options.trajectory.with_name(runner.REVIEW_NAME)
    spare_other_kinds(path, ".html", ".htm")
    write_review(path, record.to_json(png=False), record.slices.picture)
    print(path)
    if options.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return OK


def _convert(options: argparse.Namespace) -> int:
    content = read_json(options.trajectory)
    files.check_not_input(options.out, [options.trajectory])
    spare_other_kinds(options.out, ".json")
    if options.prompt is not None:
        check_question(options.prompt)
    if isinstance(content, dict) and "schema" in content:
        recorded = Trajectory.load(options.trajectory)
        published.save(options.out, published.from_record(recorded))
        print(options.out)
        return OK
    found = published.load(options.trajectory)
    if not found:
        raise InputError("contains no trajectory", file=options.trajectory, value="an empty list")
    folder = options.scans or options.trajectory.parent
    # Read all of them before writing the first: a missing scan must not leave partial results.
    made = [published.to_trajectory(each, folder, options.prompt) for each in found]
    for number, each in enumerate(made, 1):
        path = options.out if len(made) == 1 else options.out / f"{number:04}.json"
        if len(made) > 1:
            files.check_writable_folder(options.out)
        each.save(path)
        print(path)
    return OK


def _info(options: argparse.Namespace) -> int:
    options.policy = options.path
    on_server = options.model or options.card or options.send_pictures_to or policies.is_address(options.path)
    what = chosen(options) if on_server else options.path
    found = info.inspect(
        what,
        options.segmenter_config,
        options.load,
        options.series,
        options.modality,
        options.send_slices_to or "",
    )
    if options.json:
        print(json.dumps({title: values(facts) for title, facts in found.items()}, indent=1))
        return OK
    screen = terminal.Screen()
    for title, facts in found.items():
        screen.line(screen.bold(terminal.one_line(title)))
        for term, value in facts.items():
            screen.line(f"  {screen.dim(f'{term:<16}')} {terminal.one_line(value)}")
    return OK


def _import_prompts(options: argparse.Namespace) -> int:
    from ibis_agent.policy.published_prompts import import_prompts

    print(import_prompts(options.checkout, options.policy))
    return OK


_COMMANDS = {
    "run": _run,
    "replay": _replay,
    "review": _review,
    "cohort": _cohort,
    "compare": run_compare,
    "convert": _convert,
    "info": _info,
    "mcp": _mcp,
    "import-prompts": _import_prompts,
}


if __name__ == "__main__":
    sys.exit(main())
