"""The page beside `run --step`: it follows the run, and a click in it is a line at the terminal."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
from bright_volumes import SEGMENTER, Clicker, two_things
from browser import Browser
from ibis_agent.actions import Click
from ibis_agent.cli import live, runner, terminal
from ibis_agent.cli.commands import main
from ibis_agent.record.trajectory import Trajectory
from scripted_cli import a_scan, in_use, interruptible, recorded  # noqa: F401


@dataclass
class Stepping:
    """A run that waits for the person: where its page is, how to type, and how to see its end."""

    address: str
    keyboard: int
    thread: threading.Thread
    codes: list[int]
    out: Path

    def type(self, line: str) -> None:
        os.write(self.keyboard, (line + "\n").encode())

    def end(self) -> Trajectory:
        self.type("a")
        self.thread.join()
        assert self.codes == [0]
        return recorded(self.out)

    def ask(
        self, method: str, path: str, body: str | None = None, host: str | None = None
    ) -> tuple[int, str]:
        where = urlsplit(self.address)
        connection = http.client.HTTPConnection("127.0.0.1", where.port or 0, timeout=600)
        connection.request(method, path, body, {"Host": host or where.netloc})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.fixture(name="step")
def stepping(
    use: Any, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Stepping]]:
    """`step(tty=…)` begins a run whose input is a terminal, or a pipe, and waits until it asks."""
    made: list[Stepping] = []

    def begin(tty: bool = True, volume: bool = False) -> Stepping:
        use()
        asked, options = scan, ["--step"]
        if volume:
            monkeypatch.setattr(runner, "load_segmenter", lambda _: SEGMENTER)
            monkeypatch.setattr(runner, "load_policy", lambda *_: Clicker())
            voxels = np.stack([np.where(each, 200, 10) for each in two_things()]).astype(np.int16)
            asked = tmp_path / "made.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels.transpose(), np.diag([-1.0, -1.0, 3.0, 1.0])), asked)
            options += ["--volume", "--follow", "memory", "--window", "0", "255"]
        reading, keyboard = pty.openpty()[::-1] if tty else os.pipe()
        monkeypatch.setattr(sys, "stdin", open(reading, encoding="utf-8"))  # noqa: SIM115 - the run reads it
        out, codes = tmp_path / "out", []
        command = ["run", str(asked), "--prompt", "Segment the liver", "--out", str(out), *options]
        thread = threading.Thread(target=lambda: codes.append(main(command)))
        thread.start()
        said = ""
        while "Enter continues" not in said:
            assert thread.is_alive(), said
            said += capsys.readouterr().out
            time.sleep(0.02)
        found = re.search(r"http://\S+", said)
        assert found, said
        made.append(Stepping(found.group(), keyboard, thread, codes, out))
        return made[-1]

    yield begin
    for each in made:
        if each.thread.is_alive():
            each.type("q")
            each.thread.join()


def test_a_click_in_the_page_acts_and_the_page_shows_what_came_of_it(step: Any, browser: Browser) -> None:
    run = step()
    browser.open(run.address)
    assert browser.text("#position") == "Step 1 of 1"
    browser.run("document.querySelector('input[name=sign][value=\"-\"]').click()")
    browser.click_at("#pixels", 0.75, 0.25)
    browser.until("return document.querySelector('#position').textContent === 'Step 2 of 2'")
    assert "by a person" in browser.text("#step-by")
    kept = run.end()
    action = kept.steps[1].action
    assert isinstance(action, Click) and not action.positive and kept.steps[1].by == "person"
    assert action.x == pytest.approx(0.75, abs=0.01) and action.y == pytest.approx(0.25, abs=0.01)


def test_the_buttons_are_words_of_the_terminal_and_typing_goes_on_beside_them(
    step: Any, browser: Browser
) -> None:
    run = step()
    browser.open(run.address)
    browser.run(
        "[...document.querySelectorAll('.live button')].find((b) => b.textContent === 'Continue').click()"
    )
    browser.until("return document.querySelector('#position').textContent === 'Step 2 of 2'")
    run.type("b")
    browser.until("return document.querySelector('#position').textContent === 'Step 1 of 1'")
    assert [each.by for each in run.end().steps] == ["policy", "person"]
    outside = [each for each in browser.requests() if each.startswith("http")]
    assert outside and all(each.startswith("http://127.0.0.1:") for each in outside)


def test_where_the_terminal_cannot_wait_for_it_a_click_gives_the_line_to_type(
    step: Any, browser: Browser
) -> None:
    run = step(tty=False)
    browser.open(run.address)
    browser.click_at("#pixels", 0.25, 0.5)
    browser.until("return document.querySelector('#live-text').textContent.includes('terminal')")
    line = browser.text("#live-text").partition(": ")[2]
    command = terminal.read_command(line, 40, 30)
    assert isinstance(command, terminal.Add) and command.click.x == pytest.approx(0.25, abs=0.01)
    run.type(line)
    browser.until("return document.querySelector('#position').textContent === 'Step 2 of 2'")
    assert run.end().steps[1].action == command.click


def test_in_a_volume_a_click_names_its_slice(step: Any, browser: Browser) -> None:
    run = step(tty=False, volume=True)
    browser.open(run.address)
    index = browser.run("return document.body.dataset.slice")
    browser.click_at("#pixels", 0.25, 0.5)
    browser.until("return document.querySelector('#live-text').textContent.includes('terminal')")
    command = terminal.read_command(browser.text("#live-text").partition(": ")[2], 40, 30, volume=True)
    assert isinstance(command, terminal.Add) and command.index == int(index)


def test_the_page_hears_of_the_end_before_its_server_goes(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_OPEN", 600.0)  # however slow the machine is
    run = step()
    path = urlsplit(run.address).path
    run.ask("GET", path + "state")  # a page that looks for news is open
    run.type("q")
    while not json.loads(run.ask("GET", path + "state")[1])["ended"]:
        assert run.thread.is_alive()
    run.thread.join()
    with pytest.raises(OSError):
        run.ask("GET", path + "state")


def test_only_who_knows_the_address_is_answered(step: Any) -> None:
    run = step()
    path = urlsplit(run.address).path
    assert run.ask("GET", path)[0] == 200
    assert run.ask("GET", "/")[0] == run.ask("GET", "/other/")[0] == run.ask("GET", path + "../x")[0] == 404
    assert run.ask("GET", path, host="evil.example")[0] == 404
    assert run.ask("POST", "/command", "d")[0] == run.ask("POST", path + "command", "d" * 300)[0] == 404
    assert len(run.end().steps) == 2


def test_a_command_is_taken_only_while_the_run_waits_and_one_at_a_time() -> None:
    keyboard, terminal_end = pty.openpty()
    with open(terminal_end, encoding="utf-8") as stream:
        page = live.Live(Path("nowhere"), stream)
        try:
            assert page.acts and not page.take(b"+ 0.5 0.5")
            assert "Nothing is recorded yet" in page.page()
            heard: list[str] = []
            lines: list[str] = []
            waiting = threading.Thread(target=lambda: lines.append(page.line(heard.append)))
            waiting.start()
            while not page.take(b"+ 0.5 0.5"):
                time.sleep(0.01)
            assert not page.take(b"- 0.1 0.1")
            waiting.join()
            assert lines == ["+ 0.5 0.5\n"] and heard == ["+ 0.5 0.5"]
        finally:
            page.close()
    os.close(keyboard)


def test_a_command_in_the_instant_of_a_typed_line_is_done_first_and_the_line_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyboard, terminal_end = pty.openpty()
    plain, told = live.select.select, list[str]()
    with open(terminal_end, encoding="utf-8") as stream:
        page = live.Live(Path("nowhere"), stream)

        def between(*arguments: Any) -> Any:
            found = plain(*arguments)
            if (
                not told and len(arguments) == 3
            ):  # the line has been seen, and the page still believes we wait
                assert page.take(b"+ 0.5 0.5")
                told.append("taken")
            return found

        try:
            monkeypatch.setattr(live.select, "select", between)
            os.write(keyboard, b"b\n")
            assert page.line(told.append) == "+ 0.5 0.5\n" and told == ["taken", "+ 0.5 0.5"]
            assert page.line(told.append) == "b\n"
        finally:
            monkeypatch.undo()
            page.close()
    os.close(keyboard)
