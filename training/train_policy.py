"""Train the demo policy on phantom slices, from nothing: picture and question in, thought and click out.

    python -m training.dataset --out build/phantoms
    python -m training.train_policy --data build/phantoms --out build/policy

A Qwen2.5-VL of about 2 M parameters learns by supervised fine-tuning on simulated turns: the first click, the
judgement of a mask painted over the picture (stop, add, take away), and the answer that a structure is not
there. Simplifications, and why:
- masks of later turns are made from the truth by training.mistakes: good, incomplete, spilled, or elsewhere;
- heads that name structures and click targets at every visual token exist in training only: without them
  a model of this size takes ten times longer to find out what the digits of a coordinate are about;
- one attention head is shown where to look: while a reply with a click is written, at the cell clicked on;
- coordinates have two decimals and their digits weigh more, the first one most;
- the questions of one picture share its tokens: one sequence, each question sees the picture and itself.
Resuming is exact: every step's random numbers depend on the seed and the step alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ibis_agent.actions import Click, format_click
from scipy import ndimage
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from training import questions as q
from training.common import Averaged, Curves, learning_rate, save_atomically
from training.dataset import NAMES, SIDE, Slices, load
from training.demo_policy import DEMO_CARD, PATCH, TOKENS, make_config, make_tokenizer, save_folder
from training.mistakes import BAD, GOOD, half_way_mask
from training.phantoms import STRUCTURES

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
CELL = 2 * PATCH
GREEN = np.array(DEMO_CARD["overlay_colour"], np.float32) / 255
ALPHA = float(DEMO_CARD["overlay_alpha"])
_POINT = re.compile(r"Point \(([\d.]+), ([\d.]+)\)")
SMALLEST = 40  # pixels on the SIDE grid: fewer is neither asked for nor called absent


@dataclass
class Asked:
    """One question about one picture: prompt and reply as token ids and loss weights, and where it clicks."""

    ids: list[int]
    weights: list[float]
    goal: tuple[float, float] | None = None


@dataclass
class Shown:
    """One picture as the policy sees it, (3, h, w) float 0–1, its questions, and what the extra heads learn."""

    picture: np.ndarray
    asked: list[Asked]
    cells: np.ndarray  # (rows * columns, 4 * names) share of each structure in each quarter of a cell
    targets: np.ndarray  # (structures, 3) cell of the deepest point or -1, and its offset in the cell
    covered: np.ndarray  # (rows * columns,) share of the painted mask


def deepest(region: np.ndarray, aspect: float) -> tuple[float, float]:
    """The point farthest from the region's edge, as normalised x, y; (SIDE, SIDE) bool stretched from `aspect`."""
    ys, xs = np.nonzero(region)
    y0, x0 = max(0, ys.min() - 1), max(0, xs.min() - 1)
    part = np.pad(region[y0 : ys.max() + 2, x0 : xs.max() + 2], 1)
    depth = ndimage.distance_transform_edt(part, sampling=(1.0, aspect))
    r, c = np.unravel_index(int(depth.argmax()), depth.shape)
    return (x0 + c - 1 + 0.5) / SIDE, (y0 + r - 1 + 0.5) / SIDE


def correction(mask: np.ndarray, truth: np.ndarray, aspect: float) -> Click:
    """The published click: the deepest point of what is missed or of what is wrong; ties go to the missed."""
    missed, wrong = truth & ~mask, mask & ~truth

    def depth(region: np.ndarray) -> float:
        return (
            float(ndimage.distance_transform_edt(np.pad(region, 1), sampling=(1.0, aspect)).max())
            if region.any()
            else 0.0
        )

    positive = depth(missed) >= depth(wrong)
    return Click(*deepest(missed if positive else wrong, aspect), positive)


class Writer:
    """Turns questions and replies into token ids with the weight of each in the loss."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.special = {
            t: tokenizer.token_to_id(t)
            for t in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
        }
        self.prefix = [
            self.special["<|im_start|>"],
            *self.text("system\n" + DEMO_CARD["prompts"]["system"]),
            self.special["<|im_end|>"],
            *self.text("\n"),
            self.special["<|im_start|>"],
            *self.text("user\n"),
            self.special["<|vision_start|>"],
        ]
        self.digits = {
            i for i in range(tokenizer.get_vocab_size()) if (tokenizer.id_to_token(i) or "").isdigit()
        }

    def text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def ask(self, prompt: str, reply: str, weight: float = 1.0) -> Asked:
        before = [
            self.special["<|vision_end|>"],
            *self.text(prompt),
            self.special["<|im_end|>"],
            *self.text("\n"),
            self.special["<|im_start|>"],
            *self.text("assistant\n"),
        ]
        said = [*self.text(reply), self.special["<|im_end|>"]]
        weights = [1.0] * len(said)
        run = 0
        for i, token in enumerate(said):
            run = run + 1 if token in self.digits else 0
            # "0.dd00": digits two and three of each number are the ones that point somewhere.
            if token in self.digits:
                dotted = i >= 1 and self.tokenizer.id_to_token(said[i - 1]) == "."
                weights[i] = 8.0 if dotted else 4.0 if run == 2 else 0.3
        found = _POINT.search(reply)
        goal = (float(found[1]), float(found[2])) if found else None
        return Asked(before + said, [0.0] * len(before) + [w * weight for w in weights], goal)


def grid_of(aspect: float, small: bool) -> tuple[int, int]:
    """Rows and columns of visual tokens for a picture of width / height `aspect`.

    The image processor's own rule (Qwen2-VL's smart resize): a picture that is too `small` is scaled up to at
    least TOKENS cells, a larger one down to at most as many.
    """
    whole = np.ceil if small else np.floor
    rows, columns = np.sqrt(TOKENS / aspect), np.sqrt(TOKENS * aspect)
    return int(whole(round(float(rows), 6))), int(whole(round(float(columns), 6)))


def augmented(
    data: Slices, n: int, rng: np.random.Generator, change: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Grey (SIDE, SIDE) 0–1 and bits (SIDE, SIDE) of slice n, moved, stretched, windowed and grained a little."""
    hu = np.asarray(data.hu[n], np.float32) + 1024
    bits = np.asarray(data.bits[n])
    if change:
        turn, zoom, stretch = rng.normal(0, 0.07), rng.uniform(0.86, 1.12), np.exp(rng.normal(0, 0.06))
        matrix = np.array(
            [
                [np.cos(turn) * zoom * stretch, -np.sin(turn) * zoom],
                [np.sin(turn) * zoom, np.cos(turn) * zoom / stretch],
            ],
            np.float32,
        )
        shift = rng.uniform(-0.07, 0.07, 2)
        theta = torch.from_numpy(np.concatenate([matrix, shift[:, None].astype(np.float32)], 1)[None])
        grid = F.affine_grid(theta, [1, 1, SIDE, SIDE], align_corners=False)
        hu = F.grid_sample(torch.from_numpy(hu)[None, None], grid, align_corners=False)[0, 0].numpy()
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
    lower, width = (rng.normal(-155, 18), np.exp(rng.normal(np.log(400), 0.13))) if change else (-160, 400)
    grey = np.clip((hu - 1024 - lower) / width, 0, 1)
    if change and rng.random() < 0.5:
        grey = np.clip(
            grey ** np.exp(rng.normal(0, 0.08))
            + rng.standard_normal(grey.shape, dtype=np.float32) * rng.uniform(0, 0.04),
            0,
            1,
        )
    return grey, bits


def another(region: np.ndarray, taken: Click, aspect: float) -> Click | None:
    """The deepest point of what is left of `region` away from `taken`; None where nothing is left."""
    y, x = np.ogrid[:SIDE, :SIDE]
    away = (((x + 0.5) / SIDE - taken.x) * aspect) ** 2 + ((y + 0.5) / SIDE - taken.y) ** 2
    left = region & (away > 0.16 * region.sum() / np.pi / SIDE**2 * aspect + 0.02**2)
    return Click(*deepest(left, aspect), taken.positive) if left.sum() >= 12 else None


def with_note(
    prompt: str,
    reply: str,
    name: str,
    region: np.ndarray | None,
    click: Click | None,
    aspect: float,
    rng: np.random.Generator,
) -> tuple[str, str]:
    """Now and then the prompt ends with a note: asked again, or the click was taken back and another is due."""
    prompts, chance = DEMO_CARD["prompts"], rng.random()
    if chance < 0.03:
        return f"{prompt}\n{prompts['retry']}", reply
    if chance < 0.09 and region is not None and click is not None:
        shaken = Click(
            *np.clip([click.x + rng.normal(0, 0.015), click.y + rng.normal(0, 0.015)], 0, 1), click.positive
        )
        other = another(region, shaken, aspect)
        if other is not None:
            note = prompts["reject"].format(action=format_click(shaken))
            write = q.first_reply if "mask" not in reply else q.correction_reply
            return f"{prompt}\n{note}", write(name, other)
    return prompt, reply


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
    """A picture with its questions: of the first turn, or of a later one with a mask painted over it."""
    masks = {n: (bits >> b & 1).astype(bool) for b, n in enumerate(NAMES)}
    area = {n: int(m.sum()) for n, m in masks.items()}
    present = [n for n in STRUCTURES if area[n] >= SMALLEST]
    absent = [n for n in STRUCTURES if area[n] == 0]
    points = {n: deepest(masks[n], aspect) for n in present}
    asked: list[Asked] = []
    mask = np.zeros((SIDE, SIDE), bool)
    first, refine = DEMO_CARD["prompts"]["first"], DEMO_CARD["prompts"]["refine"]
    if overlaid and present:
        weight = np.array([2.0 if n == "lesion" else 1.0 for n in present])
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
            click = correction(mask, truth, aspect) if iou < GOOD else None
            reply = q.correction_reply(asks, click) if click else q.done_reply(asks)
            region = None if click is None else truth & ~mask if click.positive else mask & ~truth
            asked.append(
                writer.ask(
                    *with_note(
                        refine.format(question=q.question(asks, rng)), reply, asks, region, click, aspect, rng
                    )
                )
            )
    else:
        order = [str(n) for n in rng.permutation(present)]
        if "lesion" in order:
            order.remove("lesion")
            order.insert(0, "lesion")  # the rarest is always asked for
        chosen = order[:questions]
        for name in chosen:
            click = Click(*points[name])
            prompt, reply = first.format(question=q.question(name, rng)), q.first_reply(name, click)
            asked.append(writer.ask(*with_note(prompt, reply, name, masks[name], click, aspect, rng)))
        wanted = [str(n) for n in rng.permutation(absent)][:2] if absent else []
        if rng.random() < 0.25:
            wanted.append(str(rng.choice(q.NEVER_PRESENT)))
        for name in wanted:
            asked.append(writer.ask(first.format(question=q.question(name, rng)), q.absent_reply(name)))
    rows, columns = grid
    size = (rows * CELL, columns * CELL)
    rgb = np.repeat(grey[None], 3, 0)
    rgb = np.where(mask[None], rgb * (1 - ALPHA) + GREEN[:, None, None] * ALPHA, rgb) if mask.any() else rgb
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


class ExtraHeads(nn.Module):
    """Training only: structures, click targets and the painted mask at every visual token; the aim in words."""

    def __init__(self, width: int):
        super().__init__()
        self.shares, self.mid_shares = nn.Linear(width, 4 * len(NAMES)), nn.Linear(width, len(NAMES))
        self.targets, self.offsets = nn.Linear(width, len(STRUCTURES)), nn.Linear(width, 2 * len(STRUCTURES))
        self.mid_targets, self.place, self.covered = (
            nn.Linear(width, len(STRUCTURES)),
            nn.Linear(width, 2),
            nn.Linear(width, 1),
        )
        self.aim = nn.Linear(width, 2)
        self.seen_place, self.mid_offsets = nn.Linear(width, 2), nn.Linear(width, 2 * len(STRUCTURES))

    def aim_loss(self, late: Tensor, goals: Tensor) -> Tensor:
        """`late` (B, L, width): while a reply with a click is written, it is known where the click will be."""
        known = ~goals[..., 0].isnan()
        return F.l1_loss(self.aim(late[known]), goals[known]) if known.any() else torch.zeros(())

    def loss(
        self,
        seen: Tensor,
        mid: Tensor | None,
        cells: Tensor,
        targets: Tensor,
        covered: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """`seen`, `mid` (B, T, width): the vision tower's output and a middle layer of the language model."""
        rows, columns = grid
        bce = F.binary_cross_entropy_with_logits
        total = 4 * bce(self.shares(seen), cells) + bce(self.covered(seen)[..., 0], covered)
        known = targets[..., 0] >= 0
        cell = targets[..., 0].clamp_min(0).long()
        total = total + 0.5 * F.cross_entropy(self.targets(seen).transpose(1, 2)[known], cell[known])
        b, s = torch.nonzero(known, as_tuple=True)
        offset = self.offsets(seen).view(*seen.shape[:2], len(STRUCTURES), 2)[b, cell[b, s], s]
        total = total + F.l1_loss(offset, targets[b, s, 1:])
        number = torch.arange(rows * columns)
        place = torch.stack([number % columns / columns, number // columns / rows], -1)
        place = place.float().expand(len(seen), -1, -1)
        total = total + 2 * F.l1_loss(self.seen_place(seen), place)
        if mid is not None:
            coarse = cells.view(*cells.shape[:2], len(NAMES), 4).mean(-1)
            total = total + 2 * bce(self.mid_shares(mid), coarse)
            total = total + 0.5 * F.cross_entropy(self.mid_targets(mid).transpose(1, 2)[known], cell[known])
            total = total + 2 * F.l1_loss(self.place(mid), place)
            offset = self.mid_offsets(mid).view(*mid.shape[:2], len(STRUCTURES), 2)[b, cell[b, s], s]
            total = total + F.l1_loss(offset, targets[b, s, 1:])
        return total


def gaze_loss(attention: Tensor, goals: Tensor, first: int, grid: tuple[int, int]) -> Tensor:
    """How little one attention head looks at the cell that will be clicked on while the reply is written.

    `attention` (B, L, L) of that head, `goals` (B, L, 2) x, y or NaN, `first` the first visual token's place.
    """
    rows, columns = grid
    b, at = torch.nonzero(~goals[..., 0].isnan(), as_tuple=True)
    if not len(b):
        return torch.zeros(())
    x, y = goals[b, at].unbind(-1)
    column, row = (x * columns).long().clamp(max=columns - 1), (y * rows).long().clamp(max=rows - 1)
    return -attention[b, at, first + row * columns + column].clamp_min(1e-6).log().mean()


def patches_of(pictures: Tensor) -> Tensor:
    """(B, 3, h, w) normalised → the processor's rows of patches, (B * patches, 3 * 2 * PATCH²)."""
    b, c, h, w = pictures.shape
    x = pictures.view(b, c, h // CELL, 2, PATCH, w // CELL, 2, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.reshape(b, -1, c, 1, PATCH, PATCH).expand(-1, -1, -1, 2, -1, -1)
    return x.reshape(-1, c * 2 * PATCH * PATCH)


def collate(writer: Writer, shown: list[Shown], grid: tuple[int, int]) -> dict[str, Tensor]:
    """One padded sequence a picture: prefix, visual tokens, then its questions side by side."""
    rows, columns = grid
    visual = rows * columns
    start = len(writer.prefix)
    base = start + visual
    length = max(base + sum(len(a.ids) for a in s.asked) for s in shown)
    ids = torch.zeros(len(shown), length, dtype=torch.long)
    weights = torch.zeros(len(shown), length)
    goals = torch.full((len(shown), length, 2), torch.nan)
    positions = torch.zeros(3, len(shown), length, dtype=torch.long)
    allowed = torch.zeros(len(shown), length, length, dtype=torch.bool)
    triangle = torch.ones(length, length, dtype=torch.bool).tril()
    allowed[:, :, 0] = True  # padding looks at something
    for b, s in enumerate(shown):
        ids[b, :base] = torch.tensor(writer.prefix + [writer.special["<|image_pad|>"]] * visual)
        positions[:, b, :start] = torch.arange(start)
        positions[0, b, start:base] = start
        positions[1, b, start:base] = start + torch.arange(visual) // columns
        positions[2, b, start:base] = start + torch.arange(visual) % columns
        allowed[b, :base, :base] = triangle[:base, :base]
        at, after = base, start + max(rows, columns)
        for a in s.asked:
            end = at + len(a.ids)
            ids[b, at:end] = torch.tensor(a.ids)
            weights[b, at:end] = torch.tensor(a.weights)
            if a.goal is not None:
                goals[b, end - sum(w > 0 for w in a.weights) - 1 : end] = torch.tensor(a.goal)
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
        "cells": torch.from_numpy(np.stack([s.cells for s in shown])),
        "targets": torch.from_numpy(np.stack([s.targets for s in shown])),
        "covered": torch.from_numpy(np.stack([s.covered for s in shown])),
    }


def train_step(
    model, heads: ExtraHeads, writer: Writer, batch: dict[str, Tensor], grid: tuple[int, int], extra: float
) -> tuple[Tensor, dict[str, float]]:
    rows, columns = grid
    count = len(batch["pictures"])
    thw = torch.tensor([[1, rows * 2, columns * 2]] * count)
    seen = model.model.visual(patches_of(batch["pictures"]), grid_thw=thw).pooler_output.view(
        count, rows * columns, -1
    )
    if extra and not batch.get("language", True):
        loss = heads.loss(seen, None, batch["cells"], batch["targets"], batch["covered"], grid)
        return loss, {"extra": float(loss.detach())}
    language = model.model.language_model
    start = len(writer.prefix)
    embedded = language.embed_tokens(batch["ids"])
    embedded = torch.cat([embedded[:, :start], seen, embedded[:, start + rows * columns :]], 1)
    heard: list[Tensor] = []
    half = len(language.layers) // 2
    looked: list[Tensor] = []
    hooks = [
        language.layers[n].register_forward_hook(
            lambda m, i, o: heard.append(o[0] if isinstance(o, tuple) else o)
        )
        for n in (half - 1, half)
    ]
    hooks.append(language.layers[half].self_attn.register_forward_hook(lambda m, i, o: looked.append(o[1])))
    mask = torch.zeros(batch["allowed"].shape).masked_fill(~batch["allowed"], torch.finfo(torch.float32).min)[
        :, None
    ]
    hidden = language(
        inputs_embeds=embedded, attention_mask=mask, position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    for hook in hooks:
        hook.remove()
    weights = batch["weights"][:, 1:]
    chosen = weights > 0
    logits = model.lm_head(hidden[:, :-1][chosen])
    labels, weights = batch["ids"][:, 1:][chosen], weights[chosen]
    each = F.cross_entropy(logits, labels, reduction="none")
    said = (each * weights).sum() / weights.sum()
    loss = said
    digits = weights >= 8
    figures = {
        "said": float(said.detach()),
        "first_digit": float((logits.argmax(-1) == labels)[digits].float().mean()) if digits.any() else 0.0,
    }
    if extra:
        more = heads.loss(
            seen,
            heard[0][:, start : start + rows * columns],
            batch["cells"],
            batch["targets"],
            batch["covered"],
            grid,
        )
        aim = heads.aim_loss(heard[1], batch["goals"])
        gaze = gaze_loss(looked[0][:, 0], batch["goals"], start, grid)
        loss = loss + extra * more + 4 * aim + 0.3 * gaze
        figures |= {k: float(v.detach()) for k, v in (("extra", more), ("aim", aim), ("gaze", gaze))}
    return loss, figures


def show_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Let the language model's middle layer hand out its attention weights, for `gaze_loss`."""
    layers = model.model.language_model.layers
    attention = layers[len(layers) // 2].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation = "eager"


class Buckets:
    """Slices by the grid that their shape gets, so that a batch has one grid."""

    def __init__(self, aspect: np.ndarray):
        both = [np.array([grid_of(float(a), small) for a in aspect]) for small in (True, False)]
        grids = np.concatenate(both)
        owner = np.tile(np.arange(len(aspect)), 2)
        self.names = sorted({(int(r), int(c)) for r, c in grids})
        self.slices = [owner[(grids == g).all(1)] for g in self.names]
        sizes = np.array([len(s) for s in self.slices], float)
        self.odds = sizes / sizes.sum()

    def draw(self, size: int, rng: np.random.Generator) -> tuple[tuple[int, int], np.ndarray]:
        """A grid, and the numbers of `size` slices that get it."""
        n = int(rng.choice(len(self.names), p=self.odds))
        return self.names[n], rng.choice(self.slices[n], size)


@torch.inference_mode()
def measure(model, writer: Writer, data: Slices, numbers: np.ndarray) -> dict[str, float]:
    """First clicks by greedy decoding on unchanged slices: hit rate, absent recall, false absences, format."""
    from ibis_agent.actions import Terminate, parse_reply
    from ibis_agent.errors import ReplyError

    model.eval()
    hits: dict[str, list[bool]] = {n: [] for n in STRUCTURES}
    missing, false, bad = [], [], 0
    for n in numbers:
        rng = np.random.default_rng(int(n))
        grey, bits = augmented(data, int(n), rng, change=False)
        grid = grid_of(float(data.aspect[n]), small=True)
        shown = show(writer, grey, bits, float(data.aspect[n]), grid, False, rng, 1)
        rows, columns = grid
        pixels = (torch.from_numpy(shown.picture) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
            :, None, None
        ]
        seen = model.model.visual(
            patches_of(pixels[None]), grid_thw=torch.tensor([[1, rows * 2, columns * 2]])
        ).pooler_output
        for name in STRUCTURES:
            truth = (bits >> NAMES.index(name) & 1).astype(bool)
            if 0 < truth.sum() < SMALLEST:
                continue
            a = writer.ask(DEMO_CARD["prompts"]["first"].format(question=f"Segment the {name}"), "")
            text = greedy(model, writer, seen, grid, a.ids[:-1])
            try:
                action = parse_reply(text).action
            except ReplyError:
                bad += 1
                continue
            if truth.any():
                false.append(isinstance(action, Terminate))
                hit = (
                    isinstance(action, Click)
                    and action.positive
                    and truth[min(SIDE - 1, int(action.y * SIDE)), min(SIDE - 1, int(action.x * SIDE))]
                )
                hits[name].append(bool(hit))
            else:
                missing.append(isinstance(action, Terminate))
    model.train()
    print("   hits:", {k: round(float(np.mean(v)), 3) for k, v in hits.items() if v}, flush=True)
    return {
        "hit": float(np.mean([h for v in hits.values() for h in v])),
        "absent_recall": float(np.mean(missing)),
        "false_absence": float(np.mean(false)),
        "unreadable": float(bad),
    }


@torch.inference_mode()
def greedy(
    model, writer: Writer, seen: Tensor, grid: tuple[int, int], suffix: list[int], limit: int = 80
) -> str:
    """The reply to one question about one picture whose visual tokens are `seen`; batch of one."""
    rows, columns = grid
    start, visual = len(writer.prefix), rows * columns
    language = model.model.language_model
    ids = torch.tensor([writer.prefix + [0] * visual + suffix])
    embedded = language.embed_tokens(ids)
    embedded[:, start : start + visual] = seen
    positions = torch.zeros(3, 1, ids.shape[1], dtype=torch.long)
    positions[:, 0, :start] = torch.arange(start)
    positions[0, 0, start : start + visual] = start
    positions[1, 0, start : start + visual] = start + torch.arange(visual) // columns
    positions[2, 0, start : start + visual] = start + torch.arange(visual) % columns
    after = start + max(rows, columns)
    positions[:, 0, start + visual :] = after + torch.arange(len(suffix))
    out = language(inputs_embeds=embedded, position_ids=positions, use_cache=True)
    said: list[int] = []
    for i in range(limit):
        token = int(model.lm_head(out.last_hidden_state[:, -1]).argmax())
        if token == writer.special["<|im_end|>"]:
            break
        said.append(token)
        position = torch.full((3, 1, 1), after + len(suffix) + i)
        out = language(
            inputs_embeds=language.embed_tokens(torch.tensor([[token]])),
            position_ids=position,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    return writer.tokenizer.decode(said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("build/phantoms"))
    parser.add_argument("--out", type=Path, default=Path("build/policy"))
    parser.add_argument(
        "--start", type=Path, help="a folder made by this command to go on from, not from nothing"
    )
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument(
        "--vision-steps", type=int, default=1200, help="first steps that train the vision tower alone"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1.0e-3)
    parser.add_argument(
        "--later-turns", type=float, default=0.35, help="share of batches with a painted mask"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--checkpoint-every", type=int, default=250, help="steps; a killed run goes on from there"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    tokenizer_file = args.out / "tokenizer.json"
    if args.start and not tokenizer_file.exists():
        tokenizer_file.write_bytes((args.start / "tokenizer.json").read_bytes())
    if not tokenizer_file.exists():
        make_tokenizer(q.corpus(np.random.default_rng(args.seed))).save(str(tokenizer_file))
    writer = Writer(Tokenizer.from_file(str(tokenizer_file)))
    config: Qwen2_5_VLConfig = make_config(writer.tokenizer)
    model = Qwen2_5_VLForConditionalGeneration(config)
    if args.start:
        model.load_state_dict(
            Qwen2_5_VLForConditionalGeneration.from_pretrained(args.start).float().state_dict()
        )
    model.train()
    show_attention(model)
    heads = ExtraHeads(config.text_config.hidden_size)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=0.05, betas=(0.9, 0.98))
    averaged = Averaged(model)
    checkpoint, step = args.out / "resume.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        averaged.state, step = state["averaged"], state["step"]
        print(f"resumed at step {step}", flush=True)
    curves = Curves(args.out, step)
    started, since, sums = time.time(), 0, {}
    while step < args.steps:
        data = load(args.data)
        count = len(data) - args.held
        buckets = Buckets(np.asarray(data.aspect[:count]))
        for _ in range(args.checkpoint_every):
            if step >= args.steps:
                break
            rng = np.random.default_rng([args.seed, step])
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.rate)
            grid, numbers = buckets.draw(args.batch, rng)
            seeing = step < args.vision_steps
            later = rng.random() < args.later_turns
            shown = []
            for n in numbers:
                grey, bits = augmented(data, int(n), rng)
                shown.append(show(writer, grey, bits, float(data.aspect[n]), grid, later, rng))
            batch = collate(writer, shown, grid)
            batch["language"] = not seeing  # type: ignore[assignment]
            extra = 1.0 if seeing else 0.5
            loss, figures = train_step(model, heads, writer, batch, grid, extra)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            since += 1
            averaged.update(model, step)
            for k, v in figures.items():
                key = f"{k}_later" if later and k == "first_digit" else k
                total, times = sums.get(key, (0.0, 0))
                sums[key] = (total + v, times + 1)
            if step % 50 == 0:
                curves.add(
                    step=step,
                    seconds=(time.time() - started) / since,
                    **{k: v / times for k, (v, times) in sums.items()},
                )
                sums, since, started = {}, 0, time.time()
            if step % args.checkpoint_every == 0 or step == args.steps:
                save_atomically(
                    {
                        "model": model.state_dict(),
                        "heads": heads.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "averaged": averaged.state,
                        "step": step,
                    },
                    checkpoint,
                )
            if (step % 1000 == 0 and not seeing) or step == args.steps:
                probe = Qwen2_5_VLForConditionalGeneration(config)
                probe.load_state_dict(averaged.state)
                curves.add(step=step, **measure(probe, writer, data, np.arange(count, count + args.held)))
                curves.plot(args.out / "curves.png", "demo policy")
                started, since = time.time(), 0
    final = Qwen2_5_VLForConditionalGeneration(config)
    final.load_state_dict(averaged.state)
    save_folder(final, writer.tokenizer, args.out / "model")
    (args.out / "made.json").write_text(json.dumps({k: str(v) for k, v in vars(args).items()}, indent=1))


if __name__ == "__main__":
    main()
