"""The module without its panel: used from a script, and by the test that it brings along for a real Slicer."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import pytest
from slicer_panel import ENDLESS, SLICE, Panel


def test_the_modules_own_test_passes(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBIS_TEST_SCRIPTED", "1")
    panel.module.source.IBISSlicerTest().runTest()


def test_the_example_in_the_docstring_is_python(panel: Panel) -> None:
    told = inspect.getdoc(panel.module.source.IBISSlicerLogic) or ""
    example = told.split("::\n", 1)[1].split("\n\nSlicer stays", 1)[0]
    calls = [
        node.func.attr
        for node in ast.walk(ast.parse(textwrap.dedent(example)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert {"ask", "step", "run", "back", "addClick", "addBox", "reject", "undo", "accept"} <= set(calls)


def test_a_script_that_waits_does_not_keep_slicer_from_quitting(panel: Panel, data: Path) -> None:
    import qt
    from IBISSlicerLib.Errors import PlainError

    panel.script(ENDLESS, seconds=0.02)
    panel.logic.ask(panel.load(data / "ct_abdomen_3mm.nii.gz"), "Segment the liver.", axis=2, index=SLICE)
    qt.QTimer.singleShot(0, panel.host.quit)
    with pytest.raises(PlainError, match="shut down"):
        panel.logic.step()


def test_a_script_can_hold_a_whole_session_and_the_panel_follows(panel: Panel, data: Path) -> None:
    from IBISSlicerLib.Errors import PlainError

    panel.script()
    logic, volume = panel.logic, panel.load(data / "ct_abdomen_3mm.nii.gz")
    with pytest.raises(PlainError, match="No run is open"):
        logic.step()
    with pytest.raises(PlainError, match="slices 0 to 29"):
        logic.ask(volume, "Segment the liver.", axis=2, index=400)
    logic.ask(volume, "Segment the liver.", axis=2, index=SLICE)
    assert logic.step()["number"] == 1
    assert logic.run() == "ended"
    assert [row[0] for row in panel.rows()] == ["1", "2", "3", "4"]
    logic.back(2)
    corrected = logic.addClick(panel.mark_of(1), positive=False)
    assert (corrected["number"], corrected["by"]) == (3, "person")
    assert logic.step()["action"]["kind"] == "terminate"
    assert logic.reject()["by"] == "policy"  # that step goes, and the policy acts again
    assert len(logic.steps) == 4
    path = logic.export(str(panel.folder / "liver.nii.gz"))
    segment_id = logic.accept(name="Mine")
    node = logic.results.segmentation
    assert node.GetSegmentation().GetSegment(segment_id).GetName() == "Mine"
    assert path.is_file()
    assert len(panel.rows()) == 4 and logic.current is None


def test_a_run_belongs_to_who_works_on_it_until_it_is_let_go_or_taken_over(panel: Panel, data: Path) -> None:
    import slicer

    def shapes() -> int:
        return len(slicer.util.getNodesByClass("vtkMRMLModelNode"))

    volume = panel.load(data / "ct_abdomen_3mm.nii.gz")
    mine = panel.module.source.IBISSlicerLogic()
    run = mine.ask(volume, "Segment the liver.", axis=2, index=SLICE)
    drawn = shapes()
    panel.module.leave()
    panel.module.enter()
    assert not panel.logic.reopen() and panel.run is None
    mine.shutdown()
    assert slicer.mrmlScene.IsNodePresent(run.textNode)
    assert shapes() == drawn - 2, "rings and crosses are drawn anew by who comes next"
    assert panel.logic.reopen(), "nobody works on it any more"
    assert panel.run.textNode is run.textNode and shapes() == drawn

    another = panel.module.source.IBISSlicerLogic()
    assert not another.reopen() and panel.run is not None
    assert another.reopen(takeOver=True)
    assert another.current.textNode is run.textNode and panel.run is None and shapes() == drawn
    another.discard()
    assert not slicer.mrmlScene.IsNodePresent(run.textNode)
    another.shutdown()
