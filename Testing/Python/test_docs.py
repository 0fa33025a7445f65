"""The examples of docs/python.md, run one after the other as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]


def test_the_examples_in_python_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.phantoms.phantom import make_volume

    made = make_volume(7, (3.0, 3.0, 10.0))
    nib.save(nib.Nifti1Image(made.hu, made.affine), tmp_path / "ct.nii.gz")
    # As from another program: a segmentation of several structures, its liver a voxel too thin on every side.
    total = made.masks["spleen"].astype(np.uint8)
    total[binary_erosion(made.masks["liver"])] = 5
    nib.save(nib.Nifti1Image(total, made.affine), tmp_path / "total.nii.gz")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(examples) == 7
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), names)
    assert np.asarray(nib.load("volume/mask.nii.gz").dataobj).any()
    for folder in ("slice", "volume", "corrected", "many/ct.nii.gz", "several/liver", "several/spleen"):
        assert (tmp_path / folder / "review.html").is_file(), folder
    assert (tmp_path / "several" / "labels.nii.gz").is_file()
