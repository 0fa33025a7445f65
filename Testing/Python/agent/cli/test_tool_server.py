"""Tools for other agents: typed, over standard input and output, reading and writing only where they were told to."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import numpy as np
import pytest
from ibis_agent.cli.request import Request
from ibis_agent.cli.tool_server import Desk, server_of
from ibis_agent.errors import InputError
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("mcp")

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    rows, columns = np.mgrid[:96, :128]
    grey = np.where(np.hypot(rows - 40, columns - 50) < 20, 180, 60).astype(np.uint8)
    Image.fromarray(grey).save(folder / "disc.png")
    (tmp_path / "secret.png").write_bytes((folder / "disc.png").read_bytes())
    return folder


def test_another_agent_asks_clicks_measures_and_accepts(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"

    async def talk() -> dict[str, Any]:
        command = StdioServerParameters(
            command=sys.executable,
            args=["-m", "ibis_agent", "mcp", "--scans", str(scans), "--out", str(out), "--device", "cpu"],
            env={"PYTHONPATH": str(ROOT / "Logic"), "PATH": ""},
        )
        said: dict[str, Any] = {}
        async with stdio_client(command) as streams, ClientSession(*streams) as session:
            await session.initialize()
            said["tools"] = {tool.name for tool in (await session.list_tools()).tools}

            async def call(tool: str, **arguments: Any) -> Any:
                answer = await session.call_tool(tool, arguments)
                text = answer.content[0].text if answer.content else ""  # type: ignore[union-attr]
                return (answer.is_error, text)

            question = {"name": "liver-1", "scan": "disc.png", "question": "Segment the liver"}
            said["scans"] = await call("list_scans")
            said["outside"] = await call("ask", **{**question, "scan": "../secret.png"})
            said["ask"] = await call("ask", **question)
            said["click"] = await call("click", name="liver-1", x=0.4, y=0.42)
            said["box"] = await call("box", name="liver-1", x0=0.2, y0=0.2, x1=0.6, y1=0.7)
            said["back"] = await call("back", name="liver-1", keep=1)
            said["wrong"] = await call("click", name="liver-1", x=1.4, y=0.42)
            said["step"] = await call("step", name="liver-1")
            said["measure"] = await call("measure", name="liver-1")
            said["accept"] = await call("accept", name="liver-1")
            said["closed"] = await call("step", name="liver-1")
        return said

    said = asyncio.run(talk())
    assert said["tools"] == {
        "list_scans", "ask", "segment", "step", "finish", "click", "box", "back", "measure", "accept", "discard",
    }  # fmt: skip
    assert "disc.png" in said["scans"][1] and "secret" not in said["scans"][1]
    assert said["outside"][0] and "one folder only" in said["outside"][1]
    assert said["wrong"][0] and "from 0 to 1" in said["wrong"][1]
    assert said["closed"][0] and "Open it with ask first" in said["closed"][1]
    for done in ("ask", "click", "box", "back", "step", "measure", "accept"):
        assert not said[done][0], said[done]
    assert (
        len(json.loads(said["box"][1])["actions"]) == 2 and len(json.loads(said["back"][1])["actions"]) == 1
    )
    assert (out / "liver-1" / "mask.png").is_file() and (out / "liver-1" / "trajectory.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "secret.png", "results"}


@pytest.fixture
def desk(scans: Path, tmp_path: Path) -> Callable[..., Desk]:
    return lambda **more: Desk(Request(policy=policies.find(), device="cpu", **more), scans, tmp_path / "out")


def test_names_that_would_lead_elsewhere_are_refused(desk: Callable[..., Desk], tmp_path: Path) -> None:
    for name in ("../up", "", "a/b", ".hidden", "x" * 65):
        with pytest.raises(InputError, match="letters, digits"):
            desk().ask(name, "disc.png", "Segment the liver")
    assert not (tmp_path / "up").exists() and not (tmp_path / "out").exists()


def test_several_structures_are_segmented_in_one_call(desk: Callable[..., Desk], tmp_path: Path) -> None:
    open_desk, out = desk(), tmp_path / "out"
    done = open_desk.segment("abdomen", "disc.png", ["liver", "the spleen and the aorta"])
    assert [each["name"] for each in done["structures"]] == ["Liver", "Spleen", "Aorta"]
    assert {each["status"] for each in done["structures"]} <= {"ended", "paused"}
    assert (out / "abdomen" / "labels.png").is_file() and (out / "abdomen" / "liver" / "mask.png").is_file()
    with pytest.raises(InputError, match="already contains this name"):
        open_desk.segment("abdomen", "disc.png", ["liver"])
    with pytest.raises(InputError, match="one folder only"):
        open_desk.segment("other", "../secret.png", ["liver"])


def test_a_question_that_is_discarded_leaves_nothing(desk: Callable[..., Desk], tmp_path: Path) -> None:
    open_desk = desk()
    open_desk.ask("one", "disc.png", "Segment the liver")
    with pytest.raises(InputError, match="already open"):
        open_desk.ask("one", "disc.png", "Segment the liver")
    open_desk.click("one", 0.4, 0.42)
    open_desk.discard("one")
    assert not (tmp_path / "out" / "one").exists()
    (tmp_path / "out" / "two").mkdir(parents=True)
    with pytest.raises(
        InputError, match="already contains this name"
    ):  # a result that was accepted is not replaced
        open_desk.ask("two", "disc.png", "Segment the liver")
    with pytest.raises(InputError, match="no such folder"):
        Desk(Request(), tmp_path / "nowhere", tmp_path / "out")
    assert server_of(open_desk)
