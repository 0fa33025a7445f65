"""Procedural abdominal CT phantoms, on which the demo models are trained and evaluated.

An `Anatomy` is one simulated patient, drawn from a seed: implicit surfaces in millimetres (x to the patient's right,
y anterior, z superior; z = 0 at the kidneys), deformed by a smooth random warp. It can be sampled on any grid, so a
single slice is cheap, and the slices of a volume fit together.

    python -m training.phantoms --seed 7 --out phantom.nii.gz        # a volume with labels, as NIfTI
    python -m training.phantoms --gallery gallery.png                # pictures to look at

Proportions and grey values are typical ones; they do not follow the distribution of a population.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from training.phantoms.anatomy import Anatomy
from training.phantoms.shapes import Array, PhantomSlice
from training.phantoms.tissues import EXTRAS, STRUCTURES

Z_RANGE = (-75.0, 88.0)


@dataclass
class PhantomVolume:
    """`hu` (I, J, K) int16 in RAS order, `masks` name → (I, J, K) bool, `affine` (4, 4) voxel → RAS mm."""

    hu: Array
    masks: dict[str, Array]
    affine: Array


def random_slice(seed: int, spacing: float | None = None, mirrored: bool | None = None) -> PhantomSlice:
    """A random slice of a random patient, both from `seed`, with random field of view and pixel size."""
    r = np.random.default_rng([seed, 5])
    anatomy = Anatomy(seed)
    margin = tuple(r.choice([r.uniform(-6, 12), r.uniform(5, 60)]) for _ in range(4))
    step = float(r.uniform(1.4, 2.8)) if spacing is None else spacing
    flip = bool(r.uniform() < 0.2) if mirrored is None else mirrored
    z = float(r.uniform(*Z_RANGE))
    return anatomy.slice_at(z, step, margin, flip)


def make_volume(
    seed: int, spacing: tuple[float, float, float] = (2.5, 2.5, 5.0), z_range: tuple[float, float] = Z_RANGE
) -> PhantomVolume:
    """A volume in RAS order. spacing, z_range: in mm. Takes about 16 bytes of memory per voxel."""
    anatomy = Anatomy(seed)
    half_x, half_y = anatomy.body_half_widths()
    xs = np.arange(-half_x - 14, half_x + 14, spacing[0], dtype=np.float32)
    ys = np.arange(-half_y - 14, half_y + 14, spacing[1], dtype=np.float32)
    zs = np.arange(z_range[0], z_range[1], spacing[2], dtype=np.float32)
    x, y = np.meshgrid(xs, ys, indexing="ij")
    hu = np.empty((len(xs), len(ys), len(zs)), np.int16)
    masks: dict[str, Array] = {n: np.zeros(hu.shape, bool) for n in (*STRUCTURES, *EXTRAS)}
    for k, z in enumerate(zs):
        rng = np.random.default_rng([seed, k + 1])
        art = anatomy.paint(x, y, float(z))
        hu[:, :, k] = np.round(anatomy._acquire(art, spacing[0], rng))
        for name, mask in art.masks.items():
            masks[name][:, :, k] = mask
    affine = np.diag([spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = xs[0], ys[0], zs[0]
    return PhantomVolume(hu, masks, affine)


def write_volume(volume: PhantomVolume, out: Path) -> None:
    """Write the scan as NIfTI, `*_labels.nii.gz` with values 1… in the order of STRUCTURES (lesion on top), and
    their names in `*_labels.json`."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(volume.hu, volume.affine), out)
    labels = np.zeros(volume.hu.shape, np.uint8)
    for number, name in enumerate(STRUCTURES, 1):
        labels[volume.masks[name]] = number
    labels_file = out.with_name(out.name.replace(".nii", "_labels.nii"))
    nib.save(nib.Nifti1Image(labels, volume.affine), labels_file)
    present = {n: name for n, name in enumerate(STRUCTURES, 1) if (labels == n).any()}
    labels_file.with_name(labels_file.name.split(".nii")[0] + ".json").write_text(
        json.dumps(present), encoding="utf-8"
    )


def gallery(out: Path, first_seed: int = 1, rows: int = 4, columns: int = 5) -> None:
    """Write one picture of random phantoms with and without outlines."""
    from PIL import Image

    colours = np.array(
        [
            (230, 120, 60),
            (150, 60, 200),
            (90, 200, 90),
            (30, 140, 30),
            (230, 30, 30),
            (240, 230, 80),
            (60, 160, 240),
            (255, 0, 255),
        ]
    )
    tiles = []
    for seed in range(first_seed, first_seed + rows * columns):
        s = random_slice(seed)
        grey = np.clip((s.hu + 160) / 400 * 255, 0, 255).astype(np.uint8)
        rgb = np.repeat(grey[:, :, None], 3, 2)
        for name, colour in zip(STRUCTURES, colours, strict=True):
            m = s.masks[name]
            rgb[m & ~ndimage.binary_erosion(m)] = colour
        tile = Image.fromarray(np.hstack([np.repeat(grey[:, :, None], 3, 2), rgb]))
        tiles.append(np.array(tile.resize((520, 220))))
    strips = [np.hstack(tiles[i * columns : (i + 1) * columns]) for i in range(rows)]
    Image.fromarray(np.vstack(strips)).save(out)


def main() -> None:
    # training.common imports the phantoms, so its command_parser would be a circular import.
    parser = argparse.ArgumentParser(
        prog="python -m training.phantoms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write a volume (.nii.gz) and its labels")
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.5, 2.5, 5.0), help="voxel size in mm")
    parser.add_argument("--gallery", type=Path, help="write a picture of many phantoms")
    args = parser.parse_args()
    if args.gallery:
        gallery(args.gallery, args.seed)
    if args.out:
        write_volume(make_volume(args.seed, args.spacing), args.out)
