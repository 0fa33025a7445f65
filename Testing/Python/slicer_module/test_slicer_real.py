"""What a real Slicer taught: its error log, its keys, its layouts, its panel's size, and a clumsy hand in it."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slicer_panel import ENDLESS, MODULE, REPLIES, SLICE, Panel

PANEL = (450, 670)  # pixels of Slicer's panel on a screen 900 high, less its own "Help" and "Data Probe"
TALLER = 1.2  # Slicer draws rows and buttons that much higher than the host, where nothing fixes their height


def top(panel: Panel, name: str) -> int:
    """Where a widget begins, in pixels from the top of the panel."""
    from PySide6 import QtCore, QtWidgets

    widget = getattr(panel.ui, name)
    return int(QtWidgets.QWidget.mapTo(widget, panel.module.panel, QtCore.QPoint(0, 0)).y())


BUTTONS = (
    "stepButton", "runButton", "stopButton", "includeButton", "excludeButton", "rejectButton", "backButton",
    "undoButton", "redoButton", "acceptButton", "discardButton", "exportButton",
)  # fmt: skip


def tops(panel: Panel) -> dict[str, int]:
    panel.host.process_events()
    return {name: top(panel, name) for name in BUTTONS}


# Quitting


def test_a_worker_that_is_still_ending_is_waited_for_when_slicer_quits(asked: Panel) -> None:
    from PySide6 import QtCore

    asked.step()
    asked.host.quit()  # the host notes a process that is destroyed while it runs, and the fixture fails on it
    for process in asked.host.app.findChildren(QtCore.QProcess):
        assert process.exitStatus() == QtCore.QProcess.ExitStatus.NormalExit, "it was not killed either"


# The error log


def test_a_question_leaves_nothing_in_the_error_log_and_its_nodes_stay_hidden_also_after_reopening(
    stepped: Panel,
) -> None:
    import slicer

    panel, path = stepped, stepped.folder / "scene.mrb"
    panel.host.save_scene(path)
    panel.host.close_scene()
    panel.host.open_scene(path)
    panel.select(1)
    panel.select(2)
    assert panel.host.complaints == []
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    node = panel.run.mask.node
    assert hierarchy.GetItemByDataNode(node) and node.GetHideFromEditors()
    assert panel.ui.segmentationSelector.nodeCount() == 0
    panel.host.press(panel.ui.acceptButton)
    assert panel.host.complaints == []


def test_only_our_own_lines_get_into_the_log(stepped: Panel) -> None:
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.name)

    root, listener = logging.getLogger(), Listener(logging.DEBUG)
    before = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)  # as Slicer has it
    try:
        stepped.logic.writeReview(str(stepped.folder / "review.html"))
    finally:
        root.removeHandler(listener)
        root.setLevel(before)
    assert set(heard) <= {"root"}


# A still panel


@pytest.mark.parametrize("scope", ["slice", "volume"])
def test_no_button_moves_while_the_agent_works_and_says_things(asked: Panel, scope: str) -> None:
    panel = asked
    panel.host.resize(1280, 900)
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData(scope))
    still = tops(panel)
    panel.module.widget.questionPanel.say("A long text. " * 30)
    assert tops(panel) == still
    panel.script((REPLIES[0], *ENDLESS), seconds=0.01)
    if scope == "slice":
        panel.step()
        assert tops(panel) == still
        panel.host.press(panel.ui.runButton)
        panel.thinking()
        assert tops(panel) == still
        panel.host.press(panel.ui.stopButton)
        assert tops(panel) == still
        panel.logic.addClick(panel.run.places.worldOf(0.45, 0.3), wait=False)
        panel.rest()
        panel.select(1)
        assert tops(panel) == still
        panel.host.press(panel.ui.acceptButton)
        assert tops(panel) == still
    else:
        panel.module.widget.volumePanel._showProgress(True)
        assert tops(panel) == still


@pytest.mark.parametrize("scope", ["slice", "volume"])
def test_everything_down_to_accept_is_visible_in_slicer_s_panel(asked: Panel, scope: str) -> None:
    panel = asked
    panel.host.window._set_panel_width(PANEL[0])
    panel.host.resize(1440, 400)  # lower than the panel can get: it takes the least height that it needs
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData(scope))
    panel.host.process_events()
    end = top(panel, "acceptButton") + int(panel.ui.acceptButton.height)
    fixed = sum(int(getattr(panel.ui, name).height) for name in ("questionEdit", "stepsTable"))
    assert fixed + (end - fixed) * TALLER <= PANEL[1]
    assert panel.module.panel.minimumSizeHint.width() <= PANEL[0]
    panel.host.resize(1440, 1000)
    assert top(panel, "includeButton") > end - panel.ui.acceptButton.height  # more height goes to the steps
    assert panel.ui.volumeBox.height < 60


def test_a_thought_wraps_and_its_row_is_as_high_as_it_needs(asked: Panel) -> None:
    thought = "The large, even organ on the left of the picture is the liver. " * 4
    asked.script((f"<think>{thought}</think>\n<action>Positive Point (0.22, 0.42)</action>", REPLIES[3]))
    asked.step()
    table = asked.ui.stepsTable
    assert asked.rows()[0][1] == thought.strip()
    line = table.fontMetrics().lineSpacing()
    assert table.rowHeight(0) > 3 * line
    asked.step()
    assert table.rowHeight(1) < 3 * line


# Layouts


def test_the_list_of_slice_views_follows_the_layout(asked: Panel) -> None:
    import slicer

    panel, layouts = asked, slicer.vtkMRMLLayoutNode

    def offered(layout: int) -> list[str]:
        panel.host.app.layoutManager().setLayout(layout)
        panel.host.process_events()
        return [panel.ui.viewSelector.itemText(n) for n in range(panel.ui.viewSelector.count)]

    assert len(offered(layouts.SlicerLayoutThreeByThreeSliceView)) == 9
    assert offered(layouts.SlicerLayoutOneUpRedSliceView) == ["Axial (Red)"]
    assert len(offered(layouts.SlicerLayoutThreeByThreeSliceView)) == 9
    assert len(offered(layouts.SlicerLayoutFourUpView)) == 3
    assert panel.ui.viewSelector.currentText == "Axial (Red)" and panel.ui.stepButton.enabled


# Keys


def test_keys_work_after_a_click_in_a_view_and_escape_ends_placing_before_it_stops(asked: Panel) -> None:
    panel = asked
    panel.script((REPLIES[0], *ENDLESS * 2), seconds=0.01)
    panel.step()
    panel.host.press(panel.ui.includeButton)
    panel.host.click("Red", panel.run.places.worldOf(0.45, 0.3))
    panel.rest()
    assert len(panel.rows()) == 2
    panel.host.press(panel.ui.runButton)
    panel.thinking()
    panel.host.click("Green", panel.run.places.centre(), button="right")
    panel.host.press(panel.ui.includeButton)
    panel.host.key(panel.host.app.layoutManager().sliceWidget("Red").sliceView(), "Escape")
    assert not panel.ui.includeButton.checked and panel.logic.isWorking
    panel.host.key(None, "Escape")
    assert not panel.logic.isWorking
    panel.host.key(None, "Ctrl+Z")
    assert len(panel.rows()) == 1


def test_a_click_in_a_view_takes_the_keyboard_there_as_in_slicer(asked: Panel) -> None:
    panel = asked
    panel.step()
    panel.step()
    panel.ui.questionEdit.setFocus()
    panel.host.click("Green", panel.run.places.centre())
    panel.host.key(None, "Ctrl+Z")
    assert len(panel.rows()) == 1


def test_keys_are_silent_while_another_module_is_shown(stepped: Panel) -> None:
    stepped.module.leave()
    stepped.host.key(None, "Ctrl+Z")
    assert len(stepped.logic.steps) == 2
    stepped.module.enter()
    stepped.host.key(None, "Ctrl+Z")
    assert len(stepped.logic.steps) == 1


# Small things


def test_entering_the_module_again_keeps_the_chosen_volume(panel: Panel, data: Path) -> None:
    first = panel.load(data / "ct_abdomen_3mm.nii.gz")
    panel.load(data / "mr_abdomen_3mm.nii.gz")
    panel.ui.volumeSelector.setCurrentNode(first)
    panel.module.leave()
    panel.module.enter()
    assert panel.ui.volumeSelector.currentNode() is first


def test_a_note_does_not_outlive_the_next_success(asked: Panel) -> None:
    panel = asked
    panel.step()
    panel.module.widget.questionPanel.say("Something failed.")
    panel.logic.addClick(panel.run.places.worldOf(0.45, 0.3))
    assert "failed" not in panel.status


def test_slices_are_counted_in_words_as_the_views_count_them(panel: Panel) -> None:
    from IBISSlicerLib.panels.Texts import countedFromOne

    for said, shown in (
        ("propagated from slice 44: slices 38 to 45", "propagated from slice 45: slices 39 to 46"),
        ("reaches the first slice of the range (38): it", "reaches the first slice of the range (39): it"),
        ("slices 3 to 7, 9 and 12 are doubtful", "slices 4 to 8, 10 and 13 are doubtful"),
        ("24 slices of 3 mm", "24 slices of 3 mm"),
    ):
        assert countedFromOne(said) == shown


def test_a_whole_volume_shows_its_range_and_no_slice_number(asked: Panel) -> None:
    panel = asked
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("volume"))
    assert panel.ui.rangeBox.visible and not panel.ui.sliceLabel.visible
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("slice"))
    assert panel.ui.sliceLabel.visible and not panel.ui.rangeBox.visible


def test_a_view_half_way_between_two_slices_shows_the_marks(asked: Panel) -> None:
    panel = asked
    panel.step()
    where = panel.mark_of(1)
    for half in (-1.5, 0.0, 1.4):  # mm, of 3
        place = tuple(np.add(where, (0, 0, half)))
        panel.host.show_slice("Red", place)
        pixels = panel.colours("Red", place).astype(int)
        green = (pixels[:, 1] > 180) & (pixels[:, 0] < 120) & (pixels[:, 2] < 160)
        assert green.sum() > 15, half


def test_the_self_test_leaves_no_folder_behind(asked: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBIS_TEST_SCRIPTED", "1")

    def folders() -> set[Path]:
        return set(Path(tempfile.gettempdir()).glob("IBISSlicerTest-*"))

    before = folders()
    asked.module.source.IBISSlicerTest().runTest()
    assert folders() == before


def test_saying_no_to_slicer_s_own_question_is_not_called_a_failure(
    slicer_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Panel(slicer_host, tmp_path, usable=False)
    model = type(slicer_host.app.extensionsManagerModel())
    monkeypatch.setattr(model, "installExtensionFromServer", lambda *_: False)
    fresh.host.press(fresh.ui.installButton)
    assert "was not installed" in fresh.ui.noticeLabel.text
    assert "could not" not in fresh.ui.noticeLabel.text


# Volumes as Slicer has them


def test_a_volume_under_a_bending_transform_is_refused_before_step_is_pressed(asked: Panel) -> None:
    import slicer
    import vtk

    panel, volume = asked, asked.ui.volumeSelector.currentNode()
    bend = vtk.vtkThinPlateSplineTransform()
    points = [vtk.vtkPoints(), vtk.vtkPoints()]
    for n, corner in enumerate(((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200), (80, 70, 60))):
        points[0].InsertNextPoint(corner)
        points[1].InsertNextPoint([each + (15 if n == 4 else 0) for each in corner])
    bend.SetSourceLandmarks(points[0])
    bend.SetTargetLandmarks(points[1])
    bend.SetBasisToR()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Bend")
    node.SetAndObserveTransformToParent(bend)
    volume.SetAndObserveTransformNodeID(node.GetID())
    panel.host.scroll("Red", 1)
    panel.host.process_events()
    assert not panel.ui.stepButton.enabled
    assert "nonlinear transform Bend" in panel.ui.stepButton.toolTip
    assert "Harden" in panel.status
    volume.SetAndObserveTransformNodeID(None)
    panel.show_slice(volume, SLICE)
    assert panel.ui.stepButton.enabled


def test_a_box_of_the_policy_s_is_drawn_and_named(stepped: Panel) -> None:
    panel, run = stepped, stepped.run
    run.record.steps[0]["action"] = {"kind": "box", "x0": 0.2, "y0": 0.3, "x1": 0.5, "y1": 0.6}
    panel.logic.show(1)
    assert "Box" in panel.ui.stepsTable.item(0, 0).toolTip()
    corners = np.array([run.boxMark.node.GetPolyData().GetPoint(n) for n in range(4)])
    wanted = np.array([run.places.worldOf(x, y) for x, y in ((0.2, 0.3), (0.5, 0.6))])
    assert np.allclose(corners.min(axis=0)[:2], wanted.min(axis=0)[:2], atol=4)  # pixels of 3 mm
    assert np.allclose(corners.max(axis=0)[:2], wanted.max(axis=0)[:2], atol=4)
    panel.logic.discard()
    assert run.boxMark.node is None


# The module and its sample


def test_opening_the_module_finds_the_agent_and_importing_its_file_does_not(
    slicer_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    before, agent = list(sys.path), {name for name in sys.modules if name.startswith("ibis_agent")}
    for name in agent:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location("ImportedOnly", MODULE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ImportedOnly", module)
    spec.loader.exec_module(module)
    assert sys.path == before and not any(name.startswith("ibis_agent") for name in sys.modules)
    assert slicer_host.open(MODULE).logic.steps == []


def test_the_phantom_is_offered_as_sample_data_with_its_own_thumbnail(panel: Panel) -> None:
    (sample,) = panel.host.samples.registered
    assert (sample["category"], sample["sampleName"]) == ("IBISSlicer", "IBISPhantom")
    thumbnail = Path(sample["thumbnailFileName"])
    assert thumbnail.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (volume,) = sample["customDownloader"](None)
    panel.host.process_events()
    assert volume.GetName() == "IBISPhantom"
    assert volume.GetDisplayNode().GetWindow() == 400
    panel.ask()
    panel.script()
    panel.step()


def test_a_photograph_is_asked_about_in_its_own_colours_and_not_as_a_whole_volume(panel: Panel) -> None:
    import slicer

    rows, columns = np.mgrid[:60, :80]
    colours = np.stack([rows * 4, columns * 3, np.full_like(rows, 40)], axis=2).astype(np.uint8)
    photograph = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Photograph")
    slicer.util.updateVolumeFromArray(photograph, colours[None])
    photograph.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    photograph.CreateDefaultDisplayNodes()
    panel.host.process_events()
    panel.ui.volumeSelector.setCurrentNode(photograph)
    panel.host.views["Red"].node.JumpSliceByOffsetting(-40.0, -30.0, 0.0)
    panel.script()
    panel.ask("Segment the lesion.")
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("volume"))
    assert not panel.ui.stepButton.enabled and "grayscale" in panel.ui.stepButton.toolTip
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("slice"))
    panel.step()
    from ibis_agent.record.pictures import picture_from_json

    seen = picture_from_json(panel.run.record.head["picture"])
    assert seen.window is None
    assert np.array_equal(seen.rgb, colours)  # as the view shows it: the first row on top
    panel.host.press(panel.ui.acceptButton)
    assert panel.logic.results.segmentation.GetSegmentation().GetNumberOfSegments() == 1


# After Accept


def test_after_accept_the_steps_stay_to_look_at_until_the_next_question(stepped: Panel) -> None:
    import slicer

    panel, rows, run = stepped, stepped.rows(), stepped.run
    area = panel.logic.steps[0]["area_px"]
    panel.host.press(panel.ui.acceptButton)
    assert panel.run is None and panel.rows()[:2] == rows
    assert not run.mask.node.GetDisplayNode().GetVisibility()  # the accepted segment is what is seen
    panel.select(1)
    assert run.mask.node.GetDisplayNode().GetVisibility()
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(run.mask.node, run.mask.segmentId, run.volumeNode)
    assert (mask != 0).sum() == area
    for name in (
        "includeButton",
        "backButton",
        "undoButton",
        "rejectButton",
        "acceptButton",
        "discardButton",
    ):
        assert not getattr(panel.ui, name).enabled, name
    path = panel.folder / "scene.mrb"
    panel.host.save_scene(path)
    panel.host.press(panel.ui.stepButton)
    panel.rest()
    assert [row[0] for row in panel.rows()] == ["1"]
    assert not slicer.mrmlScene.IsNodePresent(run.mask.node)
    panel.host.close_scene()
    panel.host.open_scene(path)
    assert panel.run is None and panel.rows() == []
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]
    assert names == ["ct_abdomen_3mm segmentation"]


def test_export_is_offered_only_where_there_is_something(asked: Panel) -> None:
    panel = asked
    assert not panel.ui.exportButton.enabled
    panel.step()
    assert panel.ui.exportButton.enabled
    panel.host.press(panel.ui.discardButton)
    assert not panel.ui.exportButton.enabled
