"""A results folder belongs to one run at a time: a run claims it atomically before writing anything.

filelock is not used here: the agent needs it nowhere else, and it leaves its file in the folder.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
from pathlib import Path

from ibis_agent.errors import OutputError
from ibis_agent.files import output_error

LOCK_NAME = ".ibis-run.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def new_folder(first: Path) -> Path:
    """Create a folder that no other run uses: `first`, or the next free one of `first-2`, `first-3`, … Raises
    OutputError.
    """
    folder, number = first, 2
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    except OSError as error:
        raise output_error(error, folder) from error


class Claim:
    """The exclusive right of this process to write into a folder, until `release` or until the process ends."""

    def __init__(self, folder: Path) -> None:
        """Raises OutputError if another process holds the claim. Within this process, a newer claim takes it over."""
        self._path, self._handle = folder.resolve() / LOCK_NAME, -1
        if self._path in _HELD:
            self._handle = _HELD[self._path]
        while self._handle < 0:
            try:
                handle = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o666)
            except OSError as error:
                raise output_error(error, self._path) from error
            try:
                _lock(handle)
            except OSError as error:
                os.close(handle)
                if error.errno not in _TAKEN:
                    return  # a file system without locks cannot be claimed
                raise OutputError(
                    "another run is writing into this folder",
                    file=folder,
                    remedy="Wait until it has finished, or choose another --out.",
                ) from error
            if _is_at(handle, self._path):
                self._handle = _HELD[self._path] = handle
            else:  # the previous owner removed the file meanwhile: claim the one that exists now
                os.close(handle)

    def release(self) -> None:
        """Release the folder and remove the lock file."""
        _release(self._path)


# By the lock's file: what this process holds.
_HELD: dict[Path, int] = {}


def _release(path: Path) -> None:
    handle = _HELD.pop(path, -1)
    if handle < 0:
        return
    if sys.platform == "win32":  # an open file cannot be removed there
        os.close(handle)
    with contextlib.suppress(OSError):
        path.unlink()
    if sys.platform != "win32":
        os.close(handle)


@atexit.register
def _release_all() -> None:
    for path in list(_HELD):
        _release(path)


def _is_at(handle: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(handle), there)


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
