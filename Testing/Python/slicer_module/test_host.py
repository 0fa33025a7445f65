"""The simulated Slicer host itself: what a module meets in it, and what it refuses.

A small module made here stands for any scripted module; the real one is tested in its own files.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
from host import source_check

SOURCE = """
import enum
from typing import Optional
import logging
import qt, ctk, vtk
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin
from slicer.parameterNodeWrapper import parameterNodeWrapper, WithinRange


class Scope(enum.Enum):
    SLICE = "This slice"
    VOLUME = "Whole volume"


@parameterNodeWrapper
class SampleParameterNode:
    inputVolume: Optional[slicer.vtkMRMLScalarVolumeNode]
    question: str = "What is this?"
    scope: Scope = Scope.SLICE
    recent: list[str]
    turns: int = 5


class Sample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Sample")
        self.parent.categories = ["Testing"]


class SampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.calls = []
        self.output = b""

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/Sample.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = SampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.ui.runButton.connect("clicked(bool)", self.onRun)
        self.ui.failButton.clicked.connect(self.onFail)
        self.ui.placeButton.clicked.connect(self.onPlace)
        self.shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+Return"), uiWidget)
        self.shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
        self.shortcut.connect("activated()", self.onRun)
        self.process = qt.QProcess()
        self.process.connect("readyReadStandardOutput()", self.onOutput)
        self.process.connect("finished(int,QProcess::ExitStatus)", self.onFinished)
        slicer.app.connect("aboutToQuit()", self.onQuit)
        self.parameterNode = SampleParameterNode(self.logic.getParameterNode())
        self.guiTag = self.parameterNode.connectGui(self.ui)

    def enter(self):
        self.calls.append("enter")

    def exit(self):
        self.calls.append("exit")

    def cleanup(self):
        self.calls.append("cleanup")
        self.removeObservers()
        self.parameterNode.disconnectGui(self.guiTag)

    def onQuit(self):
        self.calls.append("quit")

    def onSceneStartClose(self, caller, event):
        self.calls.append("close")

    def onRun(self):
        self.ui.statusLabel.text = "asked: " + self.ui.questionEdit.text
        self.process.start("/bin/cat", [])
        self.process.write(b"hello\\n")
        self.process.closeWriteChannel()

    def onOutput(self):
        self.output += self.process.readAllStandardOutput().data()

    def onFinished(self, code, status):
        self.ui.statusLabel.text = "finished" if status == qt.QProcess.NormalExit else "crashed"

    def onFail(self):
        with slicer.util.tryWithErrorDisplay("It failed."):
            raise ValueError("the reason")

    def onPlace(self):
        self.points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
        self.points.CreateDefaultDisplayNodes()
        self.ui.placeWidget.setCurrentNode(self.points)
        self.ui.placeWidget.setPlaceModeEnabled(True)


class SampleLogic(ScriptedLoadableModuleLogic):
    pass


class SampleTest(ScriptedLoadableModuleTest):
    ran = []

    def test_scene(self):
        self.assertIsNotNone(slicer.mrmlScene)
        self.ran.append("scene")

    def test_sum(self):
        self.ran.append("sum")
        self.assertEqual(len(self.ran), 2)
"""

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0">
 <class>Sample</class>
 <widget class="qMRMLWidget" name="Sample">
  <layout class="QVBoxLayout" name="column">
   <item><widget class="ctkCollapsibleButton" name="askButton">
     <property name="text"><string>Ask</string></property>
     <layout class="QFormLayout" name="form">
      <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="inputSelector">
        <property name="nodeTypes">
         <stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
        <property name="noneEnabled"><bool>false</bool></property>
        <property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property>
      </widget></item>
      <item row="1" column="1"><widget class="QLineEdit" name="questionEdit">
        <property name="SlicerParameterName" stdset="0"><string>question</string></property>
      </widget></item>
      <item row="2" column="1"><widget class="QComboBox" name="scopeBox">
        <property name="SlicerParameterName" stdset="0"><string>scope</string></property>
      </widget></item>
      <item row="3" column="1"><widget class="QPushButton" name="runButton">
        <property name="text"><string>Run</string></property></widget></item>
      <item row="4" column="1"><widget class="QPushButton" name="failButton">
        <property name="text"><string>Fail</string></property></widget></item>
      <item row="5" column="1"><widget class="QPushButton" name="placeButton">
        <property name="text"><string>Place a point</string></property></widget></item>
      <item row="6" column="1"><widget class="qSlicerMarkupsPlaceWidget" name="placeWidget">
        <property name="placeMultipleMarkups">
         <enum>qSlicerMarkupsPlaceWidget::ForcePlaceSingleMarkup</enum></property></widget></item>
      <item row="7" column="1"><widget class="ctkPathLineEdit" name="folderEdit">
        <property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable</set></property>
      </widget></item>
     </layout>
   </widget></item>
   <item><widget class="QLabel" name="statusLabel"/></item>
   <item><spacer name="space">
     <property name="orientation"><enum>Qt::Vertical</enum></property></spacer></item>
  </layout>
 </widget>
 <connections>
  <connection><sender>Sample</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
   <receiver>inputSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>
  <connection><sender>Sample</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
   <receiver>placeWidget</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>
 </connections>
</ui>
"""


@pytest.fixture
def module_file(tmp_path: Path) -> Path:
    folder = tmp_path / "Sample"
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Resources" / "UI" / "Sample.ui").write_text(UI, encoding="utf-8")
    (folder / "Sample.py").write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    return folder / "Sample.py"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """60 × 50 × 40 voxels of 2 × 2 × 3 mm with a bright ball."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in (60, 50, 40)), indexing="ij")
    inside = (i - 20) ** 2 + (j - 30) ** 2 + (k - 20) ** 2 < 10**2
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-60, -50, -60)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.where(inside, 200, 20).astype(np.int16), affine), path)
    return path


BALL = (-20.0, 10.0, 0.0)  # its centre, mm


def test_a_module_opens_with_its_own_ui_file(slicer_host, module_file):
    import slicer

    module = slicer_host.open(module_file)
    assert module.ui.runButton.text == "Run"
    assert (
        module.ui.placeWidget.placeMultipleMarkups == slicer.qSlicerMarkupsPlaceWidget.ForcePlaceSingleMarkup
    )
    assert module.ui.folderEdit.filters == 0x11
    assert module.widget.calls == ["enter"]
    assert module.parent.title == "Sample"


def test_pressing_a_button_talks_to_a_process_and_hears_it(slicer_host, module_file):
    module = slicer_host.open(module_file)
    slicer_host.press(module.ui.runButton)
    slicer_host.wait_until(lambda: module.ui.statusLabel.text == "finished", 10)
    assert module.widget.output == b"hello\n"


def test_a_shortcut_works_while_the_panel_has_the_focus(slicer_host, module_file):
    module = slicer_host.open(module_file)
    slicer_host.key(module.ui.questionEdit, "Ctrl+Return")
    slicer_host.wait_until(lambda: module.ui.statusLabel.text == "finished", 10)


def test_typing_reaches_the_parameter_node_and_comes_back_from_it(slicer_host, module_file):
    module = slicer_host.open(module_file)
    module.ui.questionEdit.clear()
    slicer_host.type(module.ui.questionEdit, "Is there a lesion?")
    assert module.widget.parameterNode.question == "Is there a lesion?"
    module.widget.parameterNode.question = "Segment the liver"
    assert module.ui.questionEdit.text == "Segment the liver"


def test_a_loaded_volume_is_selected_shown_and_equal_to_the_file(slicer_host, module_file, scan):
    import slicer

    module = slicer_host.open(module_file)
    node = slicer_host.load_volume(scan)
    assert module.ui.inputSelector.currentNode() is node
    assert module.widget.parameterNode.inputVolume is node
    voxels = np.asanyarray(nibabel.load(scan).dataobj)
    assert np.array_equal(slicer.util.arrayFromVolume(node).transpose(2, 1, 0), voxels)
    slicer_host.show_slice("Red", BALL)
    red = slicer_host.picture("Red")
    x, y = slicer_host.views["Red"].to_pixel(BALL)
    assert red[y, x].mean() > red[y, 20 : x - 60].mean() + 50  # the ball is brighter than what is beside it


def test_a_click_in_a_view_places_a_point_where_it_was_clicked(slicer_host, module_file, scan):
    module = slicer_host.open(module_file)
    slicer_host.load_volume(scan)
    slicer_host.show_slice("Red", BALL)
    slicer_host.press(module.ui.placeButton)
    assert module.ui.placeWidget.placeModeEnabled
    slicer_host.click("Red", BALL)
    points = module.widget.points
    assert points.GetNumberOfDefinedControlPoints() == 1
    assert np.linalg.norm(np.array(points.GetNthControlPointPositionWorld(0)) - BALL) < 0.5
    assert not module.ui.placeWidget.placeModeEnabled


def test_a_point_can_be_dragged(slicer_host, module_file, scan):
    module = slicer_host.open(module_file)
    slicer_host.load_volume(scan)
    slicer_host.show_slice("Red", BALL)
    slicer_host.press(module.ui.placeButton)
    slicer_host.click("Red", BALL)
    target = (BALL[0] + 20, BALL[1] - 10, BALL[2])
    slicer_host.drag("Red", BALL, target)
    moved = np.array(module.widget.points.GetNthControlPointPositionWorld(0))
    assert np.linalg.norm(moved - target) < 1.0


def test_the_same_spot_can_be_clicked_in_the_next_slicer(slicer_host, module_file, scan):
    for _ in range(2):
        slicer_host.reset()
        module = slicer_host.open(module_file)
        slicer_host.load_volume(scan)
        slicer_host.show_slice("Red", BALL)
        slicer_host.press(module.ui.placeButton)
        slicer_host.click("Red", BALL)
        assert module.widget.points.GetNumberOfDefinedControlPoints() == 1


def test_an_error_the_user_would_see_is_recorded(slicer_host, module_file):
    module = slicer_host.open(module_file)
    slicer_host.press(module.ui.failButton)
    assert slicer_host.messages[-1].kind == "error"
    assert "the reason" in slicer_host.messages[-1].text
    assert "ValueError" in slicer_host.errors.pop()


@pytest.mark.parametrize("name", ["scene.mrb", "folder/scene.mrml"])
def test_a_saved_scene_reopens(slicer_host, module_file, scan, tmp_path, name):
    import slicer

    module = slicer_host.open(module_file)
    slicer_host.load_volume(scan)
    module.widget.parameterNode.question = "kept?"
    module.widget.parameterNode.recent.append("a question")
    slicer_host.save_scene(tmp_path / name)
    slicer_host.close_scene()
    assert "close" in module.widget.calls
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    slicer_host.open_scene(tmp_path / name)
    reopened = module.source.SampleParameterNode(module.logic.getParameterNode())
    assert reopened.question == "kept?"
    assert list(reopened.recent) == ["a question"]
    assert reopened.inputVolume.GetName() == "scan"


def test_reload_makes_a_new_widget_and_cleans_up_the_old(slicer_host, module_file):
    module = slicer_host.open(module_file)
    before = module.widget
    module.reload()
    assert module.widget is not before
    assert before.calls[-1] == "cleanup"
    slicer_host.press(module.ui.runButton)
    slicer_host.wait_until(lambda: module.ui.statusLabel.text == "finished", 10)


def test_quitting_unloads_the_module_before_others_hear_of_it(slicer_host, module_file):
    widget = slicer_host.open(module_file).widget
    slicer_host.quit()
    assert widget.calls == ["enter", "exit", "cleanup", "quit"]


def test_the_self_test_of_a_module_runs(slicer_host, module_file):
    import slicer

    test = slicer_host.open(module_file).source.SampleTest
    slicer.selfTests["Sample"]()
    assert test.ran == ["scene", "sum"]
    with pytest.raises(AssertionError):
        slicer.selfTests["Sample"]()  # there is more than two now: what fails in a test is told


def test_a_screenshot_shows_the_panel_the_views_and_what_it_is(slicer_host, module_file, scan, tmp_path):
    from PIL import Image

    slicer_host.open(module_file)
    slicer_host.load_volume(scan)
    slicer_host.screenshot(tmp_path / "shot.png")
    picture = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert picture.shape == (760, 1280, 3)
    strip = picture[2:22, :700].mean(axis=2)
    assert strip.min() < 70 and strip.max() > 200  # light letters on a dark strip
    assert picture[100:700, 450:].max() > 180  # the views are not empty


def test_what_is_not_imitated_is_refused(slicer_host):
    import ctk
    import qt
    import slicer

    for ask in (
        lambda: slicer.app.somethingInvented(),
        lambda: slicer.modules.segmenteditor,
        lambda: ctk.ctkRangeWidget(),
        lambda: qt.Signal,
        lambda: qt.QPushButton().connect("clickd()", print),
        lambda: setattr(qt.QPushButton(), "txt", "a typo"),
        lambda: slicer.qMRMLNodeComboBox().setNodeType("vtkMRMLVolumeNode"),
    ):
        with pytest.raises(AttributeError):
            ask()


def test_what_qt_makes_by_itself_has_pythonqts_habits_too(slicer_host):
    import qt

    heard: list[bool] = []
    menu = qt.QMenu()
    menu.addAction("Undo").connect("triggered()", lambda: heard.append(True))
    action = menu.actions()[0]
    assert action.text == "Undo"
    action.trigger()
    assert heard == [True]
    with pytest.raises(AttributeError):
        action.txt = "Redo"


def test_a_hidden_or_disabled_button_cannot_be_pressed(slicer_host, module_file):
    module = slicer_host.open(module_file)
    module.ui.runButton.enabled = False
    with pytest.raises(AssertionError, match="disabled"):
        slicer_host.press(module.ui.runButton)
    module.ui.askButton.collapsed = True
    with pytest.raises(AssertionError, match="hidden"):
        slicer_host.press(module.ui.failButton)


def test_a_question_needs_an_answer_and_the_answer_is_given(slicer_host):
    import slicer
    from host.dialogs import UnansweredDialogError

    slicer_host.answer("Cancel", "Yes")
    assert slicer.util.confirmOkCancelDisplay("Install 3 packages?") is False
    assert slicer.util.confirmYesNoDisplay("Go on?") is True
    assert [message.text for message in slicer_host.messages] == ["Install 3 packages?", "Go on?"]
    with pytest.raises(UnansweredDialogError, match="Really"):
        slicer.util.confirmOkCancelDisplay("Really?")
    slicer.util.warningDisplay("Mind the gap")
    assert slicer_host.messages[-1].kind == "warning"


def test_a_file_dialog_returns_the_queued_path(slicer_host, tmp_path):
    import qt

    slicer_host.answer(tmp_path)
    assert qt.QFileDialog.getExistingDirectory(None, "Model folder") == str(tmp_path)


def test_packages_are_recorded_and_pythonslicer_becomes_the_interpreter_that_has_them(slicer_host, tmp_path):
    import shutil
    import subprocess

    import slicer

    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho other\n")
    other.chmod(0o755)
    launcher = shutil.which("PythonSlicer")
    assert subprocess.check_output([launcher, "-c", "print(1 + 1)"]).split() == [b"2"]
    slicer_host.packages.provided_by = other
    assert not slicer.packaging.pip_check("transformers>=5")
    slicer_host.answer("Ok")
    slicer.packaging.pip_ensure(["numpy", "transformers>=5"], requester="Sample")
    assert slicer_host.packages.requests == [("pip", ["transformers>=5"])]
    assert slicer.packaging.pip_check("transformers>=5")
    assert subprocess.check_output([launcher]).split() == [b"other"]


def test_a_failing_installation_raises_as_pip_does(slicer_host):
    import subprocess

    import slicer

    slicer_host.packages.failure = "ERROR: No space left on device"
    lines: list[str] = []
    with pytest.raises(subprocess.CalledProcessError):
        slicer.packaging.pip_install("torch", logCallback=lines.append)
    assert lines == ["ERROR: No space left on device"]


def test_pytorch_utils_exists_only_with_its_extension(slicer_host):
    import importlib

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("PyTorchUtils")
    slicer_host.extensions.add_pytorch()
    logic = importlib.import_module("PyTorchUtils").PyTorchUtilsLogic()
    assert not logic.torchInstalled()
    logic.installTorch(torchVersionRequirement=">=2.6")
    assert logic.torchInstalled()
    assert slicer_host.packages.requests == [("torch", ["torch>=2.6"])]


def test_killing_pythonslicer_leaves_its_child_which_ends_when_its_stdin_closes(slicer_host, tmp_path):
    import os

    import qt

    script = tmp_path / "child.py"
    script.write_text("import os, sys\nprint(os.getpid(), flush=True)\nsys.stdin.read()\n")
    process = qt.QProcess()
    process.start("PythonSlicer", ["-u", str(script)])
    line = slicer_host.wait_until(lambda: process.readAllStandardOutput().data(), 20)
    process.kill()
    process.waitForFinished(5000)

    def gone() -> bool:
        try:
            os.kill(int(line), 0)
        except ProcessLookupError:
            return True
        return False

    slicer_host.wait_until(gone, 20, "the child to see its stdin close")


def test_data_nodes_get_their_place_in_the_subject_hierarchy(slicer_host, scan, tmp_path):
    import slicer

    volume = slicer_host.load_volume(scan)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    slicer_host.save_scene(tmp_path / "a.mrb")
    slicer_host.open_scene(tmp_path / "a.mrb")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    volume = slicer.util.getNode("scan")
    assert hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volume))) == "Study"
    slicer.mrmlScene.RemoveNode(volume)
    assert slicer.util.getSubjectHierarchyItemChildren(recursive=True) == [hierarchy.GetItemByName("Study")]


def test_the_terminology_finds_a_liver(slicer_host):
    import slicer
    from host.scene import ANATOMY_CONTEXT

    entry = slicer.vtkSlicerTerminologyEntry()
    logic = slicer.modules.terminologies.logic()
    assert logic.FindTypeInTerminologyBy3dSlicerLabel(ANATOMY_CONTEXT, "liver", entry)
    assert entry.GetTypeObject().GetCodeValue() == "10200004"


def test_the_segment_selector_follows_the_segmentation(slicer_host):
    import slicer

    selector = slicer.qMRMLSegmentSelectorWidget()
    selector.setMRMLScene(slicer.mrmlScene)
    heard: list[str] = []
    selector.connect("currentSegmentChanged(QString)", heard.append)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    first = node.GetSegmentation().AddEmptySegment("", "Liver")
    node.GetSegmentation().AddEmptySegment("", "Spleen")
    assert selector.currentNode() is node
    assert selector.currentSegmentID() == first == heard[0]
    node.GetSegmentation().RemoveSegment(first)
    assert selector.currentSegmentID() != first


def test_a_segment_survives_a_file(slicer_host, scan, tmp_path):
    import slicer

    volume = slicer_host.load_volume(scan)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = node.GetSegmentation().AddEmptySegment("", "Ball")
    mask = (slicer.util.arrayFromVolume(volume) > 100).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)
    assert slicer.util.saveNode(node, str(tmp_path / "s.seg.nrrd"))
    loaded = slicer.util.loadSegmentation(str(tmp_path / "s.seg.nrrd"))
    again = slicer.util.arrayFromSegmentBinaryLabelmap(
        loaded, loaded.GetSegmentation().GetNthSegmentID(0), volume
    )
    assert np.array_equal(again, mask)


def test_a_sample_is_registered_and_loaded_from_a_local_file(slicer_host, scan):
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        sampleName="Ball", uris="https://example.org/ball"
    )
    slicer_host.samples.files["Ball"] = scan
    assert slicer_host.samples.registered[0]["sampleName"] == "Ball"
    assert SampleData.downloadSample("Ball").GetName() == "scan"


def test_slicer_util_speaks_to_the_window(slicer_host, module_file):
    import slicer

    module = slicer_host.open(module_file, enter=False)
    slicer.util.selectModule("Sample")
    assert slicer.util.selectedModule() == "Sample"
    assert module.panel.isEntered
    slicer.util.showStatusMessage("Working …")
    assert slicer.util.mainWindow().statusBar().currentMessage() == "Working …"
    assert slicer.util.getModuleWidget("Sample") is module.widget
    with slicer.util.WaitCursor(), slicer.util.RenderBlocker():
        progress = slicer.util.createProgressDialog(labelText="…")
        progress.value = 50
        progress.close()


PYSIDE_ONLY = """
from slicer.i18n import tr as _
import qt
import torch
self.ui.name.text()
qt.Qt.AlignmentFlag.AlignLeft
qt.QLabel("a", objectName="b")
if box.checkState() == 2 or qt.Qt.Checked == 2: pass
with qt.QSignalBlocker(w): pass
bytes(process.readAllStandardOutput())
path, _ = f()
changed = qt.Signal(int)
"""

PYTHONQT = """
from slicer.i18n import tr as _
import qt
self.ui.name.text
self.ui.name.setText(item.text())
qt.Qt.AlignLeft
if box.checkState() == qt.Qt.Checked: pass
process.readAllStandardOutput().data()
from ibis_agent.masks import decode_rle
"""


def test_the_source_check_finds_what_only_pyside_understands(tmp_path):
    (tmp_path / "a.py").write_text(PYSIDE_ONLY, encoding="utf-8")
    lines = {int(finding.split(":")[1]) for finding in source_check(tmp_path)}
    assert lines == {4, 5, 6, 7, 8, 9, 10, 11, 12}


def test_the_source_check_leaves_pythonqt_code_alone(tmp_path):
    (tmp_path / "a.py").write_text(PYTHONQT, encoding="utf-8")
    assert source_check(tmp_path) == []
