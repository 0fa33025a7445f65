"""A run over a volume on the disk while it goes on: after every action it can be read as it stands, whatever happens.

The network is an exact one that finds bright things that touch (bright_volumes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bright_volumes import MIDDLE, SEGMENTER, Clicker, disc, run_over, two_things
from ibis_agent.errors import OutputError
from ibis_agent.mask.masks import encode_rle
from ibis_agent.record import journal
from ibis_agent.record.run_file import RunFile
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Watch
from ibis_agent.run.caveats import caveats
from ibis_agent.run.run import Run


def same(path: Path, run: Run) -> bool:
    """Whether the file says what the run is."""
    read = Trajectory.load(path)
    kinds = [(each.kind, each.index, each.clicks, each.ways) for each in read.actions]
    return (
        kinds == [(each.kind, each.index, each.clicks, each.ways) for each in run.actions]
        and np.array_equal(read.volume(), run.volume())
        and (read.status, read.reason, read.answer) == (run.status, run.reason, run.answer)
        and read.caveats == caveats(run)
    )


def worked(path: Path, **more: Any) -> tuple[Run, RunFile]:
    """A run to its end, saved after every action."""
    run, file = run_over(two_things(), policy=Clicker(), **more), RunFile(path, "folder/made.nii.gz")
    run.run(Watch(action=lambda _: file.save(run)))
    return run, file


def test_after_every_action_the_file_says_what_the_run_is(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.json"
    run, file = run_over(two_things(), policy=Clicker()), RunFile(path, "folder/made.nii.gz")
    seen: list[bool] = []

    def saved(_: object) -> None:
        file.save(run)
        seen.append(same(path, run))

    run.run(Watch(action=saved))
    assert len(seen) == len(run.actions) and all(seen)
    for change in (lambda: run.back(3), run.undo, lambda: run.click(20, MIDDLE), run.undo, run.redo):
        change()
        file.save(run)
        assert same(path, run)
    assert Trajectory.load(path).replay(SEGMENTER).differences == ()
    assert "folder" not in path.read_text() + journal.beside(path).read_text()


def test_an_action_adds_to_the_journal_what_is_new_and_rewrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.json"
    run, file = worked(path)
    before, so_far = path.read_bytes(), journal.beside(path).read_bytes()
    run.click(20, MIDDLE)
    file.save(run)
    now = journal.beside(path).read_bytes()
    assert path.read_bytes() == before and now.startswith(so_far)
    assert 0 < now.count(b'"png"') - so_far.count(b'"png"') <= 1, "a slice's picture is written once"


def test_a_line_that_a_kill_has_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.json"
    run, file = worked(path)
    count = len(run.actions)
    run.click(20, MIDDLE)
    file.save(run)
    whole = journal.beside(path).read_bytes()
    for cut in (1, 10, 200):
        journal.beside(path).write_bytes(whole[:-cut])
        assert len(Trajectory.load(path).actions) == count


def test_the_end_makes_one_file_of_it_and_a_journal_of_another_record_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.json"
    run, file = worked(path)
    left = journal.beside(path).read_bytes()
    file.finish(run)
    assert not journal.beside(path).exists() and same(path, run)
    journal.beside(path).write_bytes(left)
    assert same(path, run)
    for harm in (b"", b"\n", b"{}\n", b"no json\n{}\n", left.replace(b'"keep"', b'"kept"')):
        journal.beside(path).write_bytes(harm)
        assert same(path, run)


def test_a_killed_run_is_gone_on_with_from_its_last_action(tmp_path: Path) -> None:
    straight, _ = worked(tmp_path / "straight.json")
    path = tmp_path / "trajectory.json"
    killed, file = run_over(two_things(), policy=Clicker()), RunFile(path, "made.nii.gz")
    for _ in range(len(straight.actions) - 3):
        killed.step(Watch(action=lambda _: file.save(killed)))
    again = Trajectory.load(path).to_run(Clicker(), SEGMENTER, slices=straight.slices)
    other = RunFile(tmp_path / "other.json", "made.nii.gz")
    again.run(Watch(action=lambda _: other.save(again)))
    assert [each.kind for each in again.actions] == [each.kind for each in straight.actions]
    assert np.array_equal(again.volume(), straight.volume()) and same(other.path, again)


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trajectory.json"
    run, file = worked(path)
    kept = path.read_bytes(), journal.beside(path).read_bytes()
    run.click(20, MIDDLE)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(OutputError, match="no space"):
        file.finish(run)
    assert (path.read_bytes(), journal.beside(path).read_bytes()) == kept


def test_a_line_that_fails_half_way_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trajectory.json"
    run, file = run_over(two_things(), policy=Clicker()), RunFile(path, "made.nii.gz")
    run.click(20, MIDDLE)
    file.save(run)
    before, write, written = journal.beside(path).read_bytes(), file._row, list[int]()

    def full(of: Run, index: int) -> Any:
        written.append(index)
        if len(written) == 3:
            raise OSError(28, "no space left")
        return write(of, index)

    run.grow()
    monkeypatch.setattr(file, "_row", full)
    with pytest.raises(OutputError, match="no space"):
        file.save(run)
    assert len(written) == 3 and journal.beside(path).read_bytes() == before
    monkeypatch.undo()
    file.save(run)
    assert same(path, run) and len(Trajectory.load(path).actions) == 2


def test_the_slices_of_an_action_are_written_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trajectory.json"
    run, file = run_over(two_things(), policy=Clicker()), RunFile(path, "made.nii.gz")
    run.click(20, MIDDLE)
    file.save(run)
    write, alive, most = file._row, list[int](), list[int]()

    class Row(dict[str, Any]):
        def __del__(self) -> None:
            alive.pop()

    def counted(of: Run, index: int) -> Any:
        alive.append(index)
        most.append(len(alive))
        return Row(write(of, index) or {})

    run.grow()
    monkeypatch.setattr(file, "_row", counted)
    file.save(run)
    assert len(most) > 5 and max(most) <= 2 and same(path, run)


def test_masks_that_become_unknown_again_are_written_down_too(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.json"
    run, file = worked(path)
    run.back(1)
    file.save(run)
    read = Trajectory.load(path)
    assert same(path, run) and not read.volume().any()
    assert encode_rle(disc(5)) and read.visited == sorted(read.rows)


def test_caveats_come_and_go_with_the_actions_that_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.json"
    run, file = run_over([disc()] * 12, policy=Clicker()), RunFile(path, "made.nii.gz")
    run.run(Watch(action=lambda _: file.save(run)))
    file.save(run)
    assert run.status == "ended" and any("last slice of the scan" in each for each in caveats(run))
    assert journal.beside(path).exists() and same(path, run)
    run.back(1)
    file.save(run)
    assert not any("last slice" in each for each in caveats(run)) and same(path, run)
