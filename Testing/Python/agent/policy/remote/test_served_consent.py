"""No picture and no key leaves this machine without a yes for that address; the record says where pictures went."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from chained_segmenter import ENDING
from chained_segmenter import picture as small_picture
from chat_server import ChatServer, seeing, serving
from ibis_agent.cli import chosen_policy
from ibis_agent.cli import commands as cli
from ibis_agent.engine.engine import Engine
from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.policy.remote.connection import Connection
from ibis_agent.policy.remote.source import RemoteAddress, settings_file
from PIL import Image
from remote_servers import KEY, organs, remote


@pytest.mark.parametrize(
    "url",
    ["ftp://x/v1", "http://", "localhost:8080", "http://a:b@host/v1", "http://x/v1?key=1", "http://[::1/v1"],
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        Connection(url)


def test_a_key_travels_only_encrypted_or_within_this_machine() -> None:
    with pytest.raises(InputError, match="unencrypted"):
        Connection("http://far.example/v1", KEY)
    with serving(seeing(lambda rgb, text: ENDING), key=KEY) as server:
        turn = observe(ModelCard(), Situation(small_picture().rgb, "Liver?"))
        assert remote(server.url, key=KEY).reply(turn) == ENDING
        with pytest.raises(ModelError, match="Check the key"):
            remote(server.url).reply(turn)


def test_no_picture_leaves_this_machine_without_a_yes_for_that_address() -> None:
    far = RemoteAddress("https://far.example/v1", "m")
    with pytest.raises(InputError, match=r"--send-pictures-to far\.example") as refused:
        far.open()
    assert "no names and no header" in str(refused.value)
    far.agree()
    assert not RemoteAddress("https://far.example/v1", "m").needs_yes
    assert RemoteAddress("https://other.example/v1", "m").needs_yes
    assert RemoteAddress("https://far.example:8443/v1", "m").needs_yes
    RemoteAddress("https://other.example/v1", "m").agree()
    assert RemoteAddress("https://far.example/v1", "m").needs_yes, "the address changed in between"
    assert not RemoteAddress("http://127.0.0.1:1/v1", "m").needs_yes
    assert not RemoteAddress("https://far.example/v1", "m", agreed="far.example").needs_yes
    assert KEY not in settings_file().read_text()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.png"
    Image.fromarray(organs()).save(path)
    return path


def command(*arguments: object) -> int:
    return cli.main(["run", *map(str, arguments), "--quiet", "--no-review", "--prompt", "Segment the liver"])


def replies(folder: Path) -> list[Any]:
    return [step["reply"] for step in json.loads((folder / "trajectory.json").read_text())["steps"]]


def test_a_run_on_a_server_leaves_what_a_run_here_leaves_and_says_where_it_went(
    scan: Path, demo_server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, server = (
        tmp_path / "here",
        tmp_path / "there",
        ["--policy", demo_server.url, "--model", "demo"],
    )
    assert (
        command(scan, "--out", here) == command(scan, "--out", there, *server, "--card", demo_folder()) == 0
    )
    assert replies(here) == replies(there) and replies(here)
    assert (here / "mask.png").read_bytes() == (there / "mask.png").read_bytes()
    recorded = json.loads((there / "trajectory.json").read_text())
    assert recorded["models"]["policy"]["address"] == demo_server.url
    assert cli.main(["info", demo_server.url, "--card", str(demo_folder())]) == 0
    assert re.search("(9|10|11|12) of 12 known places hit", capsys.readouterr().out)


def test_a_far_server_is_sent_nothing_before_the_person_says_yes(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Connection, "open", lambda *_: pytest.fail("something was sent"))
    far = [scan, "--out", tmp_path / "out", "--policy", "https://far.example/v1", "--model", "m"]
    assert command(*far) == 2 and "--send-pictures-to far.example" in capsys.readouterr().err
    assert command(*far, "--send-pictures-to", "other.example") == 2
    assert "a different host" in capsys.readouterr().err
    answers = io.StringIO("no\n")
    monkeypatch.setattr(answers, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", answers)
    assert command(*far) == 2 and "Type yes" in capsys.readouterr().err
    assert command(scan, "--model", "m") == 2 and "--model is for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not settings_file().exists()


def test_a_yes_at_the_terminal_holds_for_that_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    far = {"policy": "https://far.example/v1", "model": "m", "card": None, "send_pictures_to": None}
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    chosen_policy.chosen(argparse.Namespace(**far))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    chosen_policy.chosen(argparse.Namespace(**far))
    with pytest.raises(InputError, match="would be sent to another machine"):
        chosen_policy.chosen(argparse.Namespace(**{**far, "policy": "https://near.example/v1"}))


def test_the_worker_takes_a_policy_behind_an_address_and_needs_the_same_yes(
    demo_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = {"request": "load", "id": 1, "device": "cpu"}

    def emit(event: str, **more: Any) -> None:
        pass

    near = {"policy": demo_server.url, "model": "demo", "card": str(demo_folder())}
    ready = Engine().do({**load, **near}, emit, lambda: False)
    assert ready["policy"]["address"] == demo_server.url and ready["card"]["orientation"] == "radiological"
    monkeypatch.setattr(Connection, "open", lambda *_: pytest.fail("something was sent"))
    with pytest.raises(InputError, match="would be sent to another machine"):
        Engine().do({**load, "policy": "https://far.example/v1", "model": "m"}, emit, lambda: False)
