"""A step of the demo segmenter's training: prompts in a row on some structures of a batch, and what they cost."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from training.demo.dataset import FRAMES, Slices
from training.demo.segmenter_prompts import (
    LEARNED,
    batch_of,
    choose_objects,
    corners,
    corrective_clicks,
    deepest,
    first_clicks,
    nearness,
)

HOLE = 2.7  # the cost of losing a structure that goes on, where it costs 1 to go on with one that has ended


class DenseHead(nn.Module):
    """Training only: which structures lie at each point of the finest and the coarsest feature map."""

    def __init__(self, width: int):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(width, LEARNED, 1), nn.Conv2d(width, LEARNED, 1)

    def loss(self, features: list[Tensor], bits: Tensor) -> Tensor:
        """`features` are the three FPN levels, `bits` (B, side, side) int."""
        planes = torch.stack([(bits >> b & 1) for b in range(LEARNED)], 1).float()
        total = torch.zeros(())
        for head, f in ((self.fine, features[0]), (self.coarse, features[2])):
            target = F.adaptive_avg_pool2d(planes, (f.shape[-2], f.shape[-1]))
            logits = head(f)
            total = (
                total
                + F.binary_cross_entropy_with_logits(logits, target) * 3
                + dice_loss(logits, target).mean()
            )
        return total


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(…, H, W) logits against soft masks → (…) soft Dice loss; empty targets count as background."""
    p = logits.sigmoid()
    inter = (p * target).sum((-2, -1))
    return 1 - (2 * inter + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def decode(
    model: SAM2Base,
    features: list[Tensor],
    owner: Tensor,
    points: Tensor,
    labels: Tensor,
    prior: Tensor | None,
    several: bool = True,
):
    """One prompt turn on N objects → three low-resolution logits (N, 3, S/4, S/4), their scores (N, 3), and the
    logit of the object's presence (N,).

    `points` (N, P, 2) are pixels at the model's input size, `labels` (N, P) 1 or 0, or 2 and 3 for the corners of
    a box. Not `several`: SAM's other head, which draws one mask of a prompt that leaves little in doubt.
    """
    sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=prior)
    out = model.sam_mask_decoder(
        image_embeddings=features[2][owner],
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=several,
        repeat_image=False,
        high_res_features=[features[0][owner], features[1][owner]],
    )
    return out[0], out[1], out[3][:, 0]


def encode(model: SAM2Base, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Feature maps for the mask decoder, and the neck's own (for the dense head)."""
    out = model.image_encoder(pictures)
    raw = out["backbone_fpn"]
    decoder = model.sam_mask_decoder
    top = raw[2] + model.no_mem_embed.permute(1, 2, 0)[..., None]
    return [decoder.conv_s0(raw[0]), decoder.conv_s1(raw[1]), top], raw


def mask_loss(
    logits: Tensor, scores: Tensor, masks: Tensor, near: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best of three masks carries the loss (the others a little); scores learn the true IoU.

    `near` (N, 1, S/2, S/2) weighs pixels: what a corrective click is about.
    """
    half, quarter = F.avg_pool2d(masks[:, None], 2), F.avg_pool2d(masks[:, None], 4)
    each = _mask_loss(logits, quarter.expand_as(logits))
    with torch.no_grad():
        p, t = F.interpolate(logits, scale_factor=2, mode="bilinear") > 0, half > 0.5
        iou = (p & t).sum((-2, -1)) / (p | t).sum((-2, -1)).clamp_min(1)
    best = logits[torch.arange(len(logits)), each.argmin(1)][:, None]
    fine = _mask_loss(F.interpolate(best, scale_factor=2, mode="bilinear"), half, near)
    return fine.mean() + 0.2 * each.mean() + 4 * F.mse_loss(scores, iou), iou


def _mask_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N, M, s, s) against soft masks → (N, M) cross entropy and Dice.

    Cross entropy counts within the structure's neighbourhood scale, so that small ones are not drowned.
    """
    bce = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").mean((-2, -1))
    return bce / (target.mean((-2, -1)) * 6 + 0.04).clamp(max=1.0) + dice_loss(logits, target)


def train_step(
    model, head, data, numbers, rng, objects: int, clicks: int, boxes: float = 0.0, augment: float = 1.0
) -> tuple[Tensor, dict[str, float]]:
    """One batch: `clicks` turns on `objects` structures a picture; `boxes` is how often a box comes first."""
    pictures, bits = batch_of(data, numbers, rng, model.image_size, augment, masses=0.25 * augment)
    features, raw = encode(model, pictures)
    dense = head.loss(raw, bits)
    if clicks == 0:
        return dense, {"dense": float(dense.detach())}
    masks, owner, _ = choose_objects(bits, objects, rng)
    boxed = rng.random() < boxes
    if boxed:
        points, labels = corners(masks, rng)
    else:
        points, labels = first_clicks(masks, rng)[:, None], torch.ones(len(masks), 1, dtype=torch.int)
    loss, ious = turns(model, features, owner, masks, points, labels, None, clicks, several=not boxed)
    figures = {"dense": float(dense.detach()), "iou_box" if boxed else "iou_1": ious[0]}
    if clicks > 1:
        figures[f"iou_{clicks}"] = ious[-1]
    return dense * 0.5 + loss, figures


def carried_step(
    model,
    head,
    clips: Slices,
    numbers: np.ndarray,
    rng: np.random.Generator,
    objects: int,
    clicks: int,
    augment: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """As `train_step`, on slices whose neighbour's mask is known: how a volume is gone through, and corrected.

    `numbers` are slices of clips. The first prompt has the logits of the neighbour's mask, found by a click, and
    half of the time a click where that mask is deepest, else one where it does not fit the slice.
    """
    frames = numbers % FRAMES
    steps = np.where(frames == 0, 1, np.where(frames == FRAMES - 1, -1, rng.choice([-1, 1], len(numbers))))
    (pictures, bits), (beside, beside_bits) = pairs(model, clips, numbers, steps, rng, augment)
    features, raw = encode(model, pictures)
    dense = head.loss(raw, bits)
    masks, owner, names = choose_objects(bits, objects, rng)
    with torch.no_grad():
        before = (beside_bits[owner] >> names[:, None, None] & 1).float()
        there = before.flatten(1).sum(1) >= 24
        masks, owner, before = masks[there], owner[there], before[there]
        seen, _ = encode(model, beside)
        prior = carried_prior(model, seen, owner, before)
    found = (F.interpolate(prior, size=masks.shape[-2:], mode="bilinear")[:, 0] > 0).float()
    point, label = corrective_clicks(prior, masks)
    deep = deepest(torch.where(found.flatten(1).any(1)[:, None, None], found, before))
    inside = masks[torch.arange(len(masks)), deep[:, 1].long(), deep[:, 0].long()] > 0.5
    follow = inside & torch.from_numpy(rng.random(len(masks)) < 0.5)
    point, label = torch.where(follow[:, None], deep, point), torch.where(follow, 1, label).int()
    loss, ious = turns(model, features, owner, masks, point[:, None], label[:, None], prior, clicks)
    return dense * 0.5 + loss, {"dense": float(dense.detach()), "iou_carried": ious[0]}


def ending_step(
    model: SAM2Base, clips: Slices, numbers: np.ndarray, rng: np.random.Generator, augment: float = 1.0
) -> tuple[Tensor, dict[str, float]]:
    """As `carried_step`, for the object score alone: whether what is carried goes on in the slices `numbers`.

    The masks come from any other slice of the same clip, so that more structures have ended.
    """
    frames = numbers % FRAMES
    steps = (frames + rng.integers(1, FRAMES, len(numbers))) % FRAMES - frames
    (pictures, bits), (beside, beside_bits) = pairs(model, clips, numbers, steps, rng, augment)
    with torch.no_grad():
        features, seen = encode(model, pictures)[0], encode(model, beside)[0]
    return ending_loss(model, features, seen, bits, beside_bits, rng)


def pairs(
    model: SAM2Base,
    clips: Slices,
    numbers: np.ndarray,
    steps: np.ndarray,
    rng: np.random.Generator,
    augment: float,
) -> list[tuple[Tensor, Tensor]]:
    """Pictures and bits of slices of clips, and of those so many `steps` away, moved and windowed alike."""
    seed = rng.integers(2**31)
    return [
        batch_of(clips, each, np.random.default_rng(seed), model.image_size, augment)
        for each in (numbers, numbers + steps)
    ]


def carried_prior(model: SAM2Base, features: list[Tensor], owner: Tensor, masks: Tensor) -> Tensor:
    """(N, 1, S/4, S/4) logits that a click in the middle of each of N masks brings: what is carried on."""
    one = torch.ones(len(masks), 1, dtype=torch.int)
    logits, scores, _ = decode(model, features, owner, deepest(masks)[:, None], one, None)
    return logits[torch.arange(len(logits)), scores.argmax(1)][:, None].clamp(-32, 32)


def ending_loss(
    model: SAM2Base,
    features: list[Tensor],
    seen: list[Tensor],
    bits: Tensor,
    beside_bits: Tensor,
    rng: np.random.Generator,
    each: int = 5,
) -> tuple[Tensor, dict[str, float]]:
    """Whether a carried mask's structure goes on in the slice, as the object score has to tell it.

    features, bits: of the slices; seen, beside_bits: of their neighbours, from which up to `each` structures a slice
    are carried. Those that end come first; a third is carried to another place, as a mask that has drifted off.
    A structure goes on where it is under the carried mask. Returns the loss, and how many are told right of those
    that go on and of those that do not.
    """
    carried: list[tuple[int, Tensor]] = []
    for b, (here, there) in enumerate(zip(bits, beside_bits, strict=True)):
        known = [n for n in range(LEARNED) if int((there >> n & 1).sum()) >= 60]
        known.sort(key=lambda n: (int((here >> n & 1).sum()) > 0, rng.random()))
        carried += [(b, torch.stack([(x >> n & 1).float() for x in (there, here)])) for n in known[:each]]
    nothing = torch.zeros((), requires_grad=True)  # what a step without any carried mask learns from
    if not carried:
        return nothing, {}
    owner = torch.tensor([b for b, _ in carried])
    before, now = torch.stack([pair for _, pair in carried]).unbind(1)
    with torch.no_grad():
        prior = carried_prior(model, seen, owner, before)
        side = prior.shape[-1]
        for n in np.flatnonzero(rng.random(len(prior)) < 1 / 3):
            shift = tuple(int(x) for x in rng.integers(-side // 3, side // 3 + 1, 2))
            prior[n] = prior[n].roll(shift, (-2, -1))
        shown = F.interpolate(prior, size=now.shape[-2:], mode="bilinear")[:, 0] > 0
        kept = shown.flatten(1).any(1)
        if not bool(kept.any()):
            return nothing, {}
        owner, prior, shown, now = owner[kept], prior[kept], shown[kept], now[kept] > 0.5
        share = (shown & now).sum((1, 2)) / torch.minimum(shown.sum((1, 2)), now.sum((1, 2))).clamp_min(1)
        goes_on = (share > 0.3).float()
    one = torch.ones(len(prior), 1, dtype=torch.int)
    presence = decode(model, features, owner, deepest(shown.float())[:, None], one, prior)[2]
    # However many there are of each kind, each kind counts as a whole.
    counts = goes_on.sum().clamp_min(1), (1 - goes_on).sum().clamp_min(1)
    weight = torch.where(goes_on > 0, HOLE / counts[0], 1 / counts[1]) / (1 + HOLE)
    loss = (F.binary_cross_entropy_with_logits(presence, goes_on, reduction="none") * weight).sum()
    right = ((presence > 0) == (goes_on > 0)).float()
    told = {"goes_on": right[goes_on > 0], "ended": right[goes_on == 0]}
    return loss, {name: float(each.mean()) for name, each in told.items() if len(each)}


def turns(
    model: SAM2Base,
    features: list[Tensor],
    owner: Tensor,
    masks: Tensor,
    points: Tensor,
    labels: Tensor,
    prior: Tensor | None,
    clicks: int,
    several: bool = True,
) -> tuple[Tensor, list[float]]:
    """`clicks` prompts in a row, the first as given, each later one a click more where the mask is most wrong.

    Returns the mean loss and the mean IoU of each turn. Not `several`: the first prompt is a box (see decode).
    """
    near, total, ious = None, torch.zeros(()), []
    for turn in range(clicks):
        logits, scores, _ = decode(model, features, owner, points, labels, prior, several or turn > 0)
        loss, iou = mask_loss(logits, scores, masks, near)
        total = total + loss / clicks
        best = scores.argmax(1)
        ious.append(float(iou[torch.arange(len(iou)), best].mean()))
        if turn < clicks - 1:
            prior = logits[torch.arange(len(logits)), best][:, None].detach().clamp(-32, 32)
            point, label = corrective_clicks(prior, masks)
            points, labels = torch.cat([points, point[:, None]], 1), torch.cat([labels, label[:, None]], 1)
            near = nearness(point, masks.shape[-1])
    return total, ious
