"""The end of a session: accepted into a segmentation, shown in 3D, exported, or discarded without a trace."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slicer_panel import SLICE, THINK_LIVER, Panel


def other_segments(panel: Panel, volume: Any) -> Any:
    """A segmentation of the person's with two overlapping segments in the slice of the question and beside it."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name, rows in (("Tumour", slice(20, 60)), ("Vessel", slice(50, 90))):
        segment_id = node.GetSegmentation().AddEmptySegment("", name)
        array = np.zeros(volume.GetImageData().GetDimensions()[::-1], np.uint8)
        array[SLICE - 2 : SLICE + 3, rows, 10:70] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segment_id, volume)
    panel.host.process_events()
    return node


def segment_arrays(node: Any, volume: Any) -> dict[str, np.ndarray]:
    import slicer

    segmentation = node.GetSegmentation()
    return {
        segmentation.GetSegment(each).GetName(): slicer.util.arrayFromSegmentBinaryLabelmap(
            node, each, volume
        )
        != 0
        for each in segmentation.GetSegmentIDs()
    }


def test_accept_makes_a_named_segment_in_a_new_segmentation_beside_the_volume(stepped: Panel) -> None:
    import slicer

    panel, mask, volume = stepped, stepped.shown_mask(), stepped.run.volumeNode
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    panel.host.press(panel.ui.acceptButton)
    node = panel.logic.results.segmentation
    assert np.array_equal(segment_arrays(node, volume)["Liver"], mask)
    segment = node.GetSegmentation().GetSegment(node.GetSegmentation().GetSegmentIDs()[0])
    assert "10200004" in segment.GetTerminology()  # SNOMED CT: liver
    assert np.allclose(segment.GetColor(), np.array([221, 130, 101]) / 255, atol=0.01)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert panel.status.startswith("Added segment Liver")
    assert panel.run is None


@pytest.mark.parametrize("target", ["new segment", "existing segment"])
def test_accept_leaves_all_other_segments_as_they_were(stepped: Panel, target: str) -> None:
    panel, mask, volume = stepped, stepped.shown_mask(), stepped.run.volumeNode
    node = other_segments(panel, volume)
    before = segment_arrays(node, volume)
    panel.ui.segmentationSelector.setCurrentNode(node)
    if target == "existing segment":
        panel.ui.segmentSelector.setCurrentIndex(1)
        assert panel.ui.segmentSelector.currentText == "Add to Tumour"
    else:
        panel.host.type(panel.ui.nameEdit, "Left lobe")
    panel.host.press(panel.ui.acceptButton)
    after = segment_arrays(node, volume)
    assert np.array_equal(after["Vessel"], before["Vessel"])
    if target == "existing segment":
        assert np.array_equal(after["Tumour"], before["Tumour"] | mask)
    else:
        assert np.array_equal(after["Tumour"], before["Tumour"])
        assert np.array_equal(after["Left lobe"], mask)


def test_accepting_an_earlier_step_keeps_what_is_seen(stepped: Panel) -> None:

    panel = stepped
    panel.select(1)
    assert panel.ui.acceptButton.text == "Accept step 1"
    area = panel.logic.steps[0]["area_px"]
    volume = panel.run.volumeNode
    panel.host.press(panel.ui.acceptButton)
    node = panel.logic.results.segmentation
    assert segment_arrays(node, volume)["Liver"].sum() == area
    assert panel.logic.hasMask
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetNthSegmentID(0))
    assert not panel.logic.hasMask  # there is nothing to export any more


def test_discard_leaves_no_trace(asked: Panel) -> None:
    import slicer

    panel = asked
    before = {node.GetID() for node in slicer.util.getNodes("*", useLists=True).values() for node in node}
    panel.step()
    panel.step()
    panel.host.answer("Cancel", "Ok")
    panel.host.press(panel.ui.discardButton)
    assert panel.run is not None  # the person thought better of it
    panel.host.press(panel.ui.discardButton)
    panel.host.process_events()
    after = {node.GetID() for node in slicer.util.getNodes("*", useLists=True).values() for node in node}
    left = {slicer.mrmlScene.GetNodeByID(each).GetClassName() for each in after - before}
    assert left <= {"vtkMRMLScriptedModuleNode", "vtkMRMLSubjectHierarchyNode"}


def test_the_own_export_is_a_labelled_case(stepped: Panel, data: Path) -> None:
    import shutil

    import nibabel
    from ibis_agent.cases.cases import read_cases
    from ibis_agent.cases.data import load_case

    folder = stepped.folder / "cases"
    folder.mkdir()
    shutil.copy(data / "ct_abdomen_3mm.nii.gz", folder / "case.nii.gz")
    stepped.logic.export(str(folder / "case.seg.nrrd"))
    stepped.logic.export(str(stepped.folder / "truth.nii.gz"))
    truth = np.asanyarray(nibabel.load(stepped.folder / "truth.nii.gz").dataobj) != 0
    (case,), _ = read_cases(folder)
    loaded, problems = load_case(case)
    assert not problems and list(loaded.structures) == ["Liver"]
    assert np.array_equal(np.isin(loaded.labels, loaded.structures["Liver"]), truth) and truth.any()


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
def test_export_writes_the_mask_where_it_lies(stepped: Panel, suffix: str, data: Path) -> None:
    panel, path = stepped, stepped.folder / f"liver{suffix}"
    panel.logic.export(str(path))
    if suffix == ".nii.gz":
        import nibabel

        image, scan = nibabel.load(path), nibabel.load(data / "ct_abdomen_3mm.nii.gz")
        assert np.allclose(image.affine, scan.affine, atol=1e-3)
        assert int((np.asanyarray(image.dataobj) != 0).sum()) == panel.logic.steps[-1]["area_px"]
    else:
        import SimpleITK

        image = SimpleITK.ReadImage(str(path))
        assert image.GetMetaData("Segment0_Name") == "Liver"
        assert "10200004" in image.GetMetaData("Segment0_Tags")
        assert int((SimpleITK.GetArrayFromImage(image) != 0).sum()) == panel.logic.steps[-1]["area_px"]
    assert [each.name for each in panel.folder.glob("*") if each.name.startswith(".")] == []


def test_the_export_menu_writes_a_review_page(stepped: Panel) -> None:
    panel, path = stepped, stepped.folder / "review.html"
    actions = panel.menu(panel.module.widget.resultPanel._menu)
    assert not actions["Segmentation as DICOM SEG …"].isEnabled()  # nothing here could write it
    panel.host.answer(str(path))
    actions["Review page of this run (.html) …"].trigger()
    assert THINK_LIVER in path.read_text(encoding="utf-8")


PLUGIN = """
from pathlib import Path
from types import SimpleNamespace

exported = []


class DICOMSegmentationPluginClass:
    def examineForExport(self, item):
        return [SimpleNamespace(subjectHierarchyItemID=item, directory="")]

    def export(self, exportables):
        exported.extend(exportables)
        return "" if Path(exportables[0].directory).is_dir() else "no such folder"
"""


@pytest.fixture
def dicom_seg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for Slicer 5.12's `DICOMSegmentationPlugin`, which keeps what it was given in `exported`."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "DICOMSegmentationPlugin.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("DICOMSegmentationPlugin")
    del sys.modules["DICOMSegmentationPlugin"]


def test_accepting_in_3d_and_writing_dicom_seg_which_says_how_the_mask_was_made(
    stepped: Panel, dicom_seg: Any
) -> None:
    import slicer
    import vtk

    panel, volume = stepped, stepped.run.volumeNode
    panel.ui.show3DCheckBox.checked = True
    panel.host.press(panel.ui.acceptButton)
    node = panel.logic.results.segmentation
    segment = node.GetSegmentation().GetNthSegment(0)
    assert segment.GetRepresentation("Closed surface").GetNumberOfPoints() > 0
    assert node.GetDisplayNode().GetVisibility3D()
    made_by = vtk.reference("")
    assert segment.GetTag("DICOM.SegmentAlgorithmType", made_by) and str(made_by) == "SEMIAUTOMATIC"
    assert segment.GetTag("DICOM.SegmentAlgorithmName", made_by) and str(made_by) == "IBISSlicer"

    panel.host.answer(str(panel.folder))
    panel.menu(panel.module.widget.resultPanel._menu)["Segmentation as DICOM SEG …"].trigger()
    assert "not loaded from the DICOM database" in panel.status
    assert dicom_seg.exported == []
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    panel.host.answer(str(panel.folder))
    panel.menu(panel.module.widget.resultPanel._menu)["Segmentation as DICOM SEG …"].trigger()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert [hierarchy.GetItemDataNode(each.subjectHierarchyItemID) for each in dicom_seg.exported] == [node]
    assert panel.status.startswith("Saved DICOM SEG")
    panel.host.answer(str(panel.folder / "nowhere"))
    panel.menu(panel.module.widget.resultPanel._menu)["Segmentation as DICOM SEG …"].trigger()
    assert "Failed to write DICOM SEG: no such folder" in panel.status


def test_accepting_in_3d_into_a_segmentation_that_was_never_shown(stepped: Panel) -> None:
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    assert node.GetDisplayNode() is None
    segment = stepped.logic.accept(node, show3D=True)
    assert node.GetSegmentation().GetSegmentIDs() == (segment,)
    assert node.GetDisplayNode().GetSegmentVisibility3D(segment)


def test_dicom_is_written_of_accepted_masks_only(stepped: Panel) -> None:
    with pytest.raises(RuntimeError, match="Accept the mask first"):
        stepped.logic.exportDicom(str(stepped.folder))


def test_what_is_made_for_an_export_is_never_offered_in_a_selector(stepped: Panel) -> None:
    import slicer
    import vtk

    added: list[tuple[str, bool]] = []

    def tell(caller: Any, event: str, node: Any) -> None:
        added.append((node.GetName(), bool(node.GetHideFromEditors())))

    tell.CallDataType = vtk.VTK_OBJECT
    tag = slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, tell)
    for name in ("liver.nii.gz", "liver.seg.nrrd"):
        stepped.logic.export(str(stepped.folder / name))
    slicer.mrmlScene.RemoveObserver(tag)
    made = [hidden for name, hidden in added if name.startswith("IBIS export")]
    assert made and all(made)
