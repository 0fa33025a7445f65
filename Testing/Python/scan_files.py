"""Small scans as files, and what a refusal of one must say, for the tests of scans."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from ibis_agent.errors import InputError
from ibis_agent.scan.load import load_scan

RNG = np.random.default_rng(5)
VOLUME = RNG.integers(-1000, 1000, (6, 8, 10)).astype(np.int16)  # (I, J, K)
RAW = RNG.integers(0, 2000, (6, 8, 10))  # DICOM: (slices, rows, columns)
AFFINE = np.array(
    [[-0.8, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3, 100], [0, 0, 0, 1]], dtype=float
)  # left-handed
OBLIQUE = np.array([[0.9397, -0.342, 0, 1], [0.342, 0.9397, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]], dtype=float)


def save_nifti(path: Path, voxels: np.ndarray = VOLUME, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def save_itk(
    path: Path, voxels: np.ndarray = VOLUME, affine: np.ndarray = AFFINE, compress: bool = True
) -> Path:
    image = sitk.GetImageFromArray(voxels.T)
    columns = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(columns[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(columns[:, 3].tolist())
    sitk.WriteImage(image, str(path), compress)
    return path


def refused(path: Path, *words: str, **options: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_scan(path, **options)
    text = str(caught.value)
    assert str(path) in text
    for word in words:
        assert word in text, text
    return caught.value
