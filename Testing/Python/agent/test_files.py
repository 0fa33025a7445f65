"""Files are whole or not there, and refusals say what to do."""

from __future__ import annotations

import errno
import os
import pickle
import stat
from pathlib import Path

import pytest
from ibis_agent import files
from ibis_agent.errors import InputError, OutputError, ReplyError
from ibis_agent.files import atomic_write, check_writable_folder, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "mask.seg.nrrd"
    with atomic_write(final) as temporary:
        temporary.write_bytes(b"half")
        assert not final.exists()
        assert temporary.parent == tmp_path and temporary.name.endswith(".seg.nrrd")
        temporary.write_bytes(b"whole")
    assert final.read_bytes() == b"whole"
    assert names(tmp_path) == ["mask.seg.nrrd"]


@pytest.mark.parametrize("trouble", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_whatever_breaks_the_writing_leaves_what_stood_there(tmp_path: Path, trouble: BaseException) -> None:
    final = tmp_path / "record.json"
    final.write_text("before")
    with pytest.raises(type(trouble)), atomic_write(final) as temporary:
        temporary.write_text("half")
        raise trouble
    assert final.read_text() == "before"
    assert names(tmp_path) == ["record.json"]


@pytest.mark.parametrize("step", ["write", "flush", "move"])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    final = tmp_path / "mask.nii.gz"
    final.write_text("before")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: object) -> None:
        raise full

    if step == "flush":
        monkeypatch.setattr(files.os, "fsync", refuse)
    elif step == "move":
        monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OutputError) as caught, atomic_write(final) as temporary:
        temporary.write_text("half")
        if step == "write":
            raise full
    assert str(final) in str(caught.value)
    assert "no space left" in str(caught.value)
    assert "Free some space" in str(caught.value)
    monkeypatch.undo()
    assert final.read_text() == "before"
    assert names(tmp_path) == ["mask.nii.gz"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_disk_that_is_really_full_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space left"), atomic_write(tmp_path / "a"):
        Path("/dev/full").write_bytes(b"x")
    assert names(tmp_path) == []


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        write_bytes(tmp_path / "file" / "mask.png", b"")
    with pytest.raises(OutputError, match="file, not a folder"):
        check_writable_folder(tmp_path / "file" / "out")
    with pytest.raises(OutputError):
        check_writable_folder(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_a_missing_folder_and_a_folder_in_the_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Create the folder"):
        write_bytes(tmp_path / "missing" / "a", b"")
    with pytest.raises(OutputError, match="is a folder"):
        write_bytes(tmp_path, b"")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_or_device_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        write_bytes(tmp_path / "pipe", b"")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "after"


def test_the_permissions_are_those_that_the_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_long_and_foreign_names_work(tmp_path: Path) -> None:
    for name in ("肝" * 80 + ".png", "a" * 250 + ".json", "-rf", "a b 'c'"):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    with pytest.raises(OutputError, match="shorter name"):
        write_text(tmp_path / ("a" * 300), "x")
    with pytest.raises(OutputError, match="not a valid file name"):
        write_text(f"{tmp_path}/a\0b", "x")


def test_text_that_has_no_utf8_form_is_written_all_the_same(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "lone \ud800 surrogate, 肝")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "lone ? surrogate, 肝"


def test_json_refuses_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"area": None, "name": "Leber"})
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", {"area": float("nan")})
    assert names(tmp_path) == ["a.json"]


def test_checking_a_folder_makes_it_and_leaves_no_trace(tmp_path: Path) -> None:
    folder = check_writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and names(folder) == []


def test_a_folder_without_room_is_refused_and_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="MiB of free space"):
        check_writable_folder(tmp_path / "a" / "b", need_bytes=2**60)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused_and_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(OutputError, match="read-only"):
        check_writable_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == []


def test_an_error_names_the_file_the_value_and_the_mend() -> None:
    error = InputError(
        "the window is reversed", file="ct.nii.gz", value="240 -160", remedy="Swap the two numbers."
    )
    assert str(error) == "ct.nii.gz: the window is reversed (got 240 -160). Swap the two numbers."
    assert str(ReplyError("no action")) == "no action."
    assert len(str(InputError("no", value="x" * 10_000))) < 300
    assert "\n" not in str(InputError("no", value="a\nb"))


def test_errors_travel_between_processes() -> None:
    error = InputError("no", file="a", value=3, remedy="b")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is InputError and str(again) == str(error) and again.value == 3
