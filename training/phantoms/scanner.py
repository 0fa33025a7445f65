"""The effects of a scanner and of later storage on a slice: arms, table, blur, noise, streaks, quantisation, JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def scanned(hu: np.ndarray, body: np.ndarray, mm: tuple[float, float], r: np.random.Generator) -> np.ndarray:
    """(H, W) float32 HU as acquired. body: (H, W) bool; mm: size of a pixel (row, column)."""
    u = r.uniform
    hu = hu.astype(np.float32)
    if u() < 0.55:
        _lay_on_table(hu, body, mm, r)
    blur = float(u(0.35, 1.3))
    hu = ndimage.gaussian_filter(hu, (blur / mm[0], blur / mm[1]))
    level = float(u(2, 12)) if u() < 0.6 else float(u(10, 28))
    hu += level * grain(hu.shape, mm, r)
    if u() < 0.1:
        hu += _streaks(hu.shape, r) * float(u(5, 25))
    if u() < 0.12:  # a bias field, as from beam hardening or in other modalities
        y, x = np.mgrid[-1 : 1 : hu.shape[0] * 1j, -1 : 1 : hu.shape[1] * 1j].astype(np.float32)
        hu += float(r.normal(0, 10)) * x + float(r.normal(0, 10)) * y
    if u() < 0.3:  # as if stored with 8 bits
        step = float(u(2, 12))
        hu = np.round(hu / step) * step
    if u() < 0.08:
        hu = _as_jpeg(hu, r)
    return np.clip(hu, -1024, 3000)


def grain(shape: tuple[int, int], mm: tuple[float, float], r: np.random.Generator) -> np.ndarray:
    """(H, W) float32 noise with unit standard deviation and the spectrum of CT, which has a peak."""
    fy = np.fft.fftfreq(shape[0], mm[0])[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(shape[1], mm[1])[None].astype(np.float32)
    f = np.hypot(fy, fx)
    peak = float(r.uniform(0.12, 0.4))  # cycles per mm
    power = (f / peak + 0.15) * np.exp(-((f / peak) ** 2))
    made = np.fft.irfft2(np.fft.rfft2(r.standard_normal(shape, dtype=np.float32)) * power, s=shape)
    return (made / (made.std() + 1e-6)).astype(np.float32)


def _as_jpeg(hu: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """(H, W) float32 after storage as a windowed JPEG."""
    lower, upper = (-1000.0, float(r.uniform(250, 1000))) if r.uniform() < 0.5 else (-200.0, 300.0)
    grey = np.clip((hu - lower) / (upper - lower) * 255, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=int(r.integers(45, 96)))
    return np.asarray(Image.open(stream), np.float32) / 255 * (upper - lower) + lower


def _streaks(shape: tuple[int, int], r: np.random.Generator) -> np.ndarray:
    """(H, W) streaks between two dense objects, as from arms next to the body or metal."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j].astype(np.float32)
    angle = r.normal(0, 0.3) if r.uniform() < 0.7 else r.uniform(0, np.pi)
    across = -np.sin(angle) * x + np.cos(angle) * y
    lines = np.zeros(shape, np.float32)
    for _ in range(4):
        lines += np.sin(across * r.uniform(20, 90) + r.uniform(0, 6.3)) * r.uniform(0.2, 1)
    return lines * np.exp(-(((across - r.uniform(-0.4, 0.4)) / r.uniform(0.2, 0.6)) ** 2))


def _lay_on_table(hu: np.ndarray, body: np.ndarray, mm: tuple[float, float], r: np.random.Generator) -> None:
    """Add a table below the body (rarely above it), and sometimes arms and clothes, outside the body only."""
    height, width = hu.shape
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    if not len(rows):
        return
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    middle = (columns[0] + columns[-1]) / 2 + r.normal(0, 8)
    free = ~body
    prone = r.uniform() < 0.08
    edge = rows[0] - r.uniform(0, 4) / mm[0] if prone else rows[-1] + r.uniform(0, 6) / mm[0]
    bend = r.uniform(0, 0.35) * (1 if prone else -1)
    line = edge + bend * ((x - middle) / (width / 2)) ** 2 * height * 0.4
    away = (y - line) * mm[0] * (-1 if prone else 1)
    thick, shell = r.uniform(8, 50), r.uniform(1, 3.5)
    inside = free & (away > 0) & (away < thick)
    hu[inside] = r.uniform(-990, -820)
    hu[inside & ((away < shell) | (away > thick - shell))] = r.uniform(-500, 100)
    if r.uniform() < 0.35:  # a mattress or clothes
        soft = free & (np.abs(away + r.uniform(0, 12)) < r.uniform(1, 7))
        hu[soft] = r.uniform(-900, -200)
    if r.uniform() < 0.35:
        for side in (-1, 1):
            if r.uniform() < 0.2:
                continue
            cx = (columns[0] if side < 0 else columns[-1]) + side * r.uniform(10, 60) / mm[1]
            cy = r.uniform(rows[0] + 0.3 * len(rows), rows[-1])
            rx, ry = r.uniform(22, 50) / mm[1], r.uniform(22, 50) / mm[0]
            d = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
            hu[free & (d < 1)] = r.uniform(-110, -60)
            hu[free & (d < 0.8)] = r.uniform(40, 65)
            hu[free & (d < 0.3)] = r.uniform(300, 900)
    if r.uniform() < 0.15:  # tubes, wires, a blanket
        for _ in range(int(r.integers(1, 5))):
            cx, cy = r.uniform(0, width), r.uniform(0, height)
            hu[free & (np.hypot((x - cx) * mm[1], (y - cy) * mm[0]) < r.uniform(1.5, 6))] = r.uniform(
                -600, 2000
            )
