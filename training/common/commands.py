"""What training commands share: a parser for YAML settings, and errors in one line without traceback."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ibis_agent.errors import Cancelled, IbisError, InputError
from ibis_agent.files import check_writable_folder

STOPPED = 130  # exit status of a command that was stopped and can be resumed
RESUMABLE = "stopped; run the same command to resume"


@contextlib.contextmanager
def ending(stopped: str = "stopped") -> Iterator[None]:
    """End the command if something goes wrong in the block.

    Prints an IbisError, or that the GPU is out of memory, in one line and exits with status 1. Prints Cancelled, or
    `stopped` on Ctrl-C, and exits with status STOPPED.
    """
    try:
        yield
    except Cancelled as error:
        print(error, file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except IbisError as error:
        raise SystemExit(f"error: {error}") from error
    except RuntimeError as error:
        # Compared by name, to import torch only in commands that need it.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        remedy = "Use a smaller batch or group, LoRA instead of full, or a smaller policy."
        raise SystemExit(f"error: the GPU is out of memory. {remedy}") from error
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        raise SystemExit(STOPPED) from None


def check_output(file: Path | None) -> None:
    """Refuse an output file that cannot be written, before slow work. Raises InputError, OutputError."""
    if file is None:
        return
    folder = file.resolve().parent
    if not folder.is_dir():
        raise InputError("there is no such folder", file=folder, remedy="Create it, or choose another.")
    if file.is_dir():
        raise InputError("is a folder, not a file", file=file, remedy="Choose another file name.")
    check_writable_folder(folder)


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m training.NAME`, described by its module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m training.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def settings_parser(name: str, about: str | None, example: str, changes: str) -> argparse.ArgumentParser:
    """A parser with a YAML file (`config`, such as `example`) and `changes` to it."""
    parser = command_parser(name, about)
    parser.add_argument("config", type=Path, help=f"YAML, such as training/configs/{example}")
    parser.add_argument("changes", nargs="*", help=f"key=value, such as {changes}")
    return parser
