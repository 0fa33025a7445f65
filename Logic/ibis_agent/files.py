"""Atomic writing: a file is written beside its final path, and renamed when it is complete and on the disk."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError, OutputError

_REMEDIES = {
    errno.ENOSPC: "Free some space on that disk or choose another folder.",
    errno.EDQUOT: "Your quota on that disk is used up; free some space or choose another folder.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EROFS: "That disk is read-only; choose another folder.",
    errno.ENOENT: "Create the folder first or choose another one.",
    errno.ENOTDIR: "Part of the path is a file, not a folder; choose another path.",
    errno.EISDIR: "There is a folder with this name; choose another file name.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush it and move it to `path` when the block succeeds.

    The temporary name keeps the suffix, for writers that check it. If the block fails (also by Ctrl-C), the temporary
    file is removed and `path` stays untouched.

    Raises OutputError for every OSError, also inside the block.
    """
    if "\0" in os.fspath(path):
        raise OutputError("is not a valid file name", file=path, remedy="Choose another name.")
    try:
        # Follow a link to its target, so that the link itself is not replaced.
        final = Path(os.path.realpath(path))
        if final.is_dir():
            raise OutputError("is a folder, not a file", file=path, remedy="Choose another file name.")
        if final.exists() and not final.is_file():
            raise OutputError("is not a regular file", file=path, remedy="Choose another file name.")
        # 40 characters of at most four bytes each, plus the prefix, stay below 255 bytes.
        temporary = final.with_name(f".{secrets.token_hex(6)}-{final.name[-40:]}")
        # Permissions from the umask; mkstemp's 0600 would outlive the move.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            _flush(temporary, os.O_RDWR)  # Windows flushes only what is open for writing
            os.replace(temporary, final)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise output_error(error, path) from error
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder; the file itself is flushed
        _flush(final.parent, os.O_RDONLY)


def check_not_input(path: str | os.PathLike[str], inputs: Iterable[Path]) -> None:
    """Raises InputError if writing to `path` would overwrite one of these files."""
    if is_one_of(path, inputs):
        raise InputError("would overwrite its own input", file=path, remedy="Choose another file or folder.")


def is_one_of(path: str | os.PathLike[str], others: Iterable[Path]) -> bool:
    """Whether a path leads to one of these files, also through a link or in another case where that is the same."""
    final = os.path.realpath(path)
    for each in others:
        with contextlib.suppress(OSError):  # one of them does not exist
            if os.path.samefile(each, final):
                return True
        if os.path.realpath(each) == final:
            return True
    return False


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Remove temporary files that a killed program left beside `path`. No other process may be writing it."""
    final = Path(os.path.realpath(path))
    for each in final.parent.glob(f".{'[0-9a-f]' * 12}-{glob.escape(final.name[-40:])}"):
        with contextlib.suppress(OSError):
            each.unlink()


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` atomically. Raises OutputError."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically. Raises OutputError.

    Lone surrogates, which some tokenizers let through, become question marks.
    """
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(
    path: str | os.PathLike[str], value: Any, rows: tuple[str, Iterable[Any]] | None = None
) -> None:
    """Write `value` as indented JSON, atomically. Raises OutputError, and ValueError for NaN and infinity.

    rows: a last key and the items of its list, written one by one if they do not fit in memory together.
    """
    whole = _json(value)
    if rows is None:
        write_text(path, whole + "\n")
        return
    key, items = rows
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as stream,
    ):
        stream.write(f"{whole[:-2]},\n {json.dumps(key)}: [")
        for number, item in enumerate(items):
            stream.write(("," if number else "") + "\n" + _json(item))
        stream.write("]\n}\n")


def append_line(path: str | os.PathLike[str], value: dict[str, Any], more: tuple[str, Iterable[Any]]) -> None:
    """Append a line of JSON to a file and flush it to the disk, whole or not at all. Raises OutputError, ValueError.

    value: not empty.
    more: a last key and the (key, value) pairs of its object, written one by one.
    """
    name, items = more
    before = os.path.getsize(path) if os.path.exists(path) else 0
    try:
        with open(path, "a", encoding="utf-8", errors="replace", newline="\n") as stream:
            stream.write(f"{_line(value)[:-1]},{_line(name)}:{{")
            for number, (key, item) in enumerate(items):
                stream.write(f"{',' if number else ''}{_line(str(key))}:{_line(item)}")
            stream.write("}}\n")
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):  # a later line would be joined to this one
            os.truncate(path, before)
        if isinstance(error, OSError):
            raise output_error(error, path) from error
        raise


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def check_writable_folder(path: str | os.PathLike[str], need_bytes: int = 0) -> Path:
    """Create the folder if it is missing, and test with a small file that it is writable. Returns the folder.

    need_bytes: free space that the caller needs. Raises OutputError, and then removes the folders it created.
    """
    folder = Path(path)
    made: list[Path] = []
    try:
        try:
            _make_folders(folder, made)
            probe = folder / f".{secrets.token_hex(6)}-probe"
            try:
                with open(probe, "xb") as stream:
                    stream.write(b"\0")
                    stream.flush()
                    os.fsync(stream.fileno())
            finally:
                probe.unlink(missing_ok=True)
            free = shutil.disk_usage(folder).free
            if free < need_bytes:
                raise OutputError(
                    f"needs {need_bytes / 2**20:.0f} MiB of free space",
                    file=path,
                    value=f"{free / 2**20:.0f} MiB",
                    remedy=_REMEDIES[errno.ENOSPC],
                )
        except OSError as error:
            raise output_error(error, path) from error
    except BaseException:
        for folder_made in reversed(made):
            with contextlib.suppress(OSError):
                folder_made.rmdir()
        raise
    return folder


def output_error(error: OSError, path: str | os.PathLike[str]) -> OutputError:
    """An OutputError that explains why `path` could not be written."""
    reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "Choose another file or folder.")
    return OutputError(f"cannot be written: {reason.lower()}", file=path, remedy=remedy)


def _make_folders(folder: Path, made: list[Path]) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir()
        made.append(each)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
