"""After Accept: a table of measures, the next question at once, and several structures one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from slicer_panel import REPLIES, SLICE, Panel

LIVER = "<think>The liver.</think>\n<action>Positive Point (0.2200, 0.4200)</action>"
DONE = "<think>It is complete.</think>\n<action>Terminate</action>\n<answer>Found it.</answer>"
ABSENT = "<think>I do not see it.</think>\n<action>Terminate</action>\n<answer>It is not there.</answer>"


def segments(panel: Panel) -> list[str]:
    segmentation = panel.logic.results.segmentation.GetSegmentation()
    return [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]


def mask_of(panel: Panel, number: int) -> Any:
    import slicer

    node, volume = panel.logic.results.segmentation, panel.ui.volumeSelector.currentNode()
    return slicer.util.arrayFromSegmentBinaryLabelmap(
        node, node.GetSegmentation().GetNthSegmentID(number), volume
    )


def row(panel: Panel, number: int) -> dict[str, Any]:
    table = panel.logic.measuresTable.GetTable()
    names = [table.GetColumnName(n) for n in range(table.GetNumberOfColumns())]
    return {name: table.GetValue(number, n) for n, name in enumerate(names)}


def step(panel: Panel) -> None:
    """The first step of the next question, while the accepted steps are still shown."""
    panel.host.press(panel.ui.stepButton)
    panel.rest()
    assert len(panel.logic.steps) == 1, panel.status


# The table of measures


def test_accept_writes_what_the_segment_measures_into_a_table_with_units(
    stepped: Panel, tmp_path: Any
) -> None:
    import slicer

    panel, area, volume = stepped, stepped.logic.steps[-1]["area_mm2"], stepped.run.volumeNode
    inside = slicer.util.arrayFromVolume(volume)[panel.shown_mask()]
    panel.host.press(panel.ui.acceptButton)
    node = panel.logic.measuresTable
    assert node.GetName() == "ct_abdomen_3mm segmentation measures"
    values = row(panel, 0)
    assert values["Segment"].ToString() == "Liver"
    assert values["Largest area (mm²)"].ToDouble() == pytest.approx(area, rel=1e-3)
    assert values["Mean (HU)"].ToDouble() == pytest.approx(inside.mean(), abs=0.01)
    assert values["Slice"].ToInt() == SLICE + 1  # as the view counts
    assert np.isnan(values["Volume (mL)"].ToDouble())  # of one slice nobody knows it
    assert node.GetColumnUnitLabel("Longest diameter (mm)") == "mm"
    assert "It measures" in panel.status and "mm²" in panel.status
    path = tmp_path / "scene.mrb"
    panel.host.save_scene(path)
    panel.host.close_scene()
    panel.host.open_scene(path)
    (kept,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert kept.GetTable().GetNumberOfRows() == 1
    panel.ask()
    panel.step()
    (segmentation,) = [
        each
        for each in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        if not each.GetHideFromEditors()
    ]
    panel.logic.accept(segmentation)
    assert panel.logic.measuresTable is kept and kept.GetTable().GetNumberOfRows() == 2


def test_a_segment_over_several_slices_is_measured_as_slicer_measures_it(stepped: Panel) -> None:
    import slicer

    panel, volume = stepped, stepped.run.volumeNode
    panel.host.press(panel.ui.acceptButton)
    node = panel.logic.results.segmentation
    segment = node.GetSegmentation().GetNthSegmentID(0)
    panel.logic.ask(volume, "Segment the liver.", index=16)
    panel.logic.step()
    panel.logic.accept(node, segment)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, volume) != 0
    assert mask.any(axis=(1, 2)).sum() == 2
    voxel = float(np.prod(volume.GetSpacing()))
    assert panel.logic.measured.volume_ml == pytest.approx(mask.sum() * voxel / 1000, rel=1e-6)
    assert row(panel, 0)["Volume (mL)"].ToDouble() == pytest.approx(panel.logic.measured.volume_ml, abs=1e-3)
    assert panel.logic.measuresTable.GetTable().GetNumberOfRows() == 1


def test_a_row_that_was_deleted_by_hand_does_not_make_later_rows_double(stepped: Panel) -> None:
    panel = stepped
    panel.host.press(panel.ui.acceptButton)
    for _ in range(2):
        step(panel)
        panel.host.press(panel.ui.acceptButton)
    node, volume = panel.logic.results.segmentation, panel.ui.volumeSelector.currentNode()
    table = panel.logic.measuresTable.GetTable()
    assert table.GetNumberOfRows() == 3
    table.RemoveRow(0)
    last = node.GetSegmentation().GetNthSegmentID(2)
    for _ in range(2):  # the first is added below, since nobody knows whose rows these are
        panel.logic.ask(volume, "Segment the liver.", index=16)
        panel.logic.step()
        panel.logic.accept(node, last)
        assert table.GetNumberOfRows() == 3


# The next question


def test_the_next_question_is_typed_at_once_and_its_answer_is_a_further_segment(stepped: Panel) -> None:
    panel = stepped
    panel.host.press(panel.ui.acceptButton)
    first = np.array(mask_of(panel, 0))
    assert len(panel.rows()) >= 2  # still there to look at
    from PySide6 import QtWidgets

    assert QtWidgets.QApplication.focusWidget() is not None
    panel.host.key(None, "Ctrl+A")
    panel.host.type(panel.ui.questionEdit, "Segment the spleen.")
    assert panel.ui.questionEdit.plainText == "Segment the spleen."
    step(panel)
    panel.host.press(panel.ui.acceptButton)
    assert segments(panel) == ["Liver", "Spleen"]
    assert np.array_equal(np.array(mask_of(panel, 0)), first)  # though both masks cover the same voxels
    assert (np.array(mask_of(panel, 1)) != 0).sum() == panel.logic.accepted.rows()[0]["area_px"]
    assert panel.logic.measuresTable.GetTable().GetNumberOfRows() == 2


def test_a_run_about_another_volume_does_not_go_into_the_last_segmentation(stepped: Panel, data: Any) -> None:
    panel = stepped
    panel.host.press(panel.ui.acceptButton)
    first = panel.logic.results.segmentation
    panel.ui.volumeSelector.setCurrentNode(panel.load(data / "mr_abdomen_3mm.nii.gz"))
    step(panel)
    assert panel.ui.segmentationSelector.currentNode() is None
    panel.host.press(panel.ui.acceptButton)
    assert panel.logic.results.segmentation is not first


# Several structures


def test_a_question_for_several_structures_makes_a_segment_of_each(asked: Panel) -> None:
    panel = asked
    panel.script((LIVER, DONE.replace("Found it.", "The aorta.")))
    panel.ui.questionEdit.setPlainText("Segment the liver, the spleen and the aorta")
    panel.ui.nameEdit.setText("Mine")  # not the name of three segments
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: "Added 3 segments" in panel.status, 240, "all three")
    assert segments(panel) == ["Liver", "Spleen", "Aorta"]
    assert "Liver: The reply is about the aorta" in panel.status  # what to know before trusting it
    assert panel.run is None and len(panel.rows()) >= 2
    assert panel.logic.measuresTable.GetTable().GetNumberOfRows() == 3


def test_what_is_absent_is_named_and_the_rest_goes_on(asked: Panel) -> None:
    panel = asked
    panel.script((ABSENT,))
    panel.ui.questionEdit.setPlainText("Segment the liver and the spleen")
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: "Not found" in panel.status, 240, "both")
    assert "Not found: Liver, Spleen." in panel.status and panel.logic.results.segmentation is None


def test_a_run_that_needs_the_person_waits_and_goes_on_after_accept(asked: Panel) -> None:
    panel = asked
    panel.script((LIVER, "nonsense", "nonsense"))
    panel.ui.questionEdit.setPlainText("Segment the liver and the spleen")
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(
        lambda: panel.run is not None and panel.run.record.status == "paused", 240, "the pause"
    )
    assert panel.run.record.question == "Segment the liver"
    panel.host.press(panel.ui.acceptButton)
    panel.host.wait_until(
        lambda: panel.run is not None and panel.run.record.question == "Segment the spleen", 60, "the next"
    )
    panel.host.wait_until(lambda: panel.run.record.status == "paused", 240, "the pause")
    panel.host.press(panel.ui.discardButton)
    assert segments(panel) == ["Liver"]


def test_discarding_one_leaves_the_rest_in_the_question(asked: Panel) -> None:
    panel = asked
    panel.script(REPLIES)
    panel.ui.questionEdit.setPlainText("Segment the liver, the spleen and the aorta")
    panel.step()  # single steps: nothing follows by itself
    panel.host.press(panel.ui.discardButton)
    assert panel.ui.questionEdit.plainText == "Segment the spleen Segment the aorta"
    panel.step()
    assert panel.run.record.question == "Segment the spleen"


def test_structures_are_ticked_in_a_list_of_what_the_policy_knows(asked: Panel) -> None:
    import qt

    panel = asked
    structures = panel.module.widget.questionPanel.structures
    panel.menu(panel.module.widget.questionPanel._questions)
    names = [structures.list.widget.item(n).text() for n in range(structures.list.widget.count)]
    assert "Liver" in names and "Left kidney" in names
    assert (
        structures.list.widget.item(names.index("Liver")).checkState() == qt.Qt.Checked
    )  # as the question has it
    structures.list.widget.item(names.index("Left kidney")).setCheckState(qt.Qt.Checked)
    assert panel.ui.questionEdit.plainText == "Segment the liver and the left kidney."
    structures.list.widget.item(names.index("Spleen")).setCheckState(qt.Qt.Checked)
    assert panel.ui.questionEdit.plainText == "Segment the liver, the spleen and the left kidney."
    for name in ("Liver", "Spleen", "Left kidney"):
        structures.list.widget.item(names.index(name)).setCheckState(qt.Qt.Unchecked)
    assert panel.ui.questionEdit.plainText == ""
