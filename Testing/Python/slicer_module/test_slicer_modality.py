"""What a volume is taken for is said beside it, with the reason, and the person can say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.scan.load import load_scan
from slicer_panel import Panel


def choose(panel: Panel, text: str) -> None:
    (action,) = (
        each for name, each in panel.menu(panel.ui.modalityButton.menu()).items() if name.startswith(text)
    )
    action.trigger()
    panel.host.process_events()


def button(panel: Panel) -> tuple[str, str]:
    return panel.ui.modalityButton.text, panel.ui.modalityButton.toolTip


def notes(panel: Panel) -> list[str]:
    """What the record of the run says of how the scan was read."""
    return list(panel.run.record.head["picture"].get("notes") or [])


@pytest.mark.parametrize(("name", "word"), [("ct", "CT?"), ("mr", "not CT?")])
def test_what_was_decided_is_said_as_at_the_terminal(panel: Panel, data: Path, name: str, word: str) -> None:
    assert not panel.ui.modalityButton.visible, "there is no volume to speak of"
    file = data / f"{name}_abdomen_3mm.nii.gz"
    panel.load(file)
    (told,) = load_scan(file).told
    shown, why = button(panel)
    assert shown == word and told[1:] in why
    panel.script()
    panel.ask()
    panel.step()
    assert notes(panel) == [told], "by the whole volume, though the worker has one slice"


def test_what_the_person_says_reaches_the_record_and_stays_with_the_volume(panel: Panel, data: Path) -> None:
    volume = panel.load(data / "ct_abdomen_3mm.nii.gz")
    panel.script()
    panel.ask()
    choose(panel, "MR")
    assert button(panel)[0] == "MR" and "as you chose" in button(panel)[1]
    panel.step()
    assert notes(panel) == ["taken as MR, as requested"]
    assert not panel.ui.modalityButton.enabled, "an open run keeps what it was asked with"
    panel.host.press(panel.ui.discardButton)
    assert button(panel)[0] == "MR" and volume.GetAttribute("IBISSlicer.Modality") == "MR"
    choose(panel, "From the file")
    assert button(panel)[0] == "CT?"


def test_what_dicom_says_is_overruled_with_a_word(panel: Panel, data: Path) -> None:
    import slicer

    volume = panel.load(data / "ct_abdomen_3mm.nii.gz")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    hierarchy.SetItemAttribute(hierarchy.GetItemByDataNode(volume), name, "CT")
    panel.module.widget.questionPanel.update()
    assert button(panel)[0] == "CT" and "DICOM" in button(panel)[1]
    panel.script()
    panel.ask()
    choose(panel, "PT")
    assert "headers say CT" in button(panel)[1]
    panel.step()
    assert notes(panel) == ["taken as PT, as requested; the file says CT"]


def test_the_window_follows_what_the_person_says(data: Path, tmp_path: Path) -> None:
    from ibis_agent.engine.question import cut_picture
    from ibis_agent.policy.card import ModelCard

    scan = load_scan(data / "ct_abdomen_3mm.nii.gz")
    np.save(tmp_path / "a.npy", scan.voxels[:, :, 15:16].transpose())
    image: dict[str, Any] = {
        "file": str(tmp_path / "a.npy"), "shape": scan.voxels.shape, "affine": scan.affine.tolist(), "axis": 2,
        "index": 15, "shown": [-1000, 1000], "likeness": [True, "air"],
    }  # fmt: skip
    card = ModelCard(window=(-160, 240))
    assert cut_picture(image, card).window == (-160, 240)
    assert cut_picture({**image, "taken_as": "MR"}, card).window == (-1000, 1000)
    assert cut_picture({**image, "likeness": [False, "odd"]}, card).window == (-1000, 1000)


def test_a_script_can_say_it_and_nonsense_is_refused(panel: Panel, data: Path) -> None:
    volume = panel.load(data / "mr_abdomen_3mm.nii.gz")
    with pytest.raises(Exception, match="not a modality"):
        panel.logic.ask(volume, "Segment the liver.", modality="M R")
    run = panel.logic.ask(volume, "Segment the liver.", modality="mr")
    assert run.modality[0] == "MR"
