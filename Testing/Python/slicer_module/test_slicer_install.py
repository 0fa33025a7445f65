"""First contact: nothing is installed yet. One line says what is missing, and there are ways out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import host
import pytest
from slicer_panel import MODULE, Panel


@pytest.fixture
def fresh(slicer_host: Any, tmp_path: Path) -> Panel:
    """The panel as it opens in a Slicer that has nothing."""
    return Panel(slicer_host, tmp_path, usable=False)


@pytest.fixture(autouse=True)
def github(monkeypatch: pytest.MonkeyPatch, slicer_host: Any) -> list[str]:
    """Addresses that answer; none at first, as behind a strict firewall. No test asks a network."""
    answering: list[str] = []

    def ask(request: Any, timeout: float) -> Any:
        if request.full_url not in answering:
            raise OSError("no route")
        return contextlib.nullcontext()

    monkeypatch.setattr("urllib.request.urlopen", ask)
    return answering


def agent_python() -> Path:
    python = host.agent_python()
    if python is None:
        pytest.skip("no Python with the agent's packages (make venv)")
    return python


def test_opening_says_in_one_line_what_is_missing_and_imports_nothing_heavy(fresh: Panel) -> None:
    assert fresh.ui.noticeLabel.text.startswith("Required packages are not installed: PyTorch, Transformers")
    assert "\n" not in fresh.ui.noticeLabel.text
    for name in ("installButton", "otherPythonButton"):
        assert getattr(fresh.ui, name).visible
    assert not fresh.ui.stepButton.enabled
    assert not {"torch", "transformers", "sam2"} & set(sys.modules)
    assert fresh.host.packages.requests == []  # and nothing was installed by opening


def test_install_takes_torch_from_its_extension_then_the_rest_and_proves_it(fresh: Panel) -> None:
    fresh.host.extensions.add_pytorch()
    fresh.host.packages.provided_by = agent_python()
    fresh.host.press(fresh.ui.installButton)
    kinds = [kind for kind, _ in fresh.host.packages.requests]
    assert kinds == ["torch", "pip", "pip"]
    assert fresh.host.packages.requests[0][1] == ["torch>=2.6"]
    assert any("transformers" in each for each in fresh.host.packages.requests[1][1])
    assert fresh.host.packages.requests[2][1] == ["--no-deps", "--no-build-isolation", "sam2>=1.1"]
    assert "Installing SAM 2 from PyPI (a third party's upload" in fresh.ui.installLogEdit.plainText
    assert not any("torchvision" in each for _, wanted in fresh.host.packages.requests for each in wanted)
    assert "SAM2_BUILD_CUDA" not in os.environ
    fresh.host.wait_until(lambda: not fresh.ui.noticeFrame.visible, 900, "the proof")
    fresh.ask()
    assert "Load a volume" in fresh.ui.stepButton.toolTip  # nothing else is in the way


def test_sam2_comes_from_meta_s_own_repository_where_that_answers(fresh: Panel, github: list[str]) -> None:
    from IBISSlicerLib.worker.Install import SAM2, SAM2_ARCHIVE

    github.append(SAM2_ARCHIVE)
    fresh.host.extensions.add_pytorch()
    fresh.host.press(fresh.ui.installButton)
    assert fresh.host.packages.requests[2][1] == ["--no-deps", "--no-build-isolation", SAM2]
    assert "Meta's repository" in fresh.ui.installLogEdit.plainText
    assert fresh.module.widget.installPanel._installer.missing() == []  # it is known by Meta's name as well
    makefile = (MODULE.parents[1] / "Makefile").read_text("utf-8")
    assert f"SAM2   ?= {SAM2}\n" in makefile


def test_slicer_5_10_installs_with_its_own_call_and_what_does_not_work_then_is_told(
    fresh: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slicer

    asked: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # came with 5.12
    monkeypatch.setattr(slicer.util, "pip_install", lambda requirements: asked.append(requirements))
    fresh.host.extensions.add_pytorch()
    fresh.host.press(fresh.ui.installButton)
    assert fresh.host.packages.requests == [("torch", ["torch>=2.6"])]
    others, sam2 = asked
    assert "transformers>=5.10,<6" in others
    assert sam2 == ["--no-deps", "--no-build-isolation", "sam2>=1.1"]
    fresh.host.wait_until(lambda: "test failed" in fresh.ui.noticeLabel.text, 60)  # no torch has come of it
    assert "torch" in fresh.ui.noticeLabel.text
    assert fresh.ui.noticeFrame.visible


def test_without_the_pytorch_extension_it_is_installed_and_a_restart_offered(fresh: Panel) -> None:
    fresh.host.answer("Cancel")
    fresh.host.press(fresh.ui.installButton)
    assert fresh.host.extensions.requested == ["PyTorch"]
    assert "Restart Slicer" in fresh.ui.noticeLabel.text
    assert fresh.host.packages.requests == []


def test_a_failed_installation_says_why_and_can_be_tried_again(fresh: Panel) -> None:
    fresh.host.extensions.add_pytorch()
    fresh.host.packages.failure = (
        "Collecting torch\nERROR: No space left on device\n[notice] a newer pip is there"
    )
    fresh.host.press(fresh.ui.installButton)
    assert "failed: ERROR: No space left on device. Check the network" in fresh.ui.noticeLabel.text
    assert fresh.ui.installButton.enabled
    assert "Collecting torch" in fresh.ui.installLogEdit.plainText  # what pip said, as it came


def test_an_installation_that_fails_in_another_way_is_told_too(
    fresh: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.host.extensions.add_pytorch()
    import PyTorchUtils

    def broken(*_: Any, **__: Any) -> None:
        raise ImportError("DLL load failed while importing _C")

    monkeypatch.setattr(PyTorchUtils.PyTorchUtilsLogic, "installTorch", broken)
    fresh.host.press(fresh.ui.installButton)
    assert "DLL load failed" in fresh.ui.noticeLabel.text
    assert fresh.ui.installButton.enabled


def test_a_file_that_is_no_program_is_refused_as_python(fresh: Panel, tmp_path: Path) -> None:
    text = tmp_path / "activate"
    text.write_text("not a program", encoding="utf-8")
    fresh.host.answer(str(text))
    fresh.host.press(fresh.ui.otherPythonButton)
    fresh.host.wait_until(lambda: "could not be started" in fresh.ui.noticeLabel.text, 30)
    import qt
    import slicer

    fresh.host.wait_until(lambda: not slicer.app.findChildren(qt.QProcess), 30, "the process to be deleted")


def test_another_python_is_checked_before_it_is_used(fresh: Panel, tmp_path: Path) -> None:
    wrong = tmp_path / "python"
    wrong.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    wrong.chmod(0o755)
    for path, words in ((wrong, "cannot be used"), (Path(sys.executable), "torch")):
        fresh.host.answer(str(path))
        fresh.host.press(fresh.ui.otherPythonButton)
        fresh.host.wait_until(lambda path=path: str(path) in fresh.ui.noticeLabel.text, 60)
        assert words in fresh.ui.noticeLabel.text
    right = tmp_path / "right python"
    right.write_text("#!/bin/sh\necho 3.12.4 2.9.1\n", encoding="utf-8")  # says what the proof prints
    right.chmod(0o755)
    fresh.host.answer(str(right))
    fresh.host.press(fresh.ui.otherPythonButton)
    fresh.host.wait_until(lambda: not fresh.ui.noticeFrame.visible, 60, "the proof")
    from IBISSlicerLib.worker import Settings

    assert Settings.python() == str(right)


def test_an_old_slicer_gets_a_sentence_instead_of_a_panel(
    slicer_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(slicer_host.app), "minorVersion", 8)
    module = slicer_host.open(MODULE)
    import qt

    texts = [label.text for label in module.panel.findChildren(qt.QLabel)]
    assert any("needs Slicer 5.10" in text for text in texts)
    assert not any(name.startswith("IBISSlicerLib") for name in sys.modules)


def test_the_example_can_be_stepped_through_with_nothing_installed(fresh: Panel) -> None:
    recorded = json.loads((MODULE.parent / "Resources" / "Example" / "trajectory.json").read_text("utf-8"))
    fresh.host.press(fresh.ui.exampleButton)
    assert len(fresh.rows()) == len(recorded["steps"]) >= 2
    assert recorded["picture"]["source"] == "phantom"  # nobody's scan
    for step in recorded["steps"][:2]:
        fresh.select(step["number"])
        assert fresh.selected[1] == step["thinking"]
        assert fresh.shown_mask().sum() == step["area_px"]
    last = recorded["steps"][-1]["number"]
    fresh.select(last)
    for name in ("stepButton", "includeButton", "excludeButton", "rejectButton", "loadButton"):
        assert not getattr(fresh.ui, name).enabled, name
    assert "not installed" in fresh.ui.includeButton.toolTip
    assert all(fresh.run.marks.nodes[role].GetLocked() for role in fresh.run.marks.ROLES)
    assert fresh.logic.worker.client.hello is None  # no process was started
