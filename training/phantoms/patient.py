"""Random pictures of one real patient: a labelled CT deformed, scaled, re-contrasted and cropped.

The scan is split into a map of tissues, with enough resolution for sharp edges, and the texture, which is the scan
minus the mean of each tissue. A picture samples both on a random plane, with new HU for every tissue (of a contrast
phase, or random), other proportions, organs enlarged, shrunk or removed, lesions, air and fluid in the stomach, and
scanner noise (similar to SynthSeg). Organs also get other shapes and relative levels (`reshaped`), which deformation
alone does not give.

    patient = Patient.load(scan, labels, names)
    hu, bits, aspect = patient.picture(seed)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from training.phantoms.reshaped import reshape
from training.phantoms.scanner import scanned
from training.phantoms.shapes import smooth
from training.phantoms.tissues import NAMES, PHASE_ODDS, PHASES

SIDE = 288
FINE = 2  # resolution of the map of tissues, relative to the scan
# Tissues without a label, classified by HU.
OUTSIDE, GAS, FAT, SOFT, BONE, BRIGHT = 200, 201, 202, 203, 204, 205
# Structure → prefixes of TotalSegmentator labels.
PARTS = {
    "liver": ("liver",),
    "spleen": ("spleen",),
    "left kidney": ("kidney_left",),
    "right kidney": ("kidney_right",),
    "aorta": ("aorta",),
    "spine": ("vertebrae", "sacrum"),
    "stomach": ("stomach",),
    "gallbladder": ("gallbladder",),
    "inferior vena cava": ("inferior_vena_cava",),
    "pancreas": ("pancreas",),
    "bowel": ("small_bowel", "duodenum", "colon"),
    "psoas": ("iliopsoas",),
    "back muscle": ("autochthon",),
    "lung": ("lung",),
}
MOVED = ("liver", "spleen", "left kidney", "right kidney", "stomach", "aorta", "gallbladder")
HELD_LEVELS = ((58.0, 63.0), (88.0, 93.0))  # slices of the scan held out for evaluation


@dataclass
class Patient:
    """One patient, in RAS order.

    Attributes:
        tissue: (I, J, K) * FINE uint8; rest: (I, J, K) float32 HU of the texture.
        means: (256,) HU of each tissue.
        step: voxel size of the scan in mm.
        names: label → name.
        where: structure → (centre, radius) in voxels of the scan.
    """

    tissue: np.ndarray
    rest: np.ndarray
    means: np.ndarray
    step: float
    names: dict[int, str]
    where: dict[str, tuple[np.ndarray, float]]

    @classmethod
    def load(cls, scan: Path, labels: Path, names: Path, cache: Path | None = None) -> Patient:
        """Read a RAS scan with isotropic voxels and its label map. cache: a .npz file for the slow part."""
        import nibabel as nib

        read: Any = nib.load(scan)
        labelled: Any = nib.load(labels)
        hu = np.asarray(read.dataobj, np.float32)
        known = np.asarray(labelled.dataobj).astype(np.uint8)
        called = {int(k): v for k, v in json.loads(names.read_text(encoding="utf-8")).items()}
        step = float(abs(read.affine[0, 0]))
        coarse = _tissues(hu, known)
        if cache is not None and cache.exists():
            fine = np.load(cache)["tissue"]
        else:
            fine = _refined(coarse)
            if cache is not None:
                np.savez_compressed(cache, tissue=fine)
        means = np.full(256, 0.0, np.float32)
        for number in np.unique(coarse):
            inner = coarse == number
            core = ndimage.binary_erosion(inner)
            means[number] = np.median(hu[core if core.sum() > 30 else inner])
        means[OUTSIDE], means[GAS] = -1000, -950
        painted = means[fine]
        shape = hu.shape
        soft = painted.reshape(shape[0], FINE, shape[1], FINE, shape[2], FINE).mean((1, 3, 5))
        rest = np.clip(hu - soft, -400, 400).astype(np.float32)
        rest[coarse == OUTSIDE] = 0
        where = {}
        for name in MOVED:
            inside = np.isin(known, [n for n, each in called.items() if each.startswith(PARTS[name])])
            centre = np.array(ndimage.center_of_mass(inside))
            where[name] = centre, float(np.cbrt(inside.sum() * 0.75 / np.pi))
        return cls(fine, rest, means, step, called, where)

    def picture(
        self, seed: int, side: int = SIDE, held: bool = False, above: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, float, tuple[float, float]]:
        """((side, side) float32 HU, (side, side) uint16 bits of NAMES, width / height, (row, column) mm).

        The same for the same seed. held: use a held-out level, and never otherwise. above: the same body this many
        slices of the scan higher.
        """
        r = np.random.default_rng([seed, 41])
        points, mm, aspect = self._plane(r, side, held, above)
        outside = np.zeros(points[0].shape, bool)
        for p, n in zip(points[:2], self.rest.shape[:2], strict=True):
            outside |= (p < -0.5) | (p > n - 0.5)
        tissue = self._at(points, outside)
        rest = ndimage.map_coordinates(self.rest, np.stack(points), order=1, mode="nearest")
        own = _each(3, r, above)
        tissue, taken = self._without(tissue, own[0])
        changed = np.zeros_like(taken)
        if not above:  # slices of a clip keep the same shape
            numbers = {name: self._numbers(name) for name in PARTS}
            tissue, changed = reshape(tissue, numbers, FAT, (SOFT,), (GAS, BRIGHT), mm, r)
        rest[taken | changed | (tissue == OUTSIDE)] = 0
        shades = self._shades(r)
        hu = shades[tissue]
        if r.uniform() < 0.2:  # a thick slice averages what is above and below
            apart = np.float32(r.uniform(0.4, 1.6))
            for step in (-apart, apart):
                other = shades[self._at([points[0], points[1], points[2] + step], outside)]
                hu = hu + np.where(changed | taken, hu, other) * 0.5
            hu = hu / 2
        hu = hu + rest * r.uniform(0.35, 1.25)
        masks = {name: np.isin(tissue, self._numbers(name)) for name in PARTS}
        _fill_stomach(hu, masks["stomach"], own[1])
        lesion = _masses(hu, masks, mm, own[2])
        bits = np.zeros(tissue.shape, np.uint16)
        for name, mask in {**masks, "lesion": lesion}.items():
            bits |= mask.astype(np.uint16) << NAMES.index(name)
        body = tissue != OUTSIDE
        hu = scanned(hu, body, mm, np.random.default_rng([seed, 42, int(above * 100)]) if above else r)
        return hu, bits, aspect, mm

    def _numbers(self, name: str) -> list[int]:
        return [n for n, each in self.names.items() if each.startswith(PARTS[name])]

    def _at(self, points: list[np.ndarray], outside: np.ndarray) -> np.ndarray:
        """(H, W) uint8 tissue at voxel coordinates of the scan."""
        flat = [
            np.clip(np.round((p + 0.5) * FINE - 0.5), 0, n - 1).astype(np.intp)
            for p, n in zip(points, self.tissue.shape, strict=True)
        ]
        tissue = self.tissue[flat[0], flat[1], flat[2]]
        tissue[outside] = OUTSIDE
        return tissue

    def _plane(self, r: np.random.Generator, side: int, held: bool, above: float = 0.0):
        """(three arrays of voxel coordinates of a cropped, deformed plane, mm per pixel, width / height)."""
        u = r.uniform
        depth = self.rest.shape[2]
        while True:
            low = float(r.choice([0.02, 0.5, 0.74], p=[0.12, 0.23, 0.65]))
            level = float(u(low * depth, depth - 2))
            is_held = any(a <= level <= b for a, b in HELD_LEVELS)
            near = any(a - 1 <= level <= b + 1 for a, b in HELD_LEVELS)
            if is_held if held else not near:
                break
        if above:  # slices of a clip share the deformation of a common level
            level = min(level, depth - 20.0)
        nearest = self.tissue[::FINE, ::FINE, int(level) * FINE] != OUTSIDE
        rows, columns = np.flatnonzero(nearest.any(1)), np.flatnonzero(nearest.any(0))
        centre = np.array([(rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2])
        half = np.array([(rows[-1] - rows[0]) / 2 + 1, (columns[-1] - columns[0]) / 2 + 1])
        # Half sizes of the new body in mm.
        size = half * self.step * np.exp(r.normal(0, (0.1, 0.12))) * np.exp(r.normal(0, 0.12))
        roll, tilt = np.deg2rad(r.normal(0, 5)), r.normal(0, 0.07, 2)
        margin = 0.04 if u() < 0.6 else float(u(0, 0.14)) if u() < 0.85 else float(u(-0.18, 0.5))
        # The frame around the body, in half sizes of the body.
        spread = 1 + 2 * margin * size.max() / size
        shift = r.normal(0, 0.03 + 0.3 * max(0.0, abs(margin) - 0.14), 2)
        xs = np.linspace(-spread[0], spread[0], side, dtype=np.float32) + shift[0]
        ys = np.linspace(spread[1], -spread[1], side, dtype=np.float32) + shift[1]
        mm = (float(2 * spread[1] * size[1] / side), float(2 * spread[0] * size[0] / side))
        aspect = float(spread[0] * size[0] / (spread[1] * size[1]))
        x, y = np.meshgrid(-xs, ys)  # columns run to the patient's left, so x decreases
        c, s = np.float32(np.cos(roll)), np.float32(np.sin(roll))
        ratio = np.float32(size[0] / size[1])
        x, y = c * x + s * y / ratio, -s * x * ratio + c * y
        # Slim or obese: a thinner or thicker rim around the same inside.
        rho = (np.abs(x) ** 2.4 + np.abs(y) ** 2.4 + 1e-6) ** np.float32(1 / 2.4)
        outer = float(u(0.72, 0.97))
        inner = float(np.clip(outer + u(-0.08, 0.16), 0.76, 0.97))
        new = np.where(
            rho < outer, rho * (inner / outer), inner + (rho - outer) * ((1 - inner) / (1 - outer))
        )
        x, y = x * new / rho, y * new / rho
        px = centre[0] + x * half[0]
        py = centre[1] + y * half[1]
        pz = np.float32(level) + x * np.float32(tilt[0] * half[0]) + y * np.float32(tilt[1] * half[1])
        points = [px.astype(np.float32), py.astype(np.float32), (pz + np.float32(above)).astype(np.float32)]
        # Deform by smooth noise at two scales.
        for cells, amount in ((4, u(0, 3.0)), (8, u(0, 1.2))):
            for axis in range(3):
                points[axis] = points[axis] + np.float32(amount) * smooth(r, cells, side)
        if not above and u() < 0.6:  # change the levels of organs relative to each other
            points[2] = points[2] + np.float32(u(0, 6.0)) * smooth(r, 2, side)
        # Enlarge, shrink and move organs.
        for (name, (at, radius)), own in zip(
            self.where.items(), _each(len(self.where), r, above), strict=True
        ):
            if abs(at[2] - level - above) > radius * 3 or own.uniform() < 0.3:
                continue
            grow = own.normal(0, 0.22) + (0.45 if name == "spleen" and own.uniform() < 0.1 else 0)
            if name == "stomach":  # its size varies most
                grow = own.normal(0.15, 0.35)
            grow = float(np.clip(grow, -0.5, 0.6))
            move = own.normal(0, (0.2, 0.2, 0.2 if above else 0.35)) * radius
            d = [points[axis] - np.float32(at[axis]) for axis in range(3)]
            near = np.exp(-(d[0] ** 2 + d[1] ** 2 + d[2] ** 2) / np.float32(2 * (1.15 * radius) ** 2))
            for axis in range(3):
                points[axis] = points[axis] - near * (np.float32(grow) * d[axis] + np.float32(move[axis]))
        return points, mm, aspect

    def _without(self, tissue: np.ndarray, r: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tissue with random organs removed, (H, W) bool of the removed pixels)."""
        taken = np.zeros(tissue.shape, bool)
        for name, chance in (
            ("spleen", 0.08),
            ("left kidney", 0.08),
            ("right kidney", 0.08),
            ("stomach", 0.08),
            ("gallbladder", 0.3),
        ):
            if r.uniform() < chance:
                taken |= np.isin(tissue, self._numbers(name))
        if taken.any():
            tissue = tissue.copy()
            tissue[taken] = FAT if r.uniform() < 0.75 else SOFT
        return tissue, taken

    def _shades(self, r: np.random.Generator) -> np.ndarray:
        """(256,) HU of each tissue in this picture: of a contrast phase, of the real patient, or random."""
        u = r.uniform
        shades = self.means.copy()
        kind = u()
        if kind < 0.2:
            return shades + np.float32(r.normal(0, 8)) * (shades > -300)
        phase = PHASES[str(r.choice(list(PHASE_ODDS), p=[0.25, 0.15, 0.48, 0.12]))]
        shift = r.normal(0, 8)
        drawn = {k: float(r.normal(m, 1.2 * s)) + shift for k, (m, s) in phase.items()}
        muscle, fat = float(u(40, 70)) + shift / 2, float(u(-120, -85))
        if u() < 0.15:
            drawn["liver"] -= u(15, 60)  # fatty
        bowel = float(u(10, 70)) if u() < 0.75 else float(u(80, 350))
        for number, name in self.names.items():
            if name == "liver":
                value = drawn["liver"]
            elif name == "spleen":
                value = drawn["spleen"]
            elif name.startswith("kidney"):
                value = drawn["kidney"]
            elif name.startswith(("aorta", "iliac_artery")):
                value = drawn["aorta"]
            elif name.startswith(("inferior_vena", "portal", "iliac_vena")):
                value = drawn["vein"] + r.normal(0, 8)
            elif name.startswith(("pancreas", "adrenal")):
                value = 0.75 * drawn["liver"] + r.normal(8, 8)
            elif name == "gallbladder":
                value = float(u(-5, 30))
            elif name == "stomach":
                value = float(u(0, 70)) if u() < 0.8 else float(u(80, 320))
            elif name.startswith(("small_bowel", "duodenum", "colon")):
                value = bowel + r.normal(0, 12)
            elif name.startswith(("lung",)):
                value = float(u(-880, -750))
            elif name.startswith(("vertebrae", "sacrum", "hip", "femur", "rib")):
                value = self.means[number] * u(0.75, 1.35)
            elif name.startswith("urinary"):
                value = float(u(0, 25)) if u() < 0.8 else float(u(100, 350))
            else:
                value = muscle + r.normal(0, 4)
            shades[number] = value
        if kind > 0.9:  # random HU: structures are recognised by shape and place
            soft = shades > -60
            soft[[OUTSIDE, GAS, FAT]] = False
            shades[soft] += r.normal(0, 30, soft.sum())
        shades[FAT], shades[SOFT] = fat, muscle - u(0, 25)
        shades[BONE] = self.means[BONE] * u(0.8, 1.25)
        shades[BRIGHT] = self.means[BRIGHT] * u(0.7, 1.3)
        return shades.astype(np.float32)


def _each(count: int, r: np.random.Generator, above: float) -> list[np.random.Generator]:
    """A generator for each of several parts. In a clip each has its own: what a slice shows decides how much is drawn,
    which must not shift what the next part draws, since the neighbouring slices show other things.
    """
    return r.spawn(count) if above else [r] * count


def _fill_stomach(hu: np.ndarray, stomach: np.ndarray, r: np.random.Generator) -> None:
    """Sometimes change the contents of the stomach: gas above fluid, or food."""
    kind = r.uniform()
    if not stomach.any() or kind < 0.35:
        return
    inner = ndimage.binary_erosion(stomach, iterations=int(r.integers(2, 6)))
    if not inner.any():
        return
    rows = np.flatnonzero(inner.any(1))
    level = rows[0] + (rows[-1] - rows[0]) * r.uniform(-0.2, 0.9)
    fluid = float(r.uniform(-5, 45)) if r.uniform() < 0.5 else float(r.uniform(80, 500))
    texture = smooth(r, 30, hu.shape[0]) * (r.uniform(10, 90) if kind > 0.7 else 2)
    hu[inner] = fluid + texture[inner]
    above = np.arange(hu.shape[0])[:, None] < level
    gas = inner & (above if r.uniform() < 0.92 else ~above)  # posterior if the patient lies prone
    hu[gas] = -950


def _masses(
    hu: np.ndarray, masks: dict[str, np.ndarray], mm: tuple[float, float], r: np.random.Generator
) -> np.ndarray:
    """Paint lesions and cysts in solid organs into `hu`; returns their (H, W) bool mask."""
    lesion = np.zeros(hu.shape, bool)
    if r.uniform() > 0.3:
        return lesion
    y, x = np.ogrid[: hu.shape[0], : hu.shape[1]]
    for _ in range(int(r.choice([1, 1, 1, 2, 4]))):
        host = masks[
            str(r.choice(["liver", "left kidney", "right kidney", "spleen"], p=[0.7, 0.1, 0.1, 0.1]))
        ]
        spots = np.argwhere(host[::4, ::4]) * 4
        if len(spots) < 12:
            continue
        at = spots[int(r.integers(len(spots)))]
        size = float(np.exp(r.uniform(np.log(5), np.log(26))))
        dy, dx = (y - at[0]) * mm[0], (x - at[1]) * mm[1] * np.exp(r.normal(0, 0.15))
        angle = np.arctan2(dy, dx)
        edge = 1 + sum(r.normal(0, 0.16 / k) * np.cos(k * angle + r.uniform(0, 6.3)) for k in (1, 2, 3, 4))
        inside = (np.hypot(dy, dx) < size * np.maximum(edge, 0.4)) & host
        if inside.sum() < 30:
            continue
        around = float(np.median(hu[inside]))
        shade = (
            float(r.uniform(-5, 15))
            if r.uniform() < 0.25
            else around + r.choice([-1, -1, -1, 1]) * r.uniform(25, 75)
        )
        hu[inside] = shade + 0.3 * (hu[inside] - around)
        lesion |= inside
    return lesion


def _tissues(hu: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(I, J, K) uint8: the labels, and OUTSIDE, GAS, FAT, SOFT, BONE or BRIGHT without a label."""
    inside = ndimage.binary_opening(hu > -250, iterations=2)
    parts, _ = ndimage.label(inside)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = ndimage.binary_dilation(parts == int(sizes.argmax()), iterations=1) & (hu > -350)
    body = np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(hu.shape[2])], 2)
    found = np.full(hu.shape, OUTSIDE, np.uint8)
    found[body] = np.select(
        [hu[body] < -300, hu[body] < -30, hu[body] < 110, hu[body] < 200], [GAS, FAT, SOFT, BRIGHT], BONE
    )
    found[body & (labels > 0)] = labels[body & (labels > 0)]
    hollow = np.isin(labels, [0]) | (hu < -400)
    lungs = (labels >= 10) & (labels <= 14)
    found[body & hollow & ~lungs & (hu < -400)] = GAS
    return found


def _refined(coarse: np.ndarray) -> np.ndarray:
    """The (I, J, K) uint8 map at FINE times the resolution, with smooth edges."""
    shape = tuple(n * FINE for n in coarse.shape)
    best = np.full(shape, 0.0, np.float32)
    found = np.full(shape, OUTSIDE, np.uint8)
    axes = [(np.arange(n) + 0.5) / FINE - 0.5 for n in shape]
    for number in np.unique(coarse):
        boxes = ndimage.find_objects((coarse == number).astype(np.uint8))[0]
        low = [max(0, b.start - 2) for b in boxes]
        high = [min(n, b.stop + 2) for b, n in zip(boxes, coarse.shape, strict=True)]
        part = coarse[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == number
        soft = ndimage.gaussian_filter(part.astype(np.float32), 0.6, mode="nearest")
        grid = [axes[i][low[i] * FINE : high[i] * FINE] - low[i] for i in range(3)]
        for axis in range(3):
            a = np.clip(grid[axis], 0, soft.shape[axis] - 1)
            lower = np.minimum(a.astype(int), soft.shape[axis] - 2)
            t = (a - lower).astype(np.float32)
            t = t.reshape([-1 if i == axis else 1 for i in range(3)])
            soft = np.take(soft, lower, axis) * (1 - t) + np.take(soft, lower + 1, axis) * t
        window = tuple(slice(low[i] * FINE, high[i] * FINE) for i in range(3))
        better = soft > best[window]
        best[window][better] = soft[better]
        found[window][better] = number
    return found
