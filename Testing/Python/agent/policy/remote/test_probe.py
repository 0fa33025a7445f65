"""A served policy is probed before use: it is trusted, or refused with the figures and what to set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, seeing, serving
from ibis_agent.engine.engine import Engine
from ibis_agent.errors import Cancelled, ModelError
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.policy.remote.remote import RemotePolicy
from ibis_agent.policy.remote.source import RemoteAddress, settings_file
from remote_servers import pointing


def opened(server: ChatServer, **options: Any) -> RemotePolicy:
    return RemoteAddress(server.url, "demo", **options).open()


def test_a_server_that_points_rightly_is_trusted_and_asked_only_once() -> None:
    with serving(seeing(pointing())) as server:
        opened(server)
        count = len(server.bodies)
        assert count > 4 and opened(server) and len(server.bodies) == count
        assert RemoteAddress(server.url, "demo", demo_folder())._probed_as("demo") != RemoteAddress(
            server.url, "demo"
        )._probed_as("demo"), "another card is probed anew"


def test_a_cancel_of_the_worker_reaches_the_probe() -> None:
    with serving(seeing(pointing())) as server:
        asked = {
            "request": "load",
            "policy": server.url,
            "model": "demo",
            "segmenter": "demo",
            "device": "cpu",
        }
        with pytest.raises(Cancelled):
            Engine().do(asked, lambda *_, **__: None, lambda: len(server.bodies) > 1)
        assert len(server.bodies) == 2  # of six plates, and none is asked about again later
        assert "probed" not in (json.loads(settings_file().read_text()) if settings_file().is_file() else {})


def test_the_penalty_that_a_models_folder_asks_for_goes_with_every_question(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    with serving(seeing(pointing())) as server:
        policy = opened(server, card=tmp_path)
        opened(server)
        sent = [body["repetition_penalty"] for body in server.bodies]
        assert policy.identity["generation"] == "repetition penalty 1.05"
        assert set(sent) == {1.05, 1.0} and server.bodies[0]["repeat_penalty"] == 1.05


def test_the_demo_policy_behind_a_server_passes_the_probe(demo_server: ChatServer) -> None:
    source = RemoteAddress(demo_server.url, "demo", demo_folder())
    assert source.open().identity["name"] == "demo"
    assert re.search("(9|10|11|12) of 12 known places hit", source.probe(source.open()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (1.3 * x, 1.3 * y), r"1\.3\d times too far"),
        (lambda x, y: (y, x), "swaps x and y"),
        (lambda x, y: (0.5, 0.5), "miss"),
        (lambda x, y: (1000 * x, 1000 * y), "no click"),
        (lambda x, y: (x + 0.2, y), "miss"),
    ],
)
def test_a_server_whose_clicks_drift_is_refused_with_the_figures(change: Any, words: str) -> None:
    with serving(seeing(pointing(change))) as server, pytest.raises(ModelError, match=words) as refused:
        opened(server)
    assert "→" in str(refused.value)
    with serving(seeing(pointing(change))) as server, pytest.raises(ModelError):
        opened(server)


@pytest.mark.parametrize("scale", [1.3, 2.0, 0.5])
def test_a_server_that_rescales_pictures_is_refused_with_what_to_set(scale: float) -> None:
    words = r"192 more tokens was counted as having .*image-min-tokens"
    with serving(seeing(pointing(), scale)) as server, pytest.raises(ModelError, match=words):
        opened(server)
