"""The same session with the demonstration models: a real policy, a real segmenter, a real CT."""

from __future__ import annotations

from pathlib import Path

import host
import ibis_agent
import pytest
from slicer_panel import SLICE, Panel

DEMO = Path(ibis_agent.__file__).parent / "demo"


@pytest.fixture
def real(panel: Panel, data: Path) -> Panel:
    """The panel with the demonstration models and a CT."""
    python = host.agent_python()
    if python is None:
        pytest.skip("no Python with the agent's packages (make venv)")
    if (
        not (DEMO / "policy" / "config.json").is_file()
        or not (DEMO / "segmenter" / "model.safetensors").is_file()
    ):
        pytest.skip("the demonstration models are not in this checkout")
    panel.use_python(python)
    panel.load(data / "ct_abdomen_3mm.nii.gz")
    panel.ask()
    return panel


def test_the_demonstration_agent_finds_most_of_the_liver_and_its_answer_is_kept(
    real: Panel, data: Path
) -> None:
    import json

    import nibabel

    panel = real
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: not panel.logic.isWorking, 900, "the agent")
    assert panel.logic.steps, panel.status
    assert "not for patients" in panel.ui.footerLabel.text
    names = json.loads((data / "ct_abdomen_3mm_labels.json").read_text(encoding="utf-8"))
    names = names.get("labels", names)
    liver = next(int(value) for value, name in names.items() if str(name) == "liver")
    truth = nibabel.load(data / "ct_abdomen_3mm_labels.nii.gz").get_fdata() == liver
    mask = panel.shown_mask().transpose()  # this file is right-handed: Slicer's order is the file's
    overlap = 2 * (mask & truth)[:, :, SLICE].sum() / (mask[:, :, SLICE].sum() + truth[:, :, SLICE].sum())
    assert overlap > 0.5
    before = panel.shown_mask().sum()
    step = panel.logic.addClick(panel.mark_of(1), positive=True)
    assert step["by"] == "person"
    panel.host.press(panel.ui.undoButton)
    assert panel.shown_mask().sum() == before
    panel.host.press(panel.ui.acceptButton)
    node = panel.logic.results.segmentation
    assert node.GetSegmentation().GetNumberOfSegments() == 1


def test_there_is_room_for_the_demonstration_models(real: Panel) -> None:
    panel = real
    panel.ui.modelsSection.collapsed = False
    panel.host.press(panel.ui.checkButton)
    panel.host.wait_until(lambda: "it fits" in panel.ui.modelsStatusLabel.text, 300, "the answer")


def test_the_modules_own_test_passes_with_the_demonstration_models(real: Panel) -> None:
    real.module.source.IBISSlicerTest().runTest()
