"""How the training's commands begin and end: settings from a YAML file; errors in one line, no traceback."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ibis_agent.errors import Cancelled, IbisError, InputError
from ibis_agent.files import check_writable_folder

STOPPED = 130  # the exit status of a command that was stopped and can go on


@contextlib.contextmanager
def ending(stopped: str = "stopped") -> Iterator[None]:
    """What goes wrong within is the end of the command.

    An IbisError is said in a line, with status 1, and so is a graphics card without room; Cancelled in its own
    words, and Ctrl-C in those of `stopped`, with status STOPPED.
    """
    try:
        yield
    except Cancelled as error:
        print(error, file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except IbisError as error:
        raise SystemExit(f"error: {error}") from error
    except RuntimeError as error:
        # By its name: torch is not imported for commands that do without it.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        remedy = "Take a smaller batch or group, LoRA in place of full, or a smaller policy."
        raise SystemExit(f"error: the graphics card has no room left. {remedy}") from error
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        raise SystemExit(STOPPED) from None


def check_output(file: Path | None) -> None:
    """Refuse a file that could not be written, before the slow work. Raises InputError, OutputError."""
    if file is None:
        return
    folder = file.resolve().parent
    if not folder.is_dir():
        raise InputError("there is no such folder", file=folder, remedy="Make it, or choose another.")
    if file.is_dir():
        raise InputError("is a folder, not a file", file=file, remedy="Choose another file name.")
    check_writable_folder(folder)


def settings_parser(name: str, about: str | None, example: str, changes: str) -> argparse.ArgumentParser:
    """The parser of a command that reads a YAML file (`config`), such as `example`, and `changes` to it."""
    parser = argparse.ArgumentParser(
        prog=f"python -m training.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help=f"YAML, such as training/configs/{example}")
    parser.add_argument("changes", nargs="*", help=f"key=value, such as {changes}")
    return parser
