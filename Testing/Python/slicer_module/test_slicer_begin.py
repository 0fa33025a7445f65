"""A segment of the scene as the start of a run, and others that its mask never enters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import host
import ibis_agent
import numpy as np
import pytest
from slicer_panel import REPLIES, SLICE, Panel

DEMO = Path(ibis_agent.__file__).parent / "demo" / "segmenter" / "model.safetensors"
COLUMNS, ROWS = (
    slice(20, 50),
    slice(30, 70),
)  # where the liver of the tests lies, on slices SLICE and SLICE + 1


def organs(panel: Panel, name: str = "Organs") -> Any:
    """A segmentation as TotalSegmentator leaves one: a liver, a neighbour that reaches into it, and an empty one."""
    import slicer

    volume = panel.ui.volumeSelector.currentNode()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentation, shape = node.GetSegmentation(), slicer.util.arrayFromVolume(volume).shape
    for segment, columns in (("Liver", COLUMNS), ("Kidney", slice(40, 60)), ("Nothing", slice(0, 0))):
        segmentation.AddEmptySegment(segment.lower(), segment)
        voxels = np.zeros(shape, np.uint8)
        voxels[SLICE : SLICE + 2, ROWS, columns] = 1
        if voxels.any():
            slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, node, segment.lower(), volume)
    return node


def liver(panel: Panel) -> np.ndarray:
    """(K, J, I) bool of the Liver."""
    import slicer

    mask = np.zeros(slicer.util.arrayFromVolume(panel.ui.volumeSelector.currentNode()).shape, bool)
    mask[SLICE : SLICE + 2, ROWS, COLUMNS] = True
    return mask


def choose(panel: Panel, node: Any, start: str = "", exclude: tuple[str, ...] = ()) -> None:
    """Press the button and choose in the box that comes."""
    import qt

    ui, begin = panel.ui, panel.module.widget.questionPanel.begin
    ui.beginButton.setChecked(True)
    panel.host.process_events()
    assert ui.beginBox.visible
    if start:
        ui.startNodeSelector.setCurrentNode(node)
        ui.startSegmentSelector.setCurrentIndex(ui.startSegmentSelector.findText(start))
    if exclude:
        ui.excludeNodeSelector.setCurrentNode(node)
        names = [node.GetSegmentation().GetSegment(each).GetName() for each in begin.list.keys]
        for row in (names.index(name) for name in exclude):
            begin.list.widget.item(row).setCheckState(qt.Qt.Checked)
    panel.host.process_events()


def press_step(panel: Panel) -> None:
    panel.host.press(panel.ui.stepButton)
    panel.rest()


def test_the_agent_begins_from_the_chosen_segment_and_never_enters_an_excluded_one(asked: Panel) -> None:
    panel, node = asked, organs(asked)
    assert not panel.ui.beginBox.visible
    choose(panel, node, "Liver", ("Kidney",))
    assert panel.ui.excludeSegmentsButton.text == "1 of 3"
    panel.step()
    head = panel.run.record.head
    before, after = panel.run.begun, panel.logic.steps[0]
    grown = panel.rows()[0][2].split("\n")[1].replace("\u202f", "")
    assert int(grown.replace("−", "-")) == round(after["area_mm2"] - before["area_mm2"])  # than the start
    assert head["start"]["name"] == "Organs: Liver" and head["excluded"]["name"] == "Organs: Kidney"
    kidney = np.zeros_like(liver(panel))
    kidney[SLICE, ROWS, 40:60] = True
    panel.logic.back(0)
    begun = liver(panel) & ~kidney
    begun[SLICE + 1] = False
    assert np.array_equal(
        panel.shown_mask(), begun
    )  # before the first step: the start, on the slice asked about
    panel.run_all()
    assert panel.shown_mask()[SLICE].sum() > 0 and not (panel.shown_mask() & kidney).any()


def test_asking_leaves_only_the_nodes_of_the_run_in_the_scene(asked: Panel) -> None:
    import slicer

    panel, node = asked, organs(asked)
    choose(panel, node, "Liver", ("Kidney",))

    def labels() -> int:
        return sum(
            len(slicer.util.getNodesByClass(name))
            for name in (
                "vtkMRMLLabelMapVolumeNode",
                "vtkMRMLLabelMapVolumeDisplayNode",
                "vtkMRMLColorTableNode",
            )
        )

    before = labels()
    press_step(panel)
    assert panel.run is not None, panel.status
    assert labels() == before


def test_the_start_is_shown_as_soon_as_the_worker_has_the_slice(asked: Panel) -> None:
    panel = asked
    panel.script(seconds=0.3)  # so that the first thought lasts
    choose(panel, organs(panel), "Liver")
    panel.host.press(panel.ui.stepButton)
    panel.thinking()
    assert not panel.logic.steps and panel.shown_mask()[SLICE].sum() == liver(panel)[SLICE].sum()
    assert panel.ui.startNodeSelector.enabled is False  # it belongs to the run now
    assert "Started from Organs: Liver." in panel.ui.beginButton.toolTip
    panel.logic.stop()


@pytest.mark.parametrize(
    ("start", "slice_", "told"),
    [
        ("Nothing", SLICE, "The segment Nothing is empty. Draw it first"),
        (
            "Liver",
            SLICE + 5,
            f"The segment Liver is not on slice {SLICE + 6}: it is on slices {SLICE + 1} to",
        ),
    ],
)
def test_a_start_that_cannot_be_one_is_named_with_what_to_do(
    asked: Panel, start: str, slice_: int, told: str
) -> None:
    panel = asked
    choose(panel, organs(panel), start)
    panel.show_slice(panel.ui.volumeSelector.currentNode(), slice_)
    press_step(panel)
    assert panel.status.startswith(told) and "under Begin from" in panel.status
    assert panel.run is None and panel.ui.startNodeSelector.enabled


def test_a_start_outside_the_volume_is_named(asked: Panel) -> None:
    import slicer
    import vtk

    panel, node = asked, organs(asked)
    away = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Away")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 5000.0)
    away.SetMatrixTransformToParent(matrix)
    node.SetAndObserveTransformNodeID(away.GetID())
    choose(panel, node, "Liver")
    press_step(panel)
    assert panel.status.startswith("The segment Liver is outside ct_abdomen_3mm.") and panel.run is None


def test_segments_are_offered_also_where_the_node_has_got_another_segmentation(asked: Panel) -> None:
    import slicer

    panel, node = asked, organs(asked)
    choose(panel, node, "Liver")
    selector, other = panel.ui.startSegmentSelector, slicer.vtkSegmentation()
    other.DeepCopy(node.GetSegmentation())
    other.RemoveSegment("liver")
    node.SetAndObserveSegmentation(other)
    panel.host.process_events()
    assert panel.module.widget.questionPanel.begin.start is None and selector.findText("Liver") < 0
    other.GetSegment("kidney").SetName("Left kidney")
    panel.host.process_events()
    assert selector.findText("Left kidney") > 0


def test_a_segment_that_is_deleted_is_no_longer_chosen_and_a_script_is_told_its_name(asked: Panel) -> None:
    panel, node = asked, organs(asked)
    choose(panel, node, "Liver", ("Kidney",))
    node.GetSegmentation().RemoveSegment("kidney")
    panel.host.process_events()
    begin = panel.module.widget.questionPanel.begin
    assert begin.start == (node, "liver") and begin.exclude == []
    node.GetSegmentation().RemoveSegment("liver")
    panel.host.process_events()
    assert begin.start is None
    volume = panel.ui.volumeSelector.currentNode()
    with pytest.raises(RuntimeError, match="Organs no longer has the segment liver"):
        panel.logic.ask(volume, "Segment the liver.", start=(node, "liver"))
    import slicer

    slicer.mrmlScene.RemoveNode(node)
    with pytest.raises(RuntimeError, match="was deleted"):
        panel.logic.ask(volume, "Segment the liver.", exclude=[(node, "kidney")])
    assert panel.run is None


def test_a_start_that_is_wholly_excluded_is_told(asked: Panel) -> None:
    panel, node = asked, organs(asked)
    choose(panel, node, "Liver", ("Liver",))
    press_step(panel)
    assert panel.status.startswith("All of the segment Liver is excluded.") and panel.run is None


def test_all_others_ticks_every_segment_but_the_start(asked: Panel) -> None:
    panel, node = asked, organs(asked)
    choose(panel, node, "Liver")
    panel.ui.excludeNodeSelector.setCurrentNode(node)
    begin = panel.module.widget.questionPanel.begin
    actions = panel.menu(panel.ui.excludeSegmentsButton.menu())
    actions["All others"].trigger()
    assert [segment for _, segment in begin.exclude] == ["kidney", "nothing"]
    assert panel.ui.excludeSegmentsButton.text == "2 of 3"
    actions["None"].trigger()
    assert begin.exclude == [] and begin.start == (node, "liver")


def test_what_the_segment_becomes_after_the_question_does_not_matter_also_in_a_saved_scene(
    asked: Panel, tmp_path: Path
) -> None:
    panel, node = asked, organs(asked)
    panel.logic.ask(
        panel.ui.volumeSelector.currentNode(), "Segment the liver.",
        index=SLICE, start=(node, "liver"), exclude=[(node, "kidney")],
    )  # fmt: skip
    node.GetSegmentation().RemoveSegment("liver")
    panel.host.save_scene(tmp_path / "begun.mrb")
    panel.host.close_scene()
    panel.host.open_scene(tmp_path / "begun.mrb")
    assert panel.run is not None and not panel.run.isOpened
    panel.step()
    head = panel.run.record.head
    assert head["start"]["name"] == "Organs: Liver" and head["excluded"]["name"] == "Organs: Kidney"
    panel.logic.back(0)
    assert panel.shown_mask()[SLICE, ROWS, 20:40].all() and panel.shown_mask().sum() == 20 * 40


def test_a_run_from_a_start_is_replayed_to_the_same_masks_and_goes_on_after_the_worker_died(
    asked: Panel, tmp_path: Path
) -> None:
    import json

    from ibis_agent.record.trajectory import Trajectory

    panel = asked
    choose(panel, organs(panel), "Liver", ("Kidney",))
    panel.step()
    panel.logic.worker.client.kill()
    panel.step()
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(panel.run.record.trajectory()), "utf-8")
    given = Trajectory.load(path).given
    kidney = given.excluded[SLICE]
    assert given.start_name == "Organs: Liver" and not (given.start[SLICE] & kidney).any()
    for number in (1, 2):
        assert not (panel.run.record.mask(number) & kidney).any()
    # In Slicer again, from its file.
    shown = panel.shown_mask()
    panel.logic.discard()
    panel.logic.openRecorded(str(path))
    assert np.array_equal(panel.shown_mask(), shown)


def test_the_next_question_does_not_begin_from_the_last_ones_segment_but_keeps_what_is_excluded(
    asked: Panel,
) -> None:
    panel = asked
    choose(panel, organs(panel), "Liver", ("Kidney",))
    panel.step()
    panel.host.press(panel.ui.acceptButton)
    begin = panel.module.widget.questionPanel.begin
    assert begin.start is None and [segment for _, segment in begin.exclude] == ["kidney"]
    panel.ask("Segment the spleen.")
    press_step(panel)
    assert "start" not in panel.run.record.head
    assert panel.run.record.head["excluded"]["name"] == "Organs: Kidney"


def test_a_start_that_is_chosen_for_the_next_question_stays_when_accepted_steps_are_looked_at(
    asked: Panel,
) -> None:
    panel = asked
    panel.step()
    panel.step()
    panel.host.press(panel.ui.acceptButton)
    choose(panel, organs(panel), "Liver")
    panel.select(1)
    assert panel.ui.startSegmentSelector.currentText == "Liver"


def test_what_is_chosen_counts_only_while_the_button_is_pressed(asked: Panel) -> None:
    panel = asked
    choose(panel, organs(panel), "Liver", ("Kidney",))
    panel.ui.beginButton.setChecked(False)
    panel.host.process_events()
    assert not panel.ui.beginBox.visible
    panel.step()
    assert not {"start", "excluded"} & set(panel.run.record.head)


def test_another_segmentation_with_the_same_ids_is_not_taken_for_the_chosen_one(asked: Panel) -> None:
    panel = asked
    choose(panel, organs(panel), "Liver", ("Kidney",))
    other = organs(panel, "Other patient")
    panel.ui.startNodeSelector.setCurrentNode(other)
    panel.ui.excludeNodeSelector.setCurrentNode(other)
    begin = panel.module.widget.questionPanel.begin
    assert begin.start is None and begin.exclude == []


def test_a_mask_is_not_added_to_a_segment_of_another_segmentation_with_the_same_id(asked: Panel) -> None:
    panel = asked
    first, second = organs(panel), organs(panel, "Others")
    ui = panel.ui
    ui.segmentationSelector.setCurrentNode(first)
    ui.segmentSelector.setCurrentIndex(ui.segmentSelector.findText("Add to Kidney"))
    assert ui.segmentSelector.currentData == "kidney"
    ui.segmentationSelector.setCurrentNode(second)
    panel.host.process_events()
    assert ui.segmentSelector.currentData == ""  # a new segment


def test_each_of_several_structures_begins_from_the_segment_of_its_name_and_keeps_out_of_the_others(
    asked: Panel,
) -> None:
    panel, node = asked, organs(asked)
    node.GetSegmentation().GetSegment("kidney").SetName("kidney_left")
    choose(panel, node, "Liver", ("Liver", "kidney_left"))
    panel.ask("Segment the liver and the spleen.")
    press_step(panel)
    assert panel.status.startswith("Organs has no segment Spleen to begin from.") and panel.run is None
    panel.ui.questionEdit.setPlainText("")
    panel.ask("Segment the liver and the left kidney.")
    for name, other in (("Liver", "kidney_left"), ("kidney_left", "Liver")):
        press_step(panel)
        head = panel.run.record.head
        assert head["start"]["name"] == f"Organs: {name}" and head["excluded"]["name"] == f"Organs: {other}"
        panel.host.press(panel.ui.acceptButton)
        panel.rest()


def test_an_exclusion_holds_for_each_of_several_structures(asked: Panel) -> None:
    panel, node = asked, organs(asked)
    choose(panel, node, "", ("Kidney",))
    panel.ask("Segment the liver and the spleen.")
    press_step(panel)
    panel.host.press(panel.ui.acceptButton)
    panel.rest()
    press_step(panel)
    assert panel.run.record.question.startswith("Segment the spleen")
    assert panel.run.record.head["excluded"]["name"] == "Organs: Kidney"


def test_a_volume_run_begins_from_all_slices_of_the_segment_under_another_transform(
    panel: Panel, data: Path
) -> None:
    import slicer
    import vtk

    python = host.agent_python()
    if python is None or not DEMO.is_file():
        pytest.skip("no Python with the agent's packages, or no demonstration models (make venv)")
    panel.use_python(python)
    panel.script([REPLIES[3]], segmenter="demo")
    volume = panel.load(data / "ct_abdomen_3mm.nii.gz")
    panel.ask()
    node, wanted = organs(panel), liver(panel)
    shift = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Shift")
    matrix, spacing = vtk.vtkMatrix4x4(), volume.GetSpacing()
    matrix.SetElement(2, 3, 2 * spacing[2])  # two slices towards the head
    shift.SetMatrixTransformToParent(matrix)
    node.SetAndObserveTransformNodeID(shift.GetID())
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("volume"))
    choose(panel, node, "Liver")
    panel.host.press(panel.ui.stepButton)
    panel.rest()
    assert panel.run is not None and panel.run.isOpened, panel.status
    given = panel.run.record.head["start"]
    assert sorted(map(int, given["masks"])) == [SLICE + 2, SLICE + 3]
    begun = panel.run.record.slices(0)
    assert [panel.run.record.decode(begun[n]).sum() for n in (SLICE + 2, SLICE + 3)] == [
        wanted[SLICE].sum()
    ] * 2
