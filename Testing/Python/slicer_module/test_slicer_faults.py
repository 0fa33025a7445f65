"""What goes wrong around a session: a worker that dies, scenes that close, two questions at once, quitting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from slicer_panel import ENDLESS, REPLIES, Panel


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/status").read_text(encoding="ascii").split("State:\t")[1][0] != "Z"
    except (OSError, IndexError):
        return False


def gone(panel: Panel, pid: int) -> None:
    panel.host.wait_until(lambda: not alive(pid), 20, f"the end of process {pid}")


def test_a_worker_that_is_killed_loses_nothing(stepped: Panel) -> None:
    panel = stepped
    mask, pid = panel.shown_mask(), panel.logic.worker.client.hello["pid"]
    os.kill(pid, signal.SIGKILL)
    panel.host.wait_until(lambda: panel.logic.worker.client.state == "stopped", 20)
    assert len(panel.rows()) == 2
    assert np.array_equal(panel.shown_mask(), mask)
    panel.step()
    assert len(panel.rows()) == 3
    assert panel.logic.worker.client.hello["pid"] != pid


@pytest.mark.parametrize(
    "fault, words",
    [("die", "Nothing is lost"), ("memory", "ran out of memory"), ("error", "the log has the details")],
)
def test_a_fault_in_a_step_is_told_in_plain_words_and_the_next_step_works(
    asked: Panel, fault: str, words: str
) -> None:
    panel = asked
    panel.script(faults=[{"request": "step", "nth": 2, "fault": fault}])
    panel.step()
    panel.host.press(panel.ui.stepButton)
    panel.rest()
    assert words in panel.status
    assert len(panel.rows()) == 1
    panel.step()
    assert len(panel.rows()) == 2


def test_garbage_on_the_workers_stdout_does_not_disturb(asked: Panel) -> None:
    panel = asked
    panel.script(faults=[{"request": "step", "nth": 1, "fault": "garbage"}])
    panel.step()
    panel.step()


def test_a_reply_that_cannot_be_read_twice_pauses_and_keeps_the_mask(asked: Panel) -> None:
    panel = asked
    panel.script((REPLIES[0], "I would rather not say."))
    panel.step()
    mask = panel.shown_mask()
    panel.host.press(panel.ui.runButton)
    panel.rest()
    assert "could not be read" in panel.status
    assert np.array_equal(panel.shown_mask(), mask)
    assert panel.ui.stepButton.enabled


def test_a_worker_that_hangs_is_ended_and_a_click_still_gets_its_mask(asked: Panel) -> None:
    panel = asked
    panel.script(faults=[{"request": "step", "nth": 2, "fault": "hang"}])
    panel.step()
    pid = panel.logic.worker.client.hello["pid"]
    panel.host.press(panel.ui.stepButton)
    end = time.monotonic() + 1
    panel.host.wait_until(lambda: time.monotonic() > end, 5)
    panel.host.press(panel.ui.stopButton)
    assert not panel.logic.isWorking  # at once for the person
    panel.logic.addClick(panel.run.places.worldOf(0.45, 0.3), wait=False)
    panel.rest()
    assert [step["by"] for step in panel.logic.steps] == ["policy", "person"]
    gone(panel, pid)


def test_closing_the_scene_in_the_middle_of_a_step(asked: Panel) -> None:
    panel = asked
    panel.script((REPLIES[0], *ENDLESS), seconds=0.02)
    panel.step()
    panel.host.press(panel.ui.runButton)
    panel.thinking()
    panel.host.close_scene()
    assert panel.run is None
    assert not panel.logic.isWorking
    panel.host.wait_until(lambda: panel.logic.worker.client.state == "idle", 30, "the worker to follow")
    assert panel.rows() == []
    assert panel.host.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_deleting_the_volume_in_the_middle_of_a_step(asked: Panel) -> None:
    panel = asked
    panel.script((REPLIES[0], REPLIES[1]), seconds=0.02)
    panel.step()
    panel.host.press(panel.ui.stepButton)
    panel.thinking()
    panel.host.scene.RemoveNode(panel.run.volumeNode)
    panel.rest()
    assert len(panel.rows()) == 2  # the picture travels with the run
    panel.select(1)
    assert panel.run.shown == 1


def test_deleting_the_volume_before_the_first_step_stops_it_and_a_further_one_says_why(asked: Panel) -> None:
    panel = asked
    panel.script(loading=0.5)
    panel.host.press(panel.ui.stepButton)
    panel.host.scene.RemoveNode(panel.run.volumeNode)
    panel.rest()
    assert panel.rows() == []
    panel.host.press(panel.ui.stepButton)
    panel.rest()
    assert panel.rows() == [] and "no longer in the scene" in panel.status


def test_deleting_the_agents_mask_ends_the_question(stepped: Panel) -> None:
    panel = stepped
    panel.host.scene.RemoveNode(panel.run.mask.node)
    panel.host.process_events()
    assert panel.run is None
    assert panel.host.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") <= 1  # the one for placing
    assert panel.ui.stepButton.enabled


def test_two_questions_at_once_are_refused_in_plain_words(stepped: Panel) -> None:
    from IBISSlicerLib.Agent import AgentError

    panel = stepped
    with pytest.raises(AgentError, match="Another run is open"):
        panel.logic.ask(panel.run.volumeNode, "Segment the spleen.")
    assert len(panel.rows()) == 2


def test_a_discarded_question_never_reaches_the_next_one(asked: Panel) -> None:
    panel = asked
    panel.script(seconds=0.02)
    panel.host.press(panel.ui.stepButton)
    panel.thinking()
    panel.host.press(panel.ui.discardButton)
    assert panel.run is None
    panel.step()
    panel.rest()
    assert [row[0] for row in panel.rows()] == ["1"]


def test_reloading_the_module_ends_its_worker_and_takes_the_run_over(stepped: Panel) -> None:
    panel = stepped
    pid, rows = panel.logic.worker.client.hello["pid"], panel.rows()
    arguments = panel.logic.worker.arguments
    panel.module.reload()
    gone(panel, pid)
    assert panel.rows() == rows
    panel.logic.worker.arguments = arguments
    panel.step()
    assert len(panel.rows()) == 3


@pytest.mark.parametrize("moment", ["at rest", "in mid-thought"])
def test_quitting_slicer_leaves_no_process_and_no_file_behind(asked: Panel, moment: str) -> None:
    panel = asked
    panel.script((REPLIES[0], *ENDLESS), seconds=0.02)
    panel.step()
    if moment == "in mid-thought":
        panel.host.press(panel.ui.runButton)
        panel.thinking()
    hello = panel.logic.worker.client.hello
    panel.host.quit()
    gone(panel, hello["pid"])
    assert not Path(hello["folder"]).exists()


def test_the_worker_behind_the_launcher_is_not_orphaned(asked: Panel) -> None:
    panel = asked
    panel.use_python("")
    launcher = str(panel.host.packages.launcher)
    from IBISSlicerLib.worker.WorkerProcess import defaultPython

    assert defaultPython() == launcher
    panel.logic.agent.usable = True  # the scripted worker needs nothing that is missing
    panel.step()
    pid = panel.logic.worker.client.hello["pid"]
    assert pid != panel.logic.worker._process._process.processId()  # the worker is the launcher's child
    panel.logic.worker.client.kill()
    gone(panel, pid)


def test_leaving_the_module_leaves_place_mode(asked: Panel) -> None:
    import slicer

    panel = asked
    panel.step()
    panel.host.press(panel.ui.includeButton)
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    panel.module.leave()
    assert interaction.GetCurrentInteractionMode() != interaction.Place


def aims(panel: Panel) -> tuple[object, object, object]:
    """What Slicer's place mode would place, and whether it would go on."""
    import slicer

    logic = slicer.app.applicationLogic()
    selection, interaction = logic.GetSelectionNode(), logic.GetInteractionNode()
    return (
        selection.GetActivePlaceNodeID(),
        selection.GetActivePlaceNodeClassName(),
        interaction.GetPlaceModePersistence(),
    )


@pytest.mark.parametrize("theirs", [True, False], ids=["a list of the person's", "nothing yet"])
def test_after_placing_slicer_s_own_buttons_place_what_they_did_before(asked: Panel, theirs: bool) -> None:
    import slicer

    selection = slicer.app.applicationLogic().GetSelectionNode()
    if theirs:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Mine")
        selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
        selection.SetActivePlaceNodeID(node.GetID())
    asked.step()
    before = aims(asked)
    assert before[0] == (node.GetID() if theirs else None), "making our own point lists does not count either"
    asked.host.press(asked.ui.includeButton)
    asked.host.press(asked.ui.excludeButton)
    assert aims(asked)[0] not in (None, before[0]) and aims(asked)[2] == 1
    asked.host.press(asked.ui.excludeButton)
    assert aims(asked) == before


def test_placing_something_else_ends_ours_and_is_not_disturbed(asked: Panel) -> None:
    import slicer

    logic = slicer.app.applicationLogic()
    selection, interaction = logic.GetSelectionNode(), logic.GetInteractionNode()
    asked.step()
    asked.host.press(asked.ui.includeButton)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Mine")
    selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
    selection.SetActivePlaceNodeID(node.GetID())
    interaction.SetCurrentInteractionMode(interaction.Place)  # it is already: nothing tells of it
    assert not asked.ui.includeButton.checked
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    asked.module.leave()
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    assert selection.GetActivePlaceNodeID() == node.GetID()


def test_clicks_are_placed_in_slice_views_only(asked: Panel) -> None:
    import slicer

    asked.step()
    asked.host.press(asked.ui.includeButton)
    display = slicer.mrmlScene.GetNodeByID(aims(asked)[0]).GetDisplayNode()
    views = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    assert views and all(display.IsDisplayableInView(view.GetID()) for view in views)
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode")
    assert not display.IsDisplayableInView(other.GetID())


def test_a_volume_s_modality_is_where_slicer_s_dicom_module_keeps_it(panel: Panel, data: Path) -> None:
    import slicer
    from IBISSlicerLib.scene.SubjectHierarchy import modalityOf

    volume = panel.load(data / "mr_abdomen_3mm.nii.gz")
    assert modalityOf(volume) == ""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    hierarchy.SetItemAttribute(hierarchy.GetItemByDataNode(volume), "DICOM.Modality", "MR")
    assert modalityOf(volume) == "MR"


LEFT_RUNNING = """
import host, sys
host.start()
import qt, slicer
process = qt.QProcess(slicer.app)
process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: process.readAllStandardOutput())
process.start(sys.executable, ["-c", "import time; time.sleep(1000)"])
assert process.waitForStarted(60000)
"""


def test_a_process_that_still_runs_when_python_ends_is_ended_before_qt_deletes_it() -> None:
    testing = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(testing), "QT_QPA_PLATFORM": "offscreen"}
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_RUNNING], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr and "Destroyed" not in ended.stderr, ended.stderr
