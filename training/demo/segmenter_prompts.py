"""Training samples of the demo segmenter: augmented phantom slices, structures and prompts.

Clicks are computed at half resolution. The training is in train_segmenter.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from training.demo.dataset import HARD, NAMES, SIDE, Slices

PIXEL_MEAN = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
PIXEL_STD = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
LEARNED = len(NAMES)
# Structures below this share of the picture are not targets; training.evaluate asks from 1.1e-3 on.
SLIVER = 7e-4


def batch_of(
    data: Slices,
    numbers: np.ndarray,
    rng: np.random.Generator,
    side: int,
    augment: float = 1.0,
    masses: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(B, 3, side, side) normalised pictures and (B, side, side) int64 structure bits of the slices `numbers`.

    augment: strength of random transforms, windows and noise, 0 for none; masses: share of the pictures that get one
    more lesion.
    """
    hu = torch.from_numpy(np.asarray(data.hu[numbers], np.float32))[:, None]
    bits = torch.from_numpy(data.bits[numbers].astype(np.float32))[:, None]
    count = len(numbers)
    for n in range(count):
        if rng.random() < masses:
            _grow_mass(hu[n, 0].numpy(), bits[n, 0].numpy(), rng)
    if augment:
        zoom = np.where(
            rng.random(count) < 0.12 * augment,
            rng.uniform(0.4, 0.9, count),
            1 + augment * rng.uniform(-0.1, 0.12, count),
        )
        turn = rng.normal(0, 0.12 * augment, count)
        stretch = np.exp(rng.normal(0, 0.08 * augment, count))
        shift = rng.uniform(-1, 1, (count, 2)) * np.maximum(0.04 * augment, 0.8 * (1 - zoom))[:, None]
        flip_x = np.where(rng.random(count) < 0.25 * augment, -1, 1)
        flip_y = np.where(rng.random(count) < 0.03 * augment, -1, 1)
        theta = np.zeros((count, 2, 3), np.float32)
        theta[:, 0, 0], theta[:, 0, 1] = np.cos(turn) * zoom * stretch * flip_x, -np.sin(turn) * zoom
        theta[:, 1, 0], theta[:, 1, 1] = np.sin(turn) * zoom, np.cos(turn) * zoom / stretch * flip_y
        theta[:, :, 2] = shift
        grid = F.affine_grid(torch.from_numpy(theta), [count, 1, side, side], align_corners=False)
        hu = F.grid_sample(hu + 1024, grid, mode="bilinear", align_corners=False) - 1024
        bits = F.grid_sample(bits, grid, mode="nearest", align_corners=False)
    elif side != hu.shape[-1]:
        hu = F.interpolate(hu, size=(side, side), mode="bilinear")
        bits = F.interpolate(bits, size=(side, side), mode="nearest-exact")
    lower = torch.from_numpy(rng.normal(-150, 30 * augment, count).astype(np.float32))[:, None, None, None]
    width = torch.from_numpy(np.exp(rng.normal(np.log(400), 0.22 * augment, count)).astype(np.float32))[
        :, None, None, None
    ]
    for n in map(int, np.flatnonzero(rng.random(count) < 0.25 * min(1.0, 2 * augment))):
        # wide windows, or the picture's own range
        if rng.random() < 0.6:
            lower[n] = float(rng.uniform(-1000, -120))
            width[n] = float(rng.uniform(150, 900)) - lower[n]
        else:
            low, high = np.percentile(hu[n, 0, ::4, ::4].numpy(), (rng.uniform(0, 3), rng.uniform(97, 99.8)))
            lower[n], width[n] = float(low), float(max(high - low, 100))
    grey = ((hu - lower) / width).clamp(0, 1)
    if augment:
        if rng.random() < 0.3 * augment:  # low resolution
            coarse = int(rng.integers(90, 160))
            grey = F.interpolate(
                F.interpolate(grey, size=(coarse, coarse), mode="area"), size=(side, side), mode="bicubic"
            ).clamp(0, 1)
        noise = torch.from_numpy(rng.standard_normal(grey.shape, dtype=np.float32))
        strength = torch.from_numpy(
            np.where(rng.random(count) < 0.5 * augment, rng.uniform(0, 0.05, count), 0.0).astype(np.float32)
        )
        gamma = torch.from_numpy(np.exp(rng.normal(0, 0.12 * augment, count)).astype(np.float32))[
            :, None, None, None
        ]
        grey = (grey.clamp_min(1e-4) ** gamma + noise * strength[:, None, None, None]).clamp(0, 1)
    return (grey.repeat(1, 3, 1, 1) - PIXEL_MEAN) / PIXEL_STD, bits[:, 0].round().long()


def _grow_mass(hu: np.ndarray, bits: np.ndarray, rng: np.random.Generator) -> None:
    """Add a lesion of random shape and density somewhere in the body, as the phantoms' own are few and similar.

    Changes `hu` and `bits` (S, S). As for other lesions, the organ loses what the lesion covers.
    """
    rows, columns = np.nonzero((hu > -140) & (hu < 250))
    if not len(rows):
        return
    at = int(rng.integers(len(rows)))
    y, x = np.ogrid[: hu.shape[0], : hu.shape[1]]
    y, x = (y - rows[at]) * SIDE / hu.shape[0], (x - columns[at]) * SIDE / hu.shape[1]
    angle, reach = np.arctan2(y, x) + rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(3), np.log(14)))
    outline = 1 + sum(rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (1, 2, 3, 4))
    # The edge is one pixel wide.
    inside = 1 / (1 + np.exp((np.hypot(y, x) - reach * np.maximum(outline, 0.3)) * 2))
    around = hu[rows[at], columns[at]]
    # Darker would be invisible in fat.
    way = 1 if around < -20 else -1 if around > 150 else rng.choice([-1, 1])
    hu += (inside * way * rng.uniform(30, 120)).astype(hu.dtype)
    covered = inside > 0.5
    bits[covered] = 1 << NAMES.index("lesion")


def choose_objects(bits: Tensor, each: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`each` random structures per picture of (B, S, S) bits: hard and small ones more often, extra ones less often.

    Slivers are left out. Returns (N, S, S) masks, (N,) index of the picture, (N,) index into NAMES.
    """
    masks, owner, names = [], [], []
    for b in range(len(bits)):
        shares = np.array([float((bits[b] >> n & 1).float().mean()) for n in range(LEARNED)])
        weight = np.where(shares >= SLIVER, 1.0, 0.0)
        weight[len(NAMES) - 7 :] *= 0.2
        for name in HARD:
            weight[NAMES.index(name)] *= 2
        weight *= np.where(shares < 10 * SLIVER, 1.6, 1.0)
        if weight.sum() == 0:
            continue
        for n in rng.choice(LEARNED, each, p=weight / weight.sum()):
            masks.append((bits[b] >> int(n) & 1).float())
            owner.append(b)
            names.append(int(n))
    return torch.stack(masks), torch.tensor(owner), torch.tensor(names)


def first_clicks(masks: Tensor, rng: np.random.Generator) -> Tensor:
    """(N, 2) x, y in pixels for (N, S, S) masks: half at the deepest point, half anywhere inside."""
    points = []
    deep = deepest(masks)
    for n, m in enumerate(masks):
        if rng.random() < 0.5:
            points.append(deep[n])
        else:
            inside = torch.nonzero(m > 0.5)
            points.append(inside[int(rng.integers(len(inside)))].flip(0).float())
    return torch.stack(points)


def corners(masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A slightly imprecise box around each of (N, S, S) masks, as SAM2's two corner points.

    Returns (N, 2, 2) points x, y in pixels, and their (N, 2) labels: 2 for the first corner, 3 for the last.
    """
    boxes = []
    for m in masks:
        y, x = torch.nonzero(m > 0.5, as_tuple=True)
        boxes.append([[int(x.min()), int(y.min())], [int(x.max()) + 1, int(y.max()) + 1]])
    box = torch.tensor(boxes, dtype=torch.float32)
    size = (box[:, 1] - box[:, 0])[:, None]
    shake = torch.from_numpy(rng.normal(0, 0.04, box.shape).astype(np.float32))
    labels = torch.tensor([2, 3], dtype=torch.int).expand(len(masks), 2)
    return (box + shake * size).clamp(0, masks.shape[-1]), labels


def corrective_clicks(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Clicks at the deepest error of (N, 1, s, s) logits: (N, 2) points in pixels, (N,) labels 1 or 0."""
    predicted = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear")[:, 0] > 0
    truth = masks > 0.5
    points = deepest((predicted ^ truth).float())
    x, y = points.long().T
    return points, truth[torch.arange(len(masks)), y, x].int()


def deepest(regions: Tensor) -> Tensor:
    """(N, 2) x, y in pixels: the deepest point of each of (N, S, S) regions of 0 and 1, at half resolution."""
    half = F.avg_pool2d(regions[:, None], 2)[:, 0].numpy()
    points = []
    for covered, region in zip(half, regions, strict=True):
        inside = covered >= min(0.5, covered.max())
        ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        y0, x0 = ys[0], xs[0]
        part = np.pad(inside[y0 : ys[-1] + 1, x0 : xs[-1] + 1], 1)
        r, c = np.unravel_index(ndimage.distance_transform_edt(part).argmax(), part.shape)
        y, x = 2 * int(y0 + r - 1), 2 * int(x0 + c - 1)
        # The half-size cell may be covered only partly: take a pixel that is inside.
        dy, dx = divmod(int(region[y : y + 2, x : x + 2].argmax()), 2)
        points.append([x + dx, y + dy])
    return torch.tensor(points, dtype=torch.float32)


def nearness(points: Tensor, side: int, reach: float = 14.0) -> Tensor:
    """(N, 1, side / 2, side / 2) weights: 7 at each of (N, 2) clicks x, y in pixels, 1 far from it.

    Without them the few pixels that correct a large structure would hardly matter.
    """
    at = torch.arange(side // 2) * 2.0 + 1
    x, y = ((at - points[:, :1]) / reach) ** 2, ((at - points[:, 1:]) / reach) ** 2
    return 1 + 6 * torch.exp(-0.5 * (y[:, None, :, None] + x[:, None, None, :]))
