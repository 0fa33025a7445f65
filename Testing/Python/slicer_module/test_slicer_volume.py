"""A question about the whole volume in Slicer: the mask grows, every slice can be corrected, everything taken back.

In the simulated host: real scene and slice views, a real worker with the demonstration segmenter, and a script that
says what the policy would.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import host
import ibis_agent
import numpy as np
import pytest
from slicer_panel import REPLIES, Panel

DEMO = Path(ibis_agent.__file__).parent / "demo" / "segmenter" / "model.safetensors"
FIRST, LAST = 12, 18  # as the panel counts slices


@pytest.fixture
def grown(panel: Panel, data: Path) -> Panel:
    """A CT is shown, whole-volume scope with a range is chosen, the question is typed; nothing was pressed."""
    python = host.agent_python()
    if python is None or not DEMO.is_file():
        pytest.skip("no Python with the agent's packages, or no demonstration models (make venv)")
    panel.use_python(python)
    panel.script([REPLIES[0], REPLIES[3]], segmenter="demo")
    panel.load(data / "ct_abdomen_3mm.nii.gz")
    panel.ask()
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("volume"))
    assert panel.ui.rangeBox.visible and (panel.ui.firstSpinBox.value, panel.ui.lastSpinBox.value) == (1, 30)
    panel.ui.firstSpinBox.setValue(FIRST)
    panel.ui.lastSpinBox.setValue(LAST)
    return panel


def kinds(panel: Panel) -> list[str]:
    return [step["kind"] for step in panel.logic.steps]


def slices_with_mask(panel: Panel) -> list[int]:
    """As the panel counts them."""
    return [int(n) + 1 for n in np.flatnonzero(panel.shown_mask().any((1, 2)))]


def axial_slice(panel: Panel) -> int:
    from IBISSlicerLib.scene.Geometry import sliceOfView

    return int(sliceOfView(panel.host.views["Red"].node, panel.run.volumeNode).index) + 1


def step_until(panel: Panel, kind: str) -> None:
    while kind not in kinds(panel):
        panel.host.press(panel.ui.stepButton)
        panel.host.wait_until(lambda: not panel.logic.isWorking, 400, "the agent to rest")
        panel.host.process_events()


def at(panel: Panel, number: int, i: float, j: float) -> tuple[float, ...]:
    """A place in slice `number` of the volume."""
    from IBISSlicerLib.scene.Geometry import worldFromIjk

    return tuple(worldFromIjk(panel.run.volumeNode, (i, j, number - 1)))


def test_the_mask_grows_while_the_person_watches_and_goes_where_other_segments_stay_untouched(
    grown: Panel,
) -> None:
    import slicer

    panel = grown
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    mine.CreateDefaultDisplayNodes()
    volume = panel.ui.volumeSelector.currentNode()
    mine.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    other = mine.GetSegmentation().AddEmptySegment("other", "Other")
    painted = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
    painted[FIRST:LAST, 20:60, 20:60] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(painted, mine, other, volume)

    seen: list[tuple[int, str, int]] = []
    panel.logic.grew.connect(
        lambda message: seen.append(
            (message["slice"] + 1, panel.ui.progressBar.format, len(slices_with_mask(panel)))
        )
    )
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: not panel.logic.isWorking, 600, "the agent")
    assert panel.run.record.status == "ended", panel.status
    assert {"look", "click", "done", "grow", "end"} <= set(kinds(panel))
    assert seen[0][1].startswith(f"Slice {seen[0][0]}: 1 of ") and " s left" in seen[0][1]
    assert seen[0][2] < seen[len(seen) // 2][2]  # it grew before the person's eyes
    assert not panel.ui.progressBar.visible
    assert axial_slice(panel) == int(panel.selected[3])
    held = slices_with_mask(panel)
    assert len(held) > 2 and held[0] >= FIRST and held[-1] <= LAST
    spacing = float(np.prod(volume.GetSpacing()))
    assert f"{panel.shown_mask().sum() * spacing / 1000:.1f} mL" in panel.ui.answerLabel.text
    assert f"slices {held[0]} to {held[-1]}" in panel.ui.answerLabel.text
    assert panel.ui.plotLabel.visible and not panel.ui.plotLabel.pixmap.isNull()
    assert panel.ui.stepsTable.horizontalHeaderItem(2).text() == "mL"
    grew = panel.rows()[kinds(panel).index("grow")]
    assert f"propagated from slice {grew[3]}:" in grew[1]  # words and columns count alike
    assert panel.rows()[kinds(panel).index("look")][2] == ""  # nothing was measured at a look

    whole = panel.shown_mask()
    panel.ui.segmentationSelector.setCurrentNode(mine)
    panel.host.press(panel.ui.acceptButton)
    assert mine.GetSegmentation().GetNumberOfSegments() == 2, panel.status
    new = next(each for each in mine.GetSegmentation().GetSegmentIDs() if each != other)
    kept = slicer.util.arrayFromSegmentBinaryLabelmap(mine, new, volume) != 0
    assert np.array_equal(kept, whole)
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(mine, other, volume) != 0, painted != 0)


def test_a_row_leads_to_its_slice_and_any_slice_can_be_corrected_and_taken_back(
    grown: Panel, tmp_path: Path
) -> None:
    panel = grown
    step_until(panel, "grow")
    looks = [step for step in panel.logic.steps if step["kind"] == "look"]
    assert len(looks) > 2
    panel.select(looks[1]["number"])
    assert axial_slice(panel) == looks[1]["slice"] + 1 and slices_with_mask(panel) == []
    assert panel.selected[3] == str(looks[1]["slice"] + 1)
    panel.select(len(panel.logic.steps))
    before, count = panel.shown_mask(), len(panel.logic.steps)
    assert before.any()

    key = next(step["slice"] for step in panel.logic.steps if step["kind"] == "click") + 1
    far = LAST if key < (FIRST + LAST) // 2 + 1 else FIRST
    panel.show_slice(panel.run.volumeNode, far - 1)
    step = panel.logic.addClick(at(panel, far, 40, 70), positive=False)
    assert (step["by"], step["slice"] + 1) == ("person", far)
    clicked = panel.shown_mask()
    changed = {int(n) + 1 for n in np.flatnonzero((clicked != before).any((1, 2)))}
    assert changed <= {far} and axial_slice(panel) == far
    assert panel.selected[0] == str(len(panel.logic.steps))
    assert panel.ui.spreadButton.enabled
    panel.host.press(panel.ui.spreadButton)
    panel.rest()
    assert kinds(panel)[-2:] == ["click", "grow"]
    assert np.array_equal(panel.shown_mask()[far - 1], clicked[far - 1])
    panel.host.press(panel.ui.undoButton)
    assert np.array_equal(panel.shown_mask(), clicked)
    panel.host.press(panel.ui.undoButton)
    assert np.array_equal(panel.shown_mask(), before) and len(panel.logic.steps) == count
    panel.host.press(panel.ui.redoButton)
    assert np.array_equal(panel.shown_mask(), clicked)
    page = tmp_path / "review.html"
    panel.logic.writeReview(str(page))
    assert "Segment the liver." in page.read_text(encoding="utf-8")

    # The scene is saved and opened tomorrow: no models are needed to look at it.
    scene = tmp_path / "tomorrow.mrb"
    assert reopened(panel, scene) == len(panel.logic.steps)
    assert np.array_equal(panel.shown_mask(), clicked)


def reopened(panel: Panel, path: Path) -> int:
    """Save the scene, close it, open it again; how many steps came back."""
    panel.host.save_scene(path)
    panel.host.close_scene()
    assert panel.run is None and panel.rows() == []
    panel.logic.worker.client.kill()
    panel.host.open_scene(path)
    assert panel.logic.worker.client.state == "stopped"
    return len(panel.logic.steps)


def test_what_is_still_growing_is_neither_accepted_nor_saved_as_done(grown: Panel, tmp_path: Path) -> None:
    import slicer

    panel, scene, bars = grown, tmp_path / "meanwhile.mrb", []
    step_until(panel, "done")
    clicked = panel.shown_mask()
    seen: list[int] = []

    def meanwhile(message: dict[str, Any]) -> None:
        seen.append(len(slices_with_mask(panel)))
        if len(seen) == 2:
            assert not panel.ui.acceptButton.enabled and "Stop the agent" in panel.ui.acceptButton.toolTip
            panel.host.save_scene(scene)
        if len(seen) == 3:
            panel.logic.accept()  # a script may

    panel.logic.changed.connect(lambda: bars.append(panel.ui.progressBar.visible))
    panel.logic.grew.connect(meanwhile)
    panel.host.press(panel.ui.runButton)
    panel.rest()
    assert max(seen) > 1 and panel.run is None and not any(bars)
    (segment,) = panel.logic.results.segmentation.GetSegmentation().GetSegmentIDs()
    volume = panel.ui.volumeSelector.currentNode()
    accepted = slicer.util.arrayFromSegmentBinaryLabelmap(panel.logic.results.segmentation, segment, volume)
    assert np.array_equal(accepted != 0, clicked)
    panel.host.close_scene()
    panel.host.open_scene(scene)
    assert kinds(panel)[-1] == "done" and np.array_equal(panel.shown_mask(), clicked)


def test_stop_keeps_the_slices_that_are_there_and_run_goes_on(grown: Panel) -> None:
    panel = grown
    step_until(panel, "done")
    once: list[Callable[[], Any]] = [lambda: panel.host.press(panel.ui.stopButton)]
    panel.logic.grew.connect(lambda message: once.pop()() if once else None)
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: not panel.logic.isWorking, 400, "the agent to stop")
    panel.host.process_events()
    assert kinds(panel)[-1] == "grow" and panel.run.record.steps[-1]["stopped"]
    first = slices_with_mask(panel)
    assert 1 <= len(first) < LAST - FIRST + 1
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: not panel.logic.isWorking, 600, "the agent")
    assert panel.run.record.status == "ended"
    assert len(slices_with_mask(panel)) >= len(first)


def test_a_recorded_volume_opens_is_stepped_through_and_goes_on(panel: Panel) -> None:
    import slicer
    from ibis_agent.record.trajectory import Trajectory

    path = Path(__file__).resolve().parents[1] / "data" / "records" / "volume.json"
    recorded = Trajectory.load(path)
    panel.logic.openRecorded(str(path))
    panel.host.process_events()
    assert kinds(panel) == [action.kind for action in recorded.actions]
    assert np.array_equal(panel.shown_mask(), recorded.volume().transpose() != 0)
    shown = slicer.util.arrayFromVolume(panel.run.volumeNode).transpose()
    assert shown.shape == recorded.picture.geometry.shape
    first = kinds(panel).index("click") + 1
    panel.select(first)
    assert slices_with_mask(panel) == [recorded.actions[first - 1].index + 1]
    assert axial_slice(panel) == recorded.actions[first - 1].index + 1

    volume = panel.run.volumeNode
    panel.logic.discard()
    panel.logic.openRecorded(str(path))
    assert panel.run.volumeNode is volume  # the slices are in the scene already

    python = host.agent_python()
    if python is None or not DEMO.is_file():
        pytest.skip("no Python with the agent's packages, or no demonstration models (make venv)")
    panel.use_python(python)
    panel.script([REPLIES[0], REPLIES[3]], segmenter="demo")
    key = recorded.key or 0
    i, j, _ = recorded.slices.geometry(key).to_voxel(0.4, 0.4)
    made = panel.logic.addClick(at(panel, key + 1, i, j), positive=False)
    assert made is not None and (made["kind"], made["slice"]) == ("click", key)
    panel.logic.undo()
    assert np.array_equal(panel.shown_mask(), recorded.volume().transpose() != 0)


def test_two_structures_in_the_whole_volume_become_two_segments_of_one_segmentation(grown: Panel) -> None:
    import slicer

    panel, volume = grown, grown.ui.volumeSelector.currentNode()
    panel.ui.questionEdit.setPlainText("Segment the liver and the spleen.")
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: "Added 2 segments" in panel.status, 580, "both structures")
    node = panel.logic.results.segmentation
    segments = node.GetSegmentation()
    assert [segments.GetNthSegment(n).GetName() for n in range(2)] == ["Liver", "Spleen"]
    table = panel.logic.measuresTable.GetTable()
    for number in range(2):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segments.GetNthSegmentID(number), volume) != 0
        ml = mask.sum() * np.prod(volume.GetSpacing()) / 1000
        assert table.GetValue(number, 1).ToDouble() == pytest.approx(ml, abs=1e-3)


def test_a_box_in_a_slice_of_a_volume_corrects_it_and_later_clicks_keep_their_places(grown: Panel) -> None:
    from ibis_agent.record.run_rows import clicks_of

    panel = grown
    step_until(panel, "click")
    number = panel.logic.steps[-1]["slice"] + 1
    corners = at(panel, number, 30, 40), at(panel, number, 60, 70)
    panel.logic.addBox(*corners)
    assert panel.logic.steps[-1]["action"]["kind"] == "box" and panel.rows()[-1][1].startswith("Your box.")
    panel.logic.addClick(at(panel, number, 45, 55))
    first, last = (each for each in clicks_of(panel.run.record) if each.index == number - 1)
    assert (first.which, last.which) == (1, 3)  # the box is the second
    panel.run.marks.dragged = None
    moved = panel.run.moveFields(last.step, at(panel, number, 46, 56))
    assert moved["replace"] == 3
    drawn = np.array([panel.run.boxMark.node.GetPolyData().GetPoint(n) for n in range(4)])
    assert np.allclose(drawn.min(axis=0)[:2], np.min(corners, axis=0)[:2], atol=4)
