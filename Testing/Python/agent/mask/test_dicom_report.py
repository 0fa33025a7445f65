"""The report of measures beside a DICOM SEG: opened again by highdicom, with the numbers that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

highdicom = pytest.importorskip("highdicom")

from dicom_files import write_series
from ibis_agent.cli.commands import main
from ibis_agent.scan.load import load_scan
from scripted_cli import in_use, interruptible, recorded  # noqa: F401


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    raw = np.random.default_rng(0).integers(0, 2000, (6, 20, 28))
    return write_series(tmp_path / "ct", raw, FrameOfReferenceUID="1.2.3.9", PatientID="7")


def test_the_report_of_a_run_holds_its_measures_and_names_its_segmentation(
    use: Any, folder: Path, tmp_path: Path
) -> None:
    use()
    out = tmp_path / "out"
    assert main(["run", str(folder), "--prompt", "Segment the liver", "--out", str(out), "--report"]) == 0
    report, seg = highdicom.sr.srread(out / "report.dcm"), highdicom.seg.segread(out / "mask.seg.dcm")
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    found = {
        (each.name.meaning, each.derivation and each.derivation.meaning): (each.value, each.unit.value)
        for each in group.get_measurements()
    }
    measured = recorded(out).measurements
    assert found[("Area", None)] == (measured["area"], "mm2")
    assert found[("Long axis", None)] == (measured["longest"], "mm")
    assert found[("Short axis", None)] == (measured["perpendicular"], "mm")
    if load_scan(folder).may_be_ct:
        assert found[("Attenuation Coefficient", "Mean")] == (measured["mean"], "[hnsf'U]")
    assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    assert report.StudyInstanceUID == seg.StudyInstanceUID and report.PatientID == "7"
    assert report.CompletionFlag != "COMPLETE" and report.VerificationFlag == "UNVERIFIED"
    assert (out / "mask.nii.gz").is_file()


def test_a_report_of_a_scan_that_is_not_dicom_is_refused(
    use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import nibabel

    use()
    values = np.arange(243, dtype=np.int16).reshape(9, 9, 3)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "ct.nii.gz")
    assert main(["run", str(tmp_path / "ct.nii.gz"), "--prompt", "Segment the liver", "--report"]) == 2
    assert "not DICOM" in capsys.readouterr().err
