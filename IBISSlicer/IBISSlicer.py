"""The scripted module IBISSlicer: ask a question about a scan and watch an agent answer it, click by click.

This file only connects module, panel, logic and self-test. The parts are implemented in IBISSlicerLib/; the agent
itself, which does not depend on Slicer, is the package ibis_agent (folder Logic/ of a checkout, beside this
file when installed).
"""

from __future__ import annotations

import sys
from pathlib import Path

import qt
import slicer
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

OLDEST_SLICER = (5, 10)
_HERE = Path(__file__).resolve().parent


def isSupported() -> bool:
    """Whether this Slicer is new enough. In an older one only this file is used, and the panel says so."""
    return (slicer.app.majorVersion, slicer.app.minorVersion) >= OLDEST_SLICER


def findAgentPackage() -> None:
    """Make `import ibis_agent` find the package that belongs to this file, wherever Slicer runs it from.

    Called when the module is created, not on import: importing this file has no side effects.
    """
    for folder in (_HERE, _HERE.parent / "Logic"):
        if (folder / "ibis_agent" / "__init__.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return
    raise ImportError(
        "IBISSlicer: the package ibis_agent is missing next to the module; reinstall the extension"
    )


class IBISSlicer(ScriptedLoadableModule):
    """What the module selector displays."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "IBISSlicer"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Markups"]
        parent.contributors = ["The IBISSlicer developers"]
        parent.helpText = _(
            "Ask a question about a slice of a scan and watch an agent answer it: it thinks in words, clicks, sees the "
            "mask its click made, and clicks again. You can review, undo and correct every step. "
            "Research use only; not a medical device."
        )
        parent.acknowledgementText = _(
            "Follows the method of IBISAgent and uses the SAM 2 architecture of Meta and the Qwen2.5-VL architecture "
            "of Alibaba."
        )
        if isSupported():
            findAgentPackage()
            slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Offer the phantom in the Sample Data module."""
    from IBISSlicerLib.SampleData import registerPhantom

    registerPhantom(_HERE / "Resources")


@parameterNodeWrapper
class IBISSlicerParameterNode:
    """What the panel stores in the scene, besides the run itself (see IBISSlicerLib/scene/SceneRun.py).

    volume - the scan to ask about
    segmentation - where accepted masks go; if not set, a new one is created
    question - the typed text
    """

    volume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    question: str = ""


class IBISSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: creates its parts and connects them."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: IBISSlicerLogic | None = None
        self._parameterNode = None
        self._guiTag = None
        self._panels: list = []

    def setup(self) -> None:
        """Called when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        if not isSupported():
            self.layout.addWidget(
                qt.QLabel(_("IBISSlicer needs Slicer 5.10 or newer. Please update Slicer."))
            )
            self.layout.addStretch(1)
            return
        from IBISSlicerLib.panels.InstallPanel import InstallPanel
        from IBISSlicerLib.panels.ModelsPanel import ModelsPanel
        from IBISSlicerLib.panels.QuestionPanel import QuestionPanel
        from IBISSlicerLib.panels.ResultPanel import ResultPanel
        from IBISSlicerLib.panels.Shortcuts import Shortcuts
        from IBISSlicerLib.panels.StepsPanel import StepsPanel
        from IBISSlicerLib.panels.VolumePanel import VolumePanel
        from IBISSlicerLib.scene.RecordedRun import examplePath
        from IBISSlicerLib.worker.Install import Installer

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/IBISSlicer.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = IBISSlicerLogic()
        self.questionPanel = QuestionPanel(self.ui, self.logic.agent, self._openRecorded)
        say = self.questionPanel.say
        icons = Path(self.resourcePath("Icons"))
        self.stepsPanel = StepsPanel(self.ui, self.logic.agent, icons, say)
        self.volumePanel = VolumePanel(self.ui, self.logic.agent, say)
        self.resultPanel = ResultPanel(self.ui, self.logic.agent, say, self.volumePanel.measured)
        self.questionPanel.several.accept = lambda: self.resultPanel.onAccept(further=True)
        example = examplePath(Path(self.resourcePath("")))
        self.installPanel = InstallPanel(
            self.ui,
            Installer(self.resourcePath("requirements.txt")),
            self._onUsableChanged,
            (lambda: self._openRecorded(example)) if example else None,
        )
        self.modelsPanel = ModelsPanel(self.ui, self.logic.agent, self.installPanel.usePython, say)
        self.modelsPanel.chosen.connect(self.installPanel.update)
        self.installPanel.pythonChanged.connect(self._onPythonChanged)
        self.ui.otherPythonButton.connect("clicked()", self.modelsPanel.choosePython)
        self.ui.questionEdit.connect("textChanged()", self._onQuestionChanged)
        self._shortcuts = Shortcuts(uiWidget, self.ui, self.stepsPanel.stopPlacing)
        self._shortcuts.setEnabled(bool(self.parent.isEntered))  # a reload does not call enter again
        self._panels = [
            self.questionPanel, self.stepsPanel, self.volumePanel, self.resultPanel, self.installPanel,
        ]  # fmt: skip
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self._onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self._onSceneImported)
        self.logic.reopen()
        self._initializeParameterNode()
        self.stepsPanel.update()

    def enter(self) -> None:
        """Called each time the module is shown."""
        if self.logic is not None:
            self._initializeParameterNode()
            self.logic.reopen()
            self.questionPanel.enter()
            self._shortcuts.setEnabled(True)

    def exit(self) -> None:
        """Called each time another module is shown."""
        if self.logic is not None:
            self._shortcuts.setEnabled(False)
            self.stepsPanel.stopPlacing()
            self._setParameterNode(None)

    def cleanup(self) -> None:
        """Called when Slicer quits or the module is reloaded."""
        self.removeObservers()
        if self.logic is not None:
            self._setParameterNode(None)
            for panel in self._panels:
                panel.cleanup()
            self.logic.shutdown()

    def onReload(self) -> None:
        """Developer's Reload: Slicer reloads only this file, so we unload our other modules here."""
        for name in [name for name in sys.modules if name.split(".")[0] in ("IBISSlicerLib", "ibis_agent")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def _initializeParameterNode(self) -> None:
        self._setParameterNode(self.logic.getParameterNode())

    def _setParameterNode(self, parameterNode) -> None:
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
        self._parameterNode = parameterNode
        if parameterNode is not None:
            fresh = parameterNode.volume is None  # before the selector chooses a node
            self._guiTag = parameterNode.connectGui(self.ui)
            if not self.logic.current and not self.ui.questionEdit.plainText:
                self.questionPanel.setQuestion(parameterNode.question)
            if fresh:
                self.questionPanel.preselect()

    def _onQuestionChanged(self) -> None:
        # Not with the connector for text edits, which would move the cursor at every key.
        if self._parameterNode is not None:
            self._parameterNode.question = self.ui.questionEdit.plainText

    def _onUsableChanged(self, usable: bool) -> None:
        self.logic.agent.usable = usable

    def _openRecorded(self, path: Path) -> None:
        from IBISSlicerLib.Errors import telling

        with telling(self.questionPanel.say):
            self.logic.openRecorded(str(path))

    def _onPythonChanged(self) -> None:
        self.logic.worker.client.kill()
        self.modelsPanel.fill()

    def _onSceneStartClose(self, caller, event) -> None:
        self._setParameterNode(None)

    def _onSceneImported(self, caller, event) -> None:
        self.logic.reopen()

    def _onSceneEndClose(self, caller, event) -> None:
        if self.parent.isEntered:
            self._initializeParameterNode()


class IBISSlicerLogic(ScriptedLoadableModuleLogic):
    """The agent without any widget, for the Python console and for scripts. A complete example::

        logic = slicer.util.getModuleWidget("IBISSlicer").logic  # or IBISSlicerLogic() for a separate one
        volume = slicer.util.loadVolume("ct.nii.gz")
        red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()

        logic.ask(volume, "Segment the liver.", sliceNode=red)  # or axis=2, index=40; start=(node, segment ID)
        step = logic.step()  # loads the models the first time
        print(step["thinking"], step["action"], step["area_mm2"])
        logic.run()  # until the agent finishes or needs your input

        logic.back(1)  # keep only the first step
        logic.addClick((-60, 20, 35), positive=False)  # add your own click, RAS in mm
        logic.addBox((-80, 0, 35), (-20, 60, 35))  # or a box, given by two opposite corners in one slice
        logic.step()
        logic.reject()  # "not that": it tries something else
        logic.undo()

        segmentId = logic.accept()  # or accept(segmentationNode, name="Liver")
        print(logic.measured.lines())  # also a row of the table node logic.measuresTable
        logic.export("/tmp/liver.seg.nrrd")
        logic.shutdown()  # only for a separate logic

    Slicer stays responsive: the models run in a separate process. Methods that need them wait, unless `wait=False`.
    All of these are methods of `logic.agent`; see IBISSlicerLib/Agent.py.
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        findAgentPackage()
        from IBISSlicerLib.Agent import Agent

        self.agent = Agent()

    def __getattr__(self, name: str):
        if name == "agent":  # not made yet
            raise AttributeError(name)
        return getattr(self.agent, name)

    def __dir__(self):
        return sorted({*super().__dir__(), *dir(self.agent)})

    def getParameterNode(self):
        return IBISSlicerParameterNode(super().getParameterNode())  # type: ignore[call-arg]


class IBISSlicerTest(ScriptedLoadableModuleTest):
    """Runs in a real Slicer: by ctest, by Reload and Test, and by the command in the README."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def test_Session(self) -> None:
        from IBISSlicerLib.SelfTest import testSession

        testSession(self)

    def test_Panel(self) -> None:
        from IBISSlicerLib.SelfTest import testPanel

        testPanel(self)
