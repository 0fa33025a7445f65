"""Settings of their own for the tests of served policies, and the demonstration behind a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import pytest
from chat_server import ChatServer, served, serving
from ibis_agent.policy.qwen25.source import demo_folder


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    monkeypatch.delenv("IBIS_API_KEY", raising=False)


@pytest.fixture(scope="module")
def demo() -> Any:
    return policies.open("demo", "cpu", "fp32")


@pytest.fixture(scope="module")
def demo_server(demo: Any) -> Iterator[ChatServer]:
    with serving(served(demo, demo_folder())) as server:
        yield server
