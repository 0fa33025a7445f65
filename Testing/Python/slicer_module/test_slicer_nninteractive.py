"""nnInteractive as the segmenter that is chosen in Slicer: where it is, who said yes, its license, its client."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host
import pytest
import tomllib
from slicer_panel import REPLIES, Panel

ROOT = Path(__file__).resolve().parents[3]
ENTRY = "nnInteractive on a server …"


_SERVE = (
    "from nninteractive_server import Balls; s = Balls(); print(s.address, flush=True); s.serve_forever()"
)


@pytest.fixture
def address() -> Iterator[str]:
    """Of a server that speaks nnInteractive's protocol, on this computer, in the Python that has the client."""
    python = host.agent_python()
    if python is None:
        pytest.skip("no Python with the agent's packages (make venv)")
    command = [str(python), "-c", _SERVE]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.kill()


def choose(panel: Panel, text: str) -> None:
    panel.ui.segmenterSelector.setCurrentIndex(panel.ui.segmenterSelector.findText(text))
    panel.host.process_events()


def test_a_server_elsewhere_takes_slices_only_after_a_yes_that_is_asked_for_at_every_change(
    asked: Panel,
) -> None:
    from IBISSlicerLib.worker import Settings

    panel, there = asked, "http://gpu.example.org:1527"
    panel.host.answer(there, "Cancel")
    choose(panel, ENTRY)
    assert Settings.models().segmenter == "demo"
    assert panel.ui.segmenterSelector.currentText == "Demonstration model"
    told = panel.host.messages[-1].text
    assert told.startswith("gpu.example.org is another computer. It will receive all slices as pictures")
    panel.host.answer(there, "Ok")
    choose(panel, ENTRY)
    chosen = Settings.models()
    assert (chosen.segmenter, chosen.send_slices_to) == (f"nninteractive:{there}", "gpu.example.org")
    assert panel.ui.segmenterSelector.currentText == "nnInteractive at gpu.example.org:1527"
    assert f"sent to {there}" in panel.ui.footerLabel.text
    choose(panel, "Demonstration model")
    assert Settings.models().send_slices_to == ""
    panel.host.answer("Cancel")
    choose(panel, "nnInteractive at gpu.example.org:1527")  # from the list: the yes was for then
    assert Settings.models().segmenter == "demo"


def test_the_license_of_the_weights_is_shown_where_nninteractive_is_chosen_and_as_long_as_it_is(
    asked: Panel,
) -> None:
    from IBISSlicerLib.worker import Settings

    panel = asked
    panel.host.answer("http://localhost:1527")  # this computer: no question
    choose(panel, ENTRY)
    assert "CC BY-NC-SA 4.0, for noncommercial use only" in panel.host.messages[-1].kind  # the dialog's label
    assert "CC BY-NC-SA 4.0, for noncommercial use only" in panel.ui.footerLabel.text
    assert Settings.models().segmenter == "nninteractive:http://localhost:1527"
    choose(panel, "Demonstration model")
    assert "CC BY-NC-SA" not in panel.ui.footerLabel.text


def test_what_is_not_an_address_is_told_and_changes_nothing(asked: Panel) -> None:
    from IBISSlicerLib.worker import Settings

    panel = asked
    panel.host.answer("ftp://localhost")
    choose(panel, ENTRY)
    assert (
        "is not an nnInteractive address" in panel.status and "nninteractive:ftp://localhost" in panel.status
    )
    assert Settings.models().segmenter == "demo"
    panel.host.answer("")
    choose(panel, ENTRY)
    assert panel.ui.segmenterSelector.currentText == "Demonstration model"


def test_its_client_is_asked_for_only_where_it_is_chosen_in_one_line_and_installed_by_the_same_button(
    slicer_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(request: Any, timeout: float) -> Any:
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    panel = Panel(slicer_host, tmp_path, usable=False)
    panel.host.extensions.add_pytorch()
    panel.host.packages.provided_by = host.agent_python()
    panel.host.press(panel.ui.installButton)
    panel.host.wait_until(lambda: not panel.ui.noticeFrame.visible, 600, "the proof of the installation")
    asked_before = str(panel.host.packages.requests)
    assert "nninteractive" not in asked_before
    panel.host.answer("http://localhost:1527")
    choose(panel, ENTRY)
    assert panel.ui.noticeLabel.text == "Required packages are not installed: nnInteractive's client."
    panel.host.press(panel.ui.installButton)
    assert panel.host.packages.requests[-1] == ("pip", ["nninteractive-client>=2.6,<3"])
    panel.host.wait_until(lambda: not panel.ui.noticeFrame.visible, 600, "the proof of the installation")


def test_the_client_that_is_installed_is_the_one_that_the_package_asks_for() -> None:
    from ibis_agent.segmenter.nninteractive.source import REQUIREMENT

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert REQUIREMENT in extras["nninteractive"]


def test_a_click_in_a_volume_gives_a_mask_on_all_its_slices_at_once(
    panel: Panel, data: Path, address: str
) -> None:
    panel.use_python(str(host.agent_python()))
    panel.script([REPLIES[0], REPLIES[3]], segmenter=address)
    panel.load(data / "ct_abdomen_3mm.nii.gz")
    panel.ask()
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("volume"))
    panel.ui.firstSpinBox.setValue(10)
    panel.ui.lastSpinBox.setValue(22)
    while not panel.logic.steps or panel.logic.steps[-1]["kind"] != "click":
        panel.host.press(panel.ui.stepButton)
        panel.host.wait_until(lambda: not panel.logic.isWorking, 600, "the agent to rest")
        panel.host.process_events()
        assert panel.logic.steps, panel.status
    drawn = panel.shown_mask().any((1, 2)).nonzero()[0]
    assert len(drawn) > 3  # a ball reaches over several slices, and nothing was followed
    assert "grow" not in [step["kind"] for step in panel.logic.steps]
