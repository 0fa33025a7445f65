"""One simulated patient: the position and contents of every organ, and the acquisition by a scanner.

In millimetres (x to the patient's right, y anterior, z superior; z = 0 at the kidneys). Proportions and grey values
are typical ones; they do not follow the distribution of a population.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from training.phantoms.shapes import (
    Array,
    Canvas,
    PhantomSlice,
    capsule,
    ellipse,
    field_of,
    rotation,
    segment2d,
    smooth_min,
    superellipse,
)
from training.phantoms.tissues import EXTRAS, PHASE_ODDS, PHASES, STRUCTURES


class Anatomy:
    """One simulated patient, drawn from `seed`; `slice_at(z)` gives an axial slice."""

    def __init__(self, seed: int):
        self.seed = seed
        r = self.rng = np.random.default_rng([seed, 20261])
        u = r.uniform
        self.phase = str(r.choice(list(PHASE_ODDS), p=list(PHASE_ODDS.values())))
        self.density = {k: r.normal(m, s) for k, (m, s) in PHASES[self.phase].items()}
        shift = r.normal(0, 8)  # a common shift of all organs, larger than their individual ones
        self.density = {k: v + shift for k, v in self.density.items()}
        self.muscle = u(42, 65) + shift / 2
        self.fat = u(-118, -88)
        self.scale = np.array([u(0.84, 1.16), u(0.82, 1.18), u(0.88, 1.14)])
        self.fat_thickness = u(4, 34)
        self.wall = u(6, 14)
        self.roll = np.deg2rad(r.normal(0, 4))
        self._warp = [
            (u(-1, 1, 3) * 2 * np.pi / u(110, 260), u(0, 6.3, 3), r.normal(0, 2.6, 3)) for _ in range(6)
        ]
        self._warp += [
            (r.normal(0, 1, 3) * 2 * np.pi / u(50, 90), u(0, 6.3, 3), r.normal(0, 0.55, 3)) for _ in range(5)
        ]
        self.missing = {n for n in ("spleen", "left kidney", "right kidney", "stomach") if u() < 0.06}
        self._place(r)

    def _place(self, r: np.random.Generator) -> None:
        """Draw the pose of every organ once, so that all slices of a patient agree."""
        lean = r.uniform(0.98, 1.16)  # above 1: less fat between the organs

        def ellipsoid(centre, radii, jitter=8.0, spread=0.13, tilt=0.25):
            c = np.array(centre, float) + r.normal(0, jitter, 3)
            s = (
                np.array(radii, float)
                * lean
                * np.exp(r.normal(0, spread, 3))
                * np.exp(r.normal(0, spread / 2))
            )
            return c, s, rotation(r.normal(0, tilt, 3))

        u = r.uniform
        self.liver_right = ellipsoid((80, 2, 30), (68, 86, 94), 6, 0.1, 0.12)
        self.liver_left = ellipsoid((4, 42, 58), (80, 42, 52), 8, 0.14, 0.15)
        self.spleen = ellipsoid((-104, -36, 38), (32, 50, 56), 7, 0.14, 0.3)
        self.spleen_hollow = ellipsoid((-72, -14, 34), (32, 40, 56), 6, 0.1, 0.2)
        self.kidneys = {
            side: ellipsoid((sign * 67, -37, z0), (27, 25, 54), 6, 0.11, 0.12)
            for side, sign, z0 in (("right kidney", 1, -6), ("left kidney", -1, 4))
        }
        self.sinus = {side: (u(0.25, 0.5), u(0.3, 0.6), u()) for side in self.kidneys}
        self.stomach = ellipsoid((-52, 36, 42), (42, 36, 56), 9, 0.16, 0.4)
        self.stomach_kind = str(
            r.choice(["fluid", "food", "contrast", "gas", "empty"], p=[0.3, 0.3, 0.12, 0.18, 0.1])
        )
        self.stomach_hu = {
            "fluid": u(0, 35),
            "food": u(20, 60),
            "contrast": u(120, 320),
            "gas": u(10, 40),
            "empty": u(40, 70),
        }[self.stomach_kind]
        self.stomach_level = u(0.1, 0.9) if self.stomach_kind != "gas" else u(-0.6, 0.3)
        self.gallbladder = ellipsoid((62, 46, -2), (15, 19, 27), 7, 0.2, 0.4)
        self.has_gallbladder = u() < 0.8
        self.pancreas = np.array([(28, 16, -4), (2, 24, 10), (-34, 14, 20), (-72, -4, 28)], float) + r.normal(
            0, 6, (4, 3)
        )
        self.aorta = (u(-16, -4), u(-14, -2), u(8.5, 13.5), u(0, 6.3), r.normal(0, 4))
        self.calcified = u() < 0.3
        self.cava = (u(14, 24), u(-8, 8), u(8, 13), u(0.55, 1.0))
        self.spine = (r.normal(0, 3), u(-46, -38), u(20, 25), u(14, 18), u(26, 34), u(0, 34))
        self.bone = (u(110, 230), u(260, 520))
        self.loops = [
            (
                np.array([u(-75, 75), u(5, 82), u(-110, 25)]),
                np.array([u(10, 24), u(9, 18), u(14, 40)]),
                rotation(r.normal(0, 0.8, 3)),
                str(r.choice(["gas", "fluid", "feces", "contrast", "wall"], p=[0.22, 0.26, 0.2, 0.1, 0.22])),
                u(0, 1, 4),
            )
            for _ in range(r.integers(10, 26))
        ]
        for centre in (
            (96, 22, -48),
            (-100, -2, -30),
            (-82, 48, 12),
            (-20, 80, -20),
            (40, 80, -28),
            (-88, 30, 40),
        ):
            if u() < 0.75:
                self.loops.append(
                    (
                        np.array(centre) + r.normal(0, 9, 3),
                        np.array([u(16, 30), u(16, 26), u(24, 55)]),
                        rotation(r.normal(0, 0.3, 3)),
                        str(r.choice(["gas", "feces", "contrast"], p=[0.5, 0.42, 0.08])),
                        u(0, 1, 4),
                    )
                )
        self.dome = (u(118, 150), u(58, 88), u(0.2, 0.45))
        self.ribs = [
            (s * a, u(8, 16), s * u(0.1, 0.5)) for s in (1, -1) for a in np.cumsum(u(0.3, 0.6, 6)) + 0.1
        ]
        self.vessels = [
            (
                np.array([u(30, 60), u(-15, 20), u(0, 60)]),
                np.array([u(30, 130), u(-60, 60), u(0, 95)]),
                u(2.5, 5.5),
            )
            for _ in range(r.integers(4, 10))
        ]
        self.mesenteric = [
            (u(-35, 35), u(10, 55), u(2.5, 6.5), u(-0.3, 0.3, 2)) for _ in range(r.integers(3, 11))
        ]
        self.lesions = []
        if u() < 0.62:
            for _ in range(1 if u() < 0.8 else 2):
                host = str(
                    r.choice(["liver", "left kidney", "right kidney", "spleen"], p=[0.7, 0.1, 0.1, 0.1])
                )
                contrast = u(28, 70) * (-1 if u() < 0.8 else 1)
                self.lesions.append(
                    (
                        host,
                        u(0, 1, 3),
                        u(10, 26),
                        np.exp(r.normal(0, 0.12, 3)),
                        contrast,
                        u(0, 6.3, 4),
                        u() < 0.15,
                    )
                )

    def canonical(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Patient mm → mm of the canonical body: roll, scale and a smooth warp, the same for every slice."""
        c, s = np.cos(self.roll), np.sin(self.roll)
        p = [(c * x - s * y) / self.scale[0], (s * x + c * y) / self.scale[1], z / self.scale[2]]
        q = [a.astype(np.float32) for a in p]
        for k, phase, amplitude in self._warp:
            arg = k[0] * p[0] + k[1] * p[1] + k[2] * p[2]
            for axis in range(3):
                q[axis] = q[axis] + np.float32(amplitude[axis]) * np.sin(arg + phase[axis])
        return q[0], q[1], q[2]

    def body_half_widths(self) -> tuple[float, float]:
        """Half the width and half the depth of the body in mm, without the warp."""
        return ((140 + self.fat_thickness) * self.scale[0], (104 + self.fat_thickness) * self.scale[1])

    def paint(self, x: Array, y: Array, z: float | Array) -> Canvas:
        """HU (before blur and noise) and masks at the points (x, y, z) mm, each an (H, W) grid; z may be a number."""
        cx, cy, cz = self.canonical(x, y, np.full_like(x, z))
        art = Canvas(cx, cy, cz, np.full(x.shape, -1000.0, np.float32))
        for name in (*STRUCTURES[:-1], *EXTRAS):
            art.masks[name] = np.zeros(x.shape, bool)
        self._wall(art)
        self._soft_organs(art)
        self._retroperitoneum(art)
        self._lungs(art)
        self._bones(art)
        self._lesions(art)
        return art

    def _wall(self, a: Canvas) -> None:
        t = self.fat_thickness
        a.paint(superellipse(a.x, a.y, 140 + t, 104 + t, 2.4) < 0, 20.0)  # skin
        a.paint(superellipse(a.x, a.y, 138.5 + t, 102.5 + t, 2.4) < 0, self.fat)
        a.paint(superellipse(a.x, a.y, 138, 102, 2.5) < 0, self.muscle)
        self.cavity = superellipse(a.x, a.y + 2, 138 - self.wall, 101 - self.wall, 2.5)
        cavity = self.cavity < 0
        a.paint(cavity, self.fat + 4)
        for s in (1, -1):
            back = ellipse(a.x - s * 32, a.y + 86, 31, 23) < 0
            a.paint(back, self.muscle - 6, "back muscle")
            lower = np.clip((20 - a.z) / 90, 0, 1)
            a.paint(
                (ellipse(a.x - s * (34 + 10 * lower), a.y + 50, 4 + 15 * lower, 6 + 15 * lower) < 0)
                & (a.z < 15),
                self.muscle,
                "psoas",
            )

    def _soft_organs(self, a: Canvas) -> None:
        inside = self.cavity < -0.02
        for centre, radii, turn, kind, k in self.loops:
            if np.abs(a.z - centre[2]).min() > radii.max():
                continue
            f = field_of(a, centre, radii, turn)
            loop = (f < 0) & inside
            if not loop.any():
                continue
            a.paint(loop, self.muscle - 8 + 20 * k[0], "bowel")
            a.paint((f < -0.32) & inside, self._content(a, kind, centre[1], radii[1], k), None)
            a.masks["bowel"] |= loop
        for i in range(3):
            f = capsule(a, self.pancreas[i], self.pancreas[i + 1], 11.0 - 1.5 * i)
            a.paint((f < 0) & inside, self.density["liver"] * 0.8 + 4, "pancreas")
        if "stomach" not in self.missing:
            shrink = 0.35 if self.stomach_kind == "empty" else 0.0
            f = field_of(a, *self.stomach) + shrink
            stomach = (f < 0) & inside
            a.paint(stomach, self.muscle + 12, "stomach")
            content = self._content(a, self.stomach_kind, self.stomach[0][1], self.stomach[1][1], None)
            a.paint((f < -0.2) & inside, content)
            a.masks["stomach"] |= stomach
        if "spleen" not in self.missing:
            f = np.maximum(field_of(a, *self.spleen), -0.8 * field_of(a, *self.spleen_hollow))
            a.paint((f < 0) & inside, self.density["spleen"], "spleen")
        f = smooth_min(field_of(a, *self.liver_right), field_of(a, *self.liver_left), 0.25)
        fissure = ellipse(a.x - 28, a.y - 62, 4, 26) < 0
        liver = (f < 0) & inside & ~(fissure & (a.z < 40))
        a.paint(liver, self.density["liver"], "liver")
        for p, q, radius in self.vessels:
            a.hu = np.where((capsule(a, p, q, radius) < 0) & a.masks["liver"], self.density["vein"], a.hu)
        if self.has_gallbladder:
            a.paint((field_of(a, *self.gallbladder) < 0) & inside, 8.0, "gallbladder")

    def _content(self, a: Canvas, kind: str, y0: float, depth: float, k: Array | None) -> Array:
        """(H, W) HU of the contents of a hollow organ; gas is anterior, as the patient lies supine."""
        level = self.stomach_level if k is None else k[1] * 1.6 - 0.8
        gas = a.y > y0 + level * depth
        if kind == "gas":
            rest = self.stomach_hu if k is None else 20.0
            return np.where(gas | (k is not None and k[2] < 0.6), -960.0, rest)
        if kind in ("feces", "food"):
            lumps = np.sin(a.x / 3.1 + 2 * np.sin(a.y / 4.3)) * np.sin(a.y / 2.7 + a.z / 5)
            base = self.stomach_hu if k is None else -40 + 80 * k[3]
            return base + (25 if k is None else 90) * lumps - (900 * (gas if k is None else lumps > 0.75))
        if kind == "contrast":
            return np.where(gas & (k is None), -960.0, self.stomach_hu if k is None else 120 + 200 * k[3])
        if kind == "fluid":
            return np.where(gas & (k is None), -960.0, self.stomach_hu if k is None else 30 * k[3])
        return np.full(a.x.shape, self.muscle + 5, np.float32)

    def _retroperitoneum(self, a: Canvas) -> None:
        for side, (centre, radii, turn) in self.kidneys.items():
            if side in self.missing:
                continue
            f = field_of(a, centre, radii, turn)
            rim = field_of(a, centre, radii * 1.22, turn) < 0
            a.paint(rim & (self.cavity < 0.04), self.fat)
            depth, fill, urine = self.sinus[side]
            medial = np.array([-np.sign(centre[0]) * radii[0] * 0.75, radii[1] * 0.2, 0])
            sinus = field_of(a, centre + medial, radii * np.array([0.62, 0.42, 0.5]) * (0.6 + depth), turn)
            kidney = (f < 0) & ~(sinus < 0)
            medulla = (f < -0.42) * (-30.0 if self.phase == "arterial" else -6.0)
            a.paint(kidney, self.density["kidney"] + medulla, side)
            if fill > 0.45:
                wet = (sinus < -0.55) & (f < 0.1)
                a.paint(wet, 300.0 if self.phase == "delayed" and urine > 0.4 else 10.0)
        for x0, y0, radius, slope in self.mesenteric:
            f = ellipse(a.x - x0 - slope[0] * a.z, a.y - y0 - slope[1] * a.z, radius, radius)
            a.hu = np.where((f < 0) & (a.hu < -40) & (self.cavity < 0), self.density["vein"], a.hu)
        x0, y0, radius, flat = self.cava
        a.paint(
            ellipse(a.x - x0 - 0.06 * a.z, a.y - y0 - 0.05 * a.z, radius, radius * flat) < 0,
            self.density["vein"],
            "inferior vena cava",
        )
        x0, y0, radius, phase, sway = self.aorta
        f = ellipse(a.x - x0 - sway * np.sin(a.z / 60 + phase), a.y - y0 + 0.1 * a.z, radius, radius)
        a.paint(f < 0.25, self.fat + 20)
        a.paint(f < 0, self.density["aorta"], "aorta")
        if self.calcified:
            spots = (f < 0) & (f > -0.3) & (np.sin(3 * np.arctan2(a.y - y0, a.x - x0) + a.z / 9) > 0.93)
            a.hu = np.where(spots, 420.0, a.hu)

    def _lungs(self, a: Canvas) -> None:
        top, drop, tilt = self.dome
        rho = np.clip(self.cavity + 1, 0, 1.6)
        above = a.z > top - drop * rho + tilt * a.y
        crus = (np.abs(a.x) < 26) & (a.y < 12)
        lung = above & (self.cavity < -0.02) & ~crus
        a.paint(lung, -840 + 20 * np.sin(a.x / 6) * np.sin(a.y / 5), "lung")

    def _bones(self, a: Canvas) -> None:
        x0, y0, rx, ry, period, phase = self.spine
        marrow, cortex = self.bone
        level = np.cos(2 * np.pi * (a.z + phase) / period)
        disc = level > 0.8
        x, y = a.x - x0, a.y
        body = superellipse(x, y - y0, rx * (1 + 0.05 * level), ry, 2.3)
        canal = ellipse(x, y - (y0 - ry - 9), 10, 8.5)
        arch = (ellipse(x, y - (y0 - ry - 10), 19, 16) < 0) & (level < 0.6)
        spinous = (segment2d(x, y, (0, y0 - ry - 22), (0, y0 - ry - 44)) < 4.5) & (level < 0.35)
        transverse = np.zeros(x.shape, bool)
        for s in (1, -1):
            transverse |= (segment2d(x, y, (s * 14, y0 - ry - 8), (s * 38, y0 - ry - 16)) < 4.5) & (
                level < 0.0
            )
        bone = ((body < 0) | arch | spinous | transverse) & ~(canal < 0)
        shell = bone & ~((body < -0.22) & ~arch)
        a.paint(canal < 0, 25.0)
        a.paint(bone, np.where(disc & (body < 0), 85.0, np.where(shell, cortex, marrow)), "spine")
        for angle, flat, slope in self.ribs:
            phi = angle + slope * a.z / 120
            cx, cy = -136 * np.sin(phi), -100 * np.cos(phi)
            along = (a.x - cx) * np.cos(phi) - (a.y - cy) * np.sin(phi)
            across = (a.x - cx) * np.sin(phi) + (a.y - cy) * np.cos(phi)
            f = (along / flat) ** 2 + (across / 5) ** 2 - 1
            a.paint((f < 0) & (a.z > -60), np.where(f > -0.5, cortex, marrow))

    def _lesions(self, a: Canvas) -> None:
        lesion = np.zeros(a.x.shape, bool)
        for host, where, radius, stretch, contrast, k, cyst in self.lesions:
            centre, radii, turn = (
                self.liver_right
                if host == "liver"
                else self.spleen
                if host == "spleen"
                else self.kidneys[host]
            )
            if host in self.missing:
                continue
            reach = 0.72 if host == "liver" else 0.5
            offset = (np.array([where[0] - 0.5, where[1] - 0.5, where[2] - 0.5]) * 2 * reach) * radii * 0.8
            size = radius if host == "liver" else min(radius, 0.6 * float(radii.min()))
            p = np.stack([a.x, a.y, a.z]) - (centre + turn @ offset)[:, None, None]
            d = np.sqrt(sum((p[i] / stretch[i]) ** 2 for i in range(3)))
            wobble = 1 + 0.09 * np.sin(3 * np.arctan2(p[1], p[0]) + k[0]) + 0.06 * np.sin(p[2] / 6 + k[1])
            spot = (d < size * wobble) & (a.masks[host] | (a.masks["liver"] & (host == "liver")))
            lesion |= spot
            inner = self.density["liver" if host == "liver" else host.split()[-1]] + contrast
            a.hu = np.where(spot, 5.0 if cyst and contrast < 0 else inner + 6 * np.sin(d / 2.5 + k[2]), a.hu)
        # The organ's mask includes its lesions, as in clinical practice.
        a.masks["lesion"] = lesion

    def slice_at(
        self,
        z: float,
        spacing: float = 2.0,
        margin: tuple[float, float, float, float] = (12, 12, 12, 12),
        mirrored: bool = False,
        noise: bool = True,
    ) -> PhantomSlice:
        """An axial slice at `z` mm. margin: (left, right, top, bottom) mm around the body, may be negative."""
        half_x, half_y = self.body_half_widths()
        xs = np.arange(half_x + margin[0], -half_x - margin[1], -spacing, dtype=np.float32)
        ys = np.arange(half_y + margin[2], -half_y - margin[3], -spacing, dtype=np.float32)
        x, y = np.meshgrid(xs, ys)
        rng = np.random.default_rng([self.seed, round(z * 10) + 100000])
        art = self.paint(x, y, z)
        hu, masks = self._acquire(art, spacing, rng) if noise else art.hu, art.masks
        if mirrored:
            hu, masks = hu[:, ::-1].copy(), {k: m[:, ::-1].copy() for k, m in masks.items()}
        return PhantomSlice(hu, masks, (spacing, spacing), z, mirrored)

    def _acquire(self, art: Canvas, spacing: float, rng: np.random.Generator) -> Array:
        """Add the effects of a scanner: texture, partial volume, correlated noise, sometimes a table and streaks."""
        r = np.random.default_rng([self.seed, 77])
        blur, level, grain, texture = (
            r.uniform(0.5, 1.7),
            r.choice([r.uniform(3, 12), r.uniform(10, 24)]),
            r.uniform(0.4, 1.3),
            r.uniform(0, 6),
        )
        table, streaky = r.uniform() < 0.4, r.uniform() < 0.08
        hu = art.hu
        if table:
            hu = np.where(
                (np.abs(art.y + 108 + self.fat_thickness + 8 - (art.x / 130) ** 2 * 34) < 2.0) & (hu < -900),
                -350.0,
                hu,
            )
        soft = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), 9 / spacing)
        hu = hu + soft / max(float(soft.std()), 1e-6) * texture * (hu > -300)
        hu = ndimage.gaussian_filter(hu, blur / spacing)
        grainy = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), grain)
        hu = hu + grainy / max(float(grainy.std()), 1e-6) * level
        if streaky:
            hu = hu + 18 * np.sin(art.y / 2.3 + 0.4 * np.sin(art.x / 40)) * np.exp(
                -(((art.x - 30) / 90) ** 2)
            )
        return np.clip(hu, -1024, 3000).astype(np.float32)
