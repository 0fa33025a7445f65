"""More varied phantoms: other bodies, levels, contents and scanners than in `phantom`.

A patient is an `Anatomy` with wider distributions: children to obese adults, fatty or nodular livers, large spleens,
missing and small kidneys, cysts, wide and calcified aortas, scoliosis, from the chest to the pelvis. A picture shows
the body cropped as the models see it, sometimes less precisely.

    hu, bits, aspect, mm = wide_slice(seed)
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from training.phantoms.anatomy import Anatomy
from training.phantoms.patient import SIDE
from training.phantoms.scanner import scanned
from training.phantoms.shapes import Canvas, rotation, smooth
from training.phantoms.tissues import NAMES

Z_RANGE = (-190.0, 175.0)
DRAWN = 0.72  # painted at this share of the resolution; organs have no finer edges
_TEXTURED = {
    "liver": 5,
    "spleen": 4,
    "left kidney": 9,
    "right kidney": 9,
    "spine": 35,
    "stomach": 8,
    "lung": 40,
}


class WideAnatomy(Anatomy):
    """One simulated patient with wider variation."""

    def __init__(self, seed: int):
        super().__init__(seed)
        r = np.random.default_rng([seed, 777])
        u = r.uniform
        size = float(np.exp(r.normal(0, 0.1))) if u() < 0.9 else float(u(0.55, 0.75))  # sometimes a child
        self.scale = self.scale * size * np.exp(r.normal(0, 0.06, 3))
        self.fat_thickness = float(u(1, 14) if u() < 0.35 else u(6, 40) if u() < 0.8 else u(35, 75))
        self.roll = float(np.deg2rad(r.normal(0, 7)))
        for name, chance in (
            ("spleen", 0.12),
            ("left kidney", 0.12),
            ("right kidney", 0.12),
            ("stomach", 0.1),
        ):
            if u() < chance:
                self.missing.add(name)
        self._resize(r)
        self._reshade(r)
        x0, y0, radius, phase, sway = self.aorta
        radius = radius * float(np.exp(r.normal(0, 0.12))) if u() < 0.9 else float(u(15, 26))
        bend = float(r.normal(0, 5)) if u() < 0.8 else float(r.normal(0, 16))  # scoliosis
        self.aorta = (x0 + bend * 0.7, y0, radius, phase, sway)
        self.calcified = bool(u() < 0.35)
        sx, sy, rx, ry, period, start = self.spine
        self.spine = (sx + bend, sy, rx * size**-0.2 * u(0.85, 1.2), ry * u(0.9, 1.2), period, start)
        self.heart = (
            np.array([u(-35, -10), u(5, 30), u(135, 165)]),
            np.array([u(48, 66), u(40, 56), u(40, 55)]),
        )
        self.pelvis = (u(70, 92), u(-120, -95))
        self.bladder = (np.array([r.normal(0, 8), u(10, 40), u(-195, -165)]), u(18, 55, 3), u(-5, 18))
        self.nodular = float(u(0.02, 0.08)) if u() < 0.15 else 0.0
        self.ascites = float(u(0.05, 0.16)) if u() < 0.1 else 0.0
        if u() < 0.3:
            self._cysts(r)
        self._more_bowel(r)

    def _resize(self, r: np.random.Generator) -> None:
        """Vary the sizes of organs."""

        def scaled(part, spread, shift=0.0):
            centre, radii, turn = part
            factor = np.exp(r.normal(shift, spread) + r.normal(0, spread / 2, 3))
            return centre + r.normal(0, 5, 3), radii * factor, turn

        self.liver_right = scaled(self.liver_right, 0.1)
        self.liver_left = scaled(self.liver_left, 0.22)
        self.spleen = scaled(self.spleen, 0.18, 0.4 if r.uniform() < 0.15 else 0.0)
        self.stomach = scaled(self.stomach, 0.24)
        self.gallbladder = scaled(self.gallbladder, 0.25)
        self.kidneys = {
            side: scaled(part, 0.14, -0.45 if r.uniform() < 0.1 else 0.0)
            for side, part in self.kidneys.items()
        }

    def _reshade(self, r: np.random.Generator) -> None:
        if r.uniform() < 0.15:
            self.density["liver"] -= r.uniform(15, 70)
        for name in self.density:
            self.density[name] += r.normal(0, 6)

    def _cysts(self, r: np.random.Generator) -> None:
        for _ in range(int(r.integers(1, 5))):
            host = str(r.choice(["liver", "left kidney", "right kidney"], p=[0.5, 0.25, 0.25]))
            self.lesions.append(
                (
                    host,
                    r.uniform(0, 1, 3),
                    r.uniform(5, 30),
                    np.exp(r.normal(0, 0.1, 3)),
                    -40.0,
                    r.uniform(0, 6.3, 4),
                    True,
                )
            )

    def _more_bowel(self, r: np.random.Generator) -> None:
        """Add bowel loops in the lower abdomen: collapsed, or with fluid, gas, stool or contrast agent."""
        u = r.uniform
        odds = r.dirichlet([2, 3, 2, 1, 4]) if u() < 0.8 else np.array([0.05, 0.1, 0.05, 0.7, 0.1])
        for _ in range(int(r.integers(5, 45))):
            at = np.array([u(-95, 95), u(-10, 88), u(-190, 0)])
            size = np.array([u(9, 22), u(8, 17), u(14, 40)]) * (1.0 if u() < 0.8 else 1.5)
            kind = str(r.choice(["gas", "fluid", "feces", "contrast", "wall"], p=odds))
            self.loops.append((at, size, rotation(r.normal(0, 0.9, 3)), kind, u(0, 1, 4)))

    def _soft_organs(self, a: Canvas) -> None:
        super()._soft_organs(a)
        if self.ascites:
            rim = (self.cavity < -0.02) & (self.cavity > -self.ascites * 2.2) & (a.hu < -40) & (a.hu > -300)
            a.hu = np.where(rim, 12.0, a.hu).astype(np.float32)

    def _lungs(self, a: Canvas) -> None:
        super()._lungs(a)
        centre, radii = self.heart
        d = sum(((p - c) / s) ** 2 for p, c, s in zip((a.x, a.y, a.z), centre, radii, strict=True))
        heart = (d < 1) & (self.cavity < -0.02) & (a.masks["lung"] | (a.z > 118))
        a.paint((d < 1.12) & (self.cavity < -0.02) & a.masks["lung"], self.fat + 15)
        a.paint(heart, self.muscle + 5)
        a.paint(heart & (d < 0.45), self.density["vein"] * 0.5 + self.density["aorta"] * 0.5)

    def _bones(self, a: Canvas) -> None:
        reach, top = self.pelvis
        if float(a.z.min()) < top:
            marrow, cortex = self.bone
            down = np.clip((top - a.z) / 90, 0, 1)
            for s in (1, -1):
                x = a.x * s - reach - 12 + 20 * down
                y = a.y + 42 - 45 * down
                tilt = 0.9 - 0.5 * down
                along, across = np.cos(tilt) * x + np.sin(tilt) * y, -np.sin(tilt) * x + np.cos(tilt) * y
                wing = (along / (16 + 40 * np.sqrt(down))) ** 2 + (across / (6 + 10 * down)) ** 2 - 1
                bone = (wing < 0) & (a.z < top)
                a.paint(bone, np.where(wing > -0.4, cortex, marrow))
            centre, radii, hu = self.bladder
            d = sum(((p - c) / s) ** 2 for p, c, s in zip((a.x, a.y, a.z), centre, radii, strict=True))
            a.paint(d < 1.15, self.muscle)
            a.paint(d < 1, hu)
        super()._bones(a)


def wide_slice(seed: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray, float, tuple[float, float]]:
    """((side, side) float32 HU, (side, side) uint16 bits of NAMES, width / height, (row, column) mm of a pixel)."""
    r = np.random.default_rng([seed, 43])
    u = r.uniform
    anatomy = WideAnatomy(seed)
    z = float(u(-85, 130) if u() < 0.75 else u(*Z_RANGE)) * float(anatomy.scale[2])
    half_x, half_y = anatomy.body_half_widths()
    margin = 0.04 if u() < 0.6 else float(u(0, 0.14)) if u() < 0.85 else float(u(-0.18, 0.5))
    fine, side = side, round(side * DRAWN)
    edge = 2 * margin * max(half_x, half_y)
    reach = np.array([half_x + edge, half_y + edge])
    shift = r.normal(0, 0.02 + 0.3 * max(0.0, abs(margin) - 0.14), 2) * reach
    xs = np.linspace(reach[0], -reach[0], side, dtype=np.float32) + np.float32(shift[0])
    ys = np.linspace(reach[1], -reach[1], side, dtype=np.float32) + np.float32(shift[1])
    x, y = np.meshgrid(xs, ys)
    mm = (float(2 * reach[1] / side), float(2 * reach[0] / side))
    # Bodies are not superellipses: deform the outline and the inside.
    bent_x = x + np.float32(u(0, 5)) * smooth(r, 4, side) + np.float32(u(0, 2)) * smooth(r, 9, side)
    bent_y = y + np.float32(u(0, 5)) * smooth(r, 4, side) + np.float32(u(0, 2)) * smooth(r, 9, side)
    flat = float(u(0, 0.28))  # a back flattened by the table; a protruding or hollow belly
    back = bent_y * (1 + flat * np.abs(bent_y) / half_y * 0.5)
    belly = bent_y * (1 - u(-0.1, 0.12) * (1 - (bent_x / half_x) ** 2))
    bent_y = np.where(bent_y < 0, back, belly)
    tilt = r.normal(0, 0.06, 2)
    art = anatomy.paint(bent_x, bent_y.astype(np.float32), z + tilt[0] * x + tilt[1] * y)
    hu = _textured(art, anatomy, r)
    _nodules(hu, art, anatomy, r)
    bits = np.zeros(hu.shape, np.uint16)
    for n, name in enumerate(NAMES):
        bits |= art.masks[name].astype(np.uint16) << n
    body = ndimage.binary_fill_holes(art.hu > -999.5)
    near = ((np.arange(fine) + 0.5) * side / fine).astype(int)
    hu = np.asarray(Image.fromarray(hu.astype(np.float32)).resize((fine, fine), Image.Resampling.BICUBIC))
    bits, body = bits[np.ix_(near, near)], body[np.ix_(near, near)]
    mm = (mm[0] * side / fine, mm[1] * side / fine)
    return scanned(hu, body, mm, r), bits, float(reach[0] / reach[1]), mm


def _textured(art: Canvas, anatomy: Anatomy, r: np.random.Generator) -> np.ndarray:
    """(S, S) HU with texture: filtered noise at two scales, and strands and vessels in fat."""
    side = art.hu.shape[0]
    hu = art.hu.copy()
    fine, coarse = smooth(r, 48, side), smooth(r, 14, side)
    mixed = 0.7 * fine + 0.7 * coarse
    strength = np.full(hu.shape, 6.0, np.float32)
    strength[(hu < -60) & (hu > -200)] = float(r.uniform(5, 14))
    strength[hu < -300] = 0
    for name, amount in _TEXTURED.items():
        strength[art.masks[name]] = amount * r.uniform(0.3, 1.5)
    hu += mixed * strength
    # Strands and small vessels in visceral fat.
    inner = (anatomy.cavity < 0) & (hu < -50) & (hu > -250)
    strands = np.abs(smooth(r, 22, side)) < r.uniform(0.02, 0.12)
    hu[inner & strands] += float(r.uniform(15, 80))
    dots = smooth(r, 30, side) > r.uniform(1.6, 2.6)
    hu[inner & dots] = anatomy.density["vein"] * float(r.uniform(0.5, 1.0))
    return hu


def _nodules(hu: np.ndarray, art: Canvas, anatomy: WideAnatomy, r: np.random.Generator) -> None:
    if anatomy.nodular:
        liver = art.masks["liver"] & ~art.masks["lesion"]
        hu[liver] += (smooth(r, 20, hu.shape[0]) * 12)[liver]
