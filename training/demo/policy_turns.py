"""Simulated turns of the demo policy: augmented pictures with masks, questions and replies.

A picture with its questions becomes token ids (policy_writer), visual patches and targets of the extra heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from ibis_agent.actions import Click, format_click
from ibis_agent.policy.prompts import rejection_note, retry_note
from torch import Tensor

from training.common import questions as q
from training.demo.dataset import ALIKE, HARD, NAMES, SIDE, Slices
from training.demo.empty_policy import PATCH, TOKENS
from training.demo.policy_clicks import another, correction, deepest, depth_of, good_click
from training.demo.policy_writer import CARD, Asked, Writer
from training.phantoms.phantom import STRUCTURES
from training.trajectories.mistakes import BAD, GOOD, half_way_mask

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
CELL = 2 * PATCH
GREEN = np.array(CARD.overlay_colour, np.float32) / 255
# Some slices show these, so they are not asked for as absent.
ON_TRUNKS = ("urinary bladder", "prostate", "uterus", "ovary", "heart", "femur", "trachea")
SMALLEST = 40  # pixels on the SIDE grid; smaller structures are neither asked for nor absent


@dataclass
class Shown:
    """One picture as the policy sees it, (3, h, w) float 0–1, its questions, and the targets of the extra heads."""

    picture: np.ndarray
    asked: list[Asked]
    cells: np.ndarray  # (rows * columns, 4 * names) share of each structure in each patch of a cell
    targets: np.ndarray  # (structures, 3) cell of the deepest point or -1, and its offset in the cell
    covered: np.ndarray  # (rows * columns,) share covered by the mask


def grid_of(aspect: float, small: bool) -> tuple[int, int]:
    """(rows, columns) of visual tokens for a picture of width / height `aspect`.

    By the image processor's rule (smart resize of Qwen2-VL): a `small` picture is enlarged to at least TOKENS cells,
    a larger one reduced to at most TOKENS.
    """
    whole = np.ceil if small else np.floor
    rows, columns = np.sqrt(TOKENS / aspect), np.sqrt(TOKENS * aspect)
    return int(whole(round(float(rows), 6))), int(whole(round(float(columns), 6)))


def augmented(
    data: Slices, n: int, rng: np.random.Generator, change: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """((S, S) grey 0–1, (SIDE, SIDE) bits) of slice n with random transforms, window, contrast and noise.

    S is the side of stored slices: like in the policy's own processor, the picture is scaled only once.
    """
    hu = np.asarray(data.hu[n], np.float32) + 1024
    bits = np.asarray(data.bits[n])
    side = hu.shape[0]
    if change:
        turn, zoom, stretch = rng.normal(0, 0.06), rng.uniform(0.9, 1.1), np.exp(rng.normal(0, 0.06))
        matrix = np.array(
            [
                [np.cos(turn) * zoom * stretch, -np.sin(turn) * zoom],
                [np.sin(turn) * zoom, np.cos(turn) * zoom / stretch],
            ],
            np.float32,
        )
        shift = rng.uniform(-0.06, 0.06, 2)
        theta = torch.from_numpy(np.concatenate([matrix, shift[:, None].astype(np.float32)], 1)[None])
        grid = F.affine_grid(theta, [1, 1, side, side], align_corners=False)
        hu = F.grid_sample(torch.from_numpy(hu)[None, None], grid, align_corners=False)[0, 0].numpy()
        grid = F.affine_grid(theta, [1, 1, SIDE, SIDE], align_corners=False)
        bits = (
            F.grid_sample(
                torch.from_numpy(bits.astype(np.float32))[None, None],
                grid,
                mode="nearest",
                align_corners=False,
            )[0, 0]
            .numpy()
            .astype(np.uint16)
        )
    elif side != SIDE:
        rows = (np.arange(SIDE) + 0.5) * side / SIDE
        bits = bits[np.ix_(rows.astype(int), rows.astype(int))]
    lower, width = some_window(hu - 1024, rng) if change else (-160.0, 400.0)
    grey = np.clip((hu - 1024 - lower) / width, 0, 1)
    if change and rng.random() < 0.06:  # pale: fat nearly as bright as organs, air still black
        grey = np.where(grey > 0.02, 0.6 + rng.uniform(0.25, 0.8) * (grey - 0.6), grey)
    if change and rng.random() < 0.5:
        grey = np.clip(
            grey ** np.exp(rng.normal(0, 0.08))
            + rng.standard_normal(grey.shape, dtype=np.float32) * rng.uniform(0, 0.04),
            0,
            1,
        )
    return grey, bits


def some_window(hu: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """(lower limit, width): mostly soft tissue, sometimes narrow, wide, or the picture's own range."""
    chance = rng.random()
    if chance < 0.72:
        return rng.normal(-155, 22), float(np.exp(rng.normal(np.log(400), 0.16)))
    if chance < 0.9:
        lower = rng.uniform(-1000, -120)
        return lower, rng.uniform(150, 900) - lower
    lower, upper = np.percentile(hu[::4, ::4], (rng.uniform(0, 3), rng.uniform(97, 99.8)))
    return float(lower), float(max(upper - lower, 100))


def with_note(
    reply: str,
    name: str,
    region: np.ndarray | None,
    click: Click | None,
    value: np.ndarray | None,
    aspect: float,
    rng: np.random.Generator,
) -> tuple[str, str, np.ndarray | None]:
    """(note, reply, worth of the reply's click). The note is mostly empty.

    Sometimes it asks for the reply again, or says that a person took back the click and wants another one.
    """
    chance = rng.random()
    if chance < 0.03:
        return retry_note(CARD.prompts, ""), reply, value
    if chance < 0.09 and region is not None and click is not None:
        x, y = np.clip([click.x + rng.normal(0, 0.015), click.y + rng.normal(0, 0.015)], 0, 1)
        shaken = Click(float(x), float(y), click.positive)
        left = another(region, shaken, aspect)
        if left is not None:
            other, value = good_click(depth_of(left, aspect), click.positive, rng)
            write = q.first_reply if "mask" not in reply else q.correction_reply
            return rejection_note(CARD.prompts, format_click(shaken)), write(name, other), value
    return "", reply, value


def show(
    writer: Writer,
    grey: np.ndarray,
    bits: np.ndarray,
    aspect: float,
    grid: tuple[int, int],
    overlaid: bool,
    rng: np.random.Generator,
    questions: int = 4,
) -> Shown:
    """A picture with its questions: for the first turn, or with a mask for a later one (`overlaid`)."""
    masks = {n: (bits >> b & 1).astype(bool) for b, n in enumerate(NAMES)}
    area = {n: int(m.sum()) for n, m in masks.items()}
    present = [n for n in STRUCTURES if area[n] >= SMALLEST]
    absent = [n for n in STRUCTURES if area[n] == 0]
    depths = {n: depth_of(masks[n], aspect) for n in present}
    points = {n: deepest(depths[n]) for n in present}
    asked: list[Asked] = []
    mask = np.zeros((SIDE, SIDE), bool)
    if overlaid and present:
        weight = np.array([2.0 if n in HARD else 1.0 for n in present])
        name = str(rng.choice(present, p=weight / weight.sum()))
        others = [masks[n] for n in NAMES if n != name and area[n] >= SMALLEST]
        for _ in range(6):
            mask = half_way_mask(masks[name], others, rng)
            union = (mask | masks[name]).sum()
            overlap = (mask & masks[name]).sum() / union if union else 1.0
            if overlap >= GOOD or (overlap < BAD and (mask ^ masks[name]).sum() >= SMALLEST):
                break
        else:
            mask, overlap = masks[name].copy(), 1.0
        for asks in [name, *rng.choice([n for n in present if n != name], 1)] if len(present) > 1 else [name]:
            truth = masks[asks]
            iou = (mask & truth).sum() / max(1, (mask | truth).sum())
            if GOOD > iou >= BAD:
                continue
            click, region, value = None, None, None
            if iou < GOOD:
                positive, region = correction(mask, truth, aspect)
                click, value = good_click(depth_of(region, aspect), positive, rng)
            reply = q.correction_reply(asks, click) if click else q.done_reply(asks)
            question = q.question(asks, rng)
            note, reply, value = with_note(reply, asks, region, click, value, aspect, rng)
            asked.append(writer.ask(question, reply, value, masked=True, note=note))
    else:
        # Mostly ask first for rare or hard structures, then for thin ones.
        first_asked = [n for n in HARD if n in present and rng.random() < 0.8]
        thickness = {n: float(depths[n].max()) * rng.lognormal(0, 0.5) for n in present}
        rest = sorted((n for n in present if n not in first_asked), key=thickness.__getitem__)
        chosen = (first_asked + rest)[:questions]
        for name in chosen:
            click, value = good_click(depths[name], True, rng)
            question, reply = q.question(name, rng), q.first_reply(name, click)
            note, reply, value = with_note(reply, name, masks[name], click, value, aspect, rng)
            asked.append(writer.ask(question, reply, value, note=note))
        # Often ask for absent structures that are easily confused with a neighbour.
        confused = [n for n in ALIKE if n in absent and rng.random() < 0.35]
        wanted = (confused + [str(n) for n in rng.permutation(absent) if n not in confused])[:1]
        if rng.random() < 0.15:
            wanted.append(str(rng.choice([n for n in q.NEVER_PRESENT if n not in ON_TRUNKS])))
        for name in wanted:
            asked.append(writer.ask(q.question(name, rng), q.absent_reply(name)))
    rows, columns = grid
    size = (rows * CELL, columns * CELL)
    rgb = np.repeat(grey[None], 3, 0)
    if mask.any():
        near = (np.arange(grey.shape[0]) + 0.5) * SIDE / grey.shape[0]
        shown = mask[np.ix_(near.astype(int), near.astype(int))]
        rgb = np.where(
            shown[None], rgb * (1 - CARD.overlay_alpha) + GREEN[:, None, None] * CARD.overlay_alpha, rgb
        )
    picture = (
        F.interpolate(
            torch.from_numpy(rgb.astype(np.float32))[None], size=size, mode="bicubic", antialias=True
        )[0]
        .clamp(0, 1)
        .numpy()
    )
    planes = torch.from_numpy(np.stack([masks[n] for n in NAMES] + [mask]).astype(np.float32))
    shares = F.adaptive_avg_pool2d(planes[None], (rows * 2, columns * 2))[0]
    cells = (
        shares[:-1]
        .reshape(len(NAMES), rows, 2, columns, 2)
        .permute(1, 3, 0, 2, 4)
        .reshape(rows * columns, -1)
        .numpy()
    )
    covered = F.avg_pool2d(shares[-1:][None], 2)[0, 0].reshape(-1).numpy()
    targets = np.full((len(STRUCTURES), 3), -1.0, np.float32)
    for s, name in enumerate(STRUCTURES):
        if name in points:
            x, y = points[name][0] * columns, points[name][1] * rows
            targets[s] = (int(y) * columns + int(x), x - int(x), y - int(y))
    return Shown(picture, asked, cells, targets, covered)


def patches_of(pictures: Tensor) -> Tensor:
    """(B * patches, 3 * 2 * PATCH²): the image processor's patches of (B, 3, h, w) normalised pictures."""
    b, c, h, w = pictures.shape
    x = pictures.view(b, c, h // CELL, 2, PATCH, w // CELL, 2, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.reshape(b, -1, c, 1, PATCH, PATCH).expand(-1, -1, -1, 2, -1, -1)
    return x.reshape(-1, c * 2 * PATCH * PATCH)


def collate(writer: Writer, shown: list[Shown], grid: tuple[int, int]) -> dict[str, Tensor]:
    """One padded sequence per picture: prefix, visual tokens, then its questions, which do not see each other."""
    opening, places = writer.start(grid)
    base, after = len(opening), int(places.max()) + 1
    length = max(base + sum(len(a.ids) for a in s.asked) for s in shown)
    ids = torch.zeros(len(shown), length, dtype=torch.long)
    weights = torch.zeros(len(shown), length)
    goals = torch.full((len(shown), length, 2), torch.nan)
    worth = torch.zeros(len(shown), length, 10)
    positions = torch.zeros(3, len(shown), length, dtype=torch.long)
    allowed = torch.zeros(len(shown), length, length, dtype=torch.bool)
    triangle = torch.ones(length, length, dtype=torch.bool).tril()
    allowed[:, :, 0] = True  # padding must attend to something
    for b, s in enumerate(shown):
        ids[b, :base] = torch.tensor(opening)
        positions[:, b, :base] = torch.from_numpy(places)
        allowed[b, :base, :base] = triangle[:base, :base]
        at = base
        for a in s.asked:
            end = at + len(a.ids)
            ids[b, at:end] = torch.tensor(a.ids)
            weights[b, at:end] = torch.tensor(a.weights)
            if a.goal is not None:
                goals[b, end - sum(w > 0 for w in a.weights) - 1 : end] = torch.tensor(a.goal)
            for place, digits in a.worth:
                worth[b, at + place] = torch.from_numpy(digits)
            positions[:, b, at:end] = after + torch.arange(len(a.ids))
            allowed[b, at:end, :base] = True
            allowed[b, at:end, at:end] = triangle[: end - at, : end - at]
            at = end
    pictures = (np.stack([s.picture for s in shown]) - MEAN[:, None, None]) / STD[:, None, None]
    return {
        "pictures": torch.from_numpy(pictures.astype(np.float32)),
        "ids": ids,
        "weights": weights,
        "positions": positions,
        "allowed": allowed,
        "goals": goals,
        "worth": worth,
        "cells": torch.from_numpy(np.stack([s.cells for s in shown])),
        "targets": torch.from_numpy(np.stack([s.targets for s in shown])),
        "covered": torch.from_numpy(np.stack([s.covered for s in shown])),
    }


class Buckets:
    """Slices grouped by their token grid, so that a batch has one grid. weight: (N,) sampling weights."""

    def __init__(self, aspect: np.ndarray, weight: np.ndarray | None = None):
        weight = np.ones(len(aspect)) if weight is None else weight
        both = [np.array([grid_of(float(a), small) for a in aspect]) for small in (True, False)]
        grids = np.concatenate(both)
        owner = np.tile(np.arange(len(aspect)), 2)
        self.names = sorted({(int(r), int(c)) for r, c in grids})
        self.slices = [owner[(grids == g).all(1)] for g in self.names]
        sizes = np.array([weight[s].sum() for s in self.slices])
        self.odds = sizes / sizes.sum()
        self.each = [weight[s] / weight[s].sum() for s in self.slices]

    def draw(self, size: int, rng: np.random.Generator) -> tuple[tuple[int, int], np.ndarray]:
        """(grid, numbers of `size` random slices with that grid)."""
        n = int(rng.choice(len(self.names), p=self.odds))
        return self.names[n], rng.choice(self.slices[n], size, p=self.each[n])
