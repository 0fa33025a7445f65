"""Training steps of the demo segmenter: successive prompts on structures of a batch, and their losses.

S is the model's input size.
"""

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

HOLE = 2.7  # loss weight of a structure wrongly ended; of one wrongly continued it is 1


class DenseHead(nn.Module):
    """Training only: predicts the structures at each point of the finest and the coarsest feature map."""

    def __init__(self, width: int):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(width, LEARNED, 1), nn.Conv2d(width, LEARNED, 1)

    def loss(self, features: list[Tensor], bits: Tensor) -> Tensor:
        """features: the three FPN levels; bits: (B, S, S) int."""
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
    """(…) soft Dice loss of (…, H, W) logits against soft masks; defined for empty targets too."""
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
    """One prompt turn on N objects: (N, 3, S/4, S/4) logits, (N, 3) scores, (N,) logits of the object's presence.

    points: (N, P, 2) pixels at the model's input size; labels: (N, P), 1 or 0, or 2 and 3 for the corners of a box;
    prior: (N, 1, S/4, S/4) logits or None. several=False uses SAM's single-mask head, for unambiguous prompts.
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
    """Feature maps for the mask decoder, and those of the neck (for the dense head), of (B, 3, S, S) pictures."""
    out = model.image_encoder(pictures)
    raw = out["backbone_fpn"]
    decoder = model.sam_mask_decoder
    top = raw[2] + model.no_mem_embed.permute(1, 2, 0)[..., None]
    return [decoder.conv_s0(raw[0]), decoder.conv_s1(raw[1]), top], raw


def mask_loss(
    logits: Tensor, scores: Tensor, masks: Tensor, near: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(loss, (N, 3) IoU) of (N, 3, S/4, S/4) logits: mainly of the best mask, and of the scores against the true IoU.

    masks: (N, S, S); near: (N, 1, S/2, S/2) pixel weights, higher near a corrective click.
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
    """(N, M) cross entropy plus Dice loss of (N, M, s, s) logits against soft masks.

    Cross entropy is scaled by the structure's area, so that small ones count too.
    """
    bce = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").mean((-2, -1))
    return bce / (target.mean((-2, -1)) * 6 + 0.04).clamp(max=1.0) + dice_loss(logits, target)


def train_step(
    model, head, data, numbers, rng, objects: int, clicks: int, boxes: float = 0.0, augment: float = 1.0
) -> tuple[Tensor, dict[str, float]]:
    """(loss, figures) of `clicks` turns on `objects` structures per picture; a share `boxes` starts with a box."""
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
    """As `train_step`, starting from the mask of a neighbouring slice, as in propagation through a volume.

    `numbers` are slices of clips. The first prompt is the logits of the neighbour's mask, made by a click, plus a
    click: half of the time where that mask is deepest, else where it is most wrong in this slice.
    """
    frames = numbers % FRAMES
    steps = np.where(frames == 0, 1, np.where(frames == FRAMES - 1, -1, rng.choice([-1, 1], len(numbers))))
    (pictures, bits), (neighbour, neighbour_bits) = pairs(model, clips, numbers, steps, rng, augment)
    features, raw = encode(model, pictures)
    dense = head.loss(raw, bits)
    masks, owner, names = choose_objects(bits, objects, rng)
    with torch.no_grad():
        before = (neighbour_bits[owner] >> names[:, None, None] & 1).float()
        there = before.flatten(1).sum(1) >= 24
        masks, owner, before = masks[there], owner[there], before[there]
        seen, _ = encode(model, neighbour)
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
    """As `carried_step`, for the object score alone: whether a propagated structure continues in the slices `numbers`.

    The masks come from any other slice of the same clip, so that more structures have ended.
    """
    frames = numbers % FRAMES
    steps = (frames + rng.integers(1, FRAMES, len(numbers))) % FRAMES - frames
    (pictures, bits), (neighbour, neighbour_bits) = pairs(model, clips, numbers, steps, rng, augment)
    with torch.no_grad():
        features, seen = encode(model, pictures)[0], encode(model, neighbour)[0]
    return ending_loss(model, features, seen, bits, neighbour_bits, rng)


def pairs(
    model: SAM2Base,
    clips: Slices,
    numbers: np.ndarray,
    steps: np.ndarray,
    rng: np.random.Generator,
    augment: float,
) -> list[tuple[Tensor, Tensor]]:
    """(pictures, bits) of the slices `numbers` of clips, and of those `steps` away, with the same augmentation."""
    seed = rng.integers(2**31)
    return [
        batch_of(clips, each, np.random.default_rng(seed), model.image_size, augment)
        for each in (numbers, numbers + steps)
    ]


def carried_prior(model: SAM2Base, features: list[Tensor], owner: Tensor, masks: Tensor) -> Tensor:
    """(N, 1, S/4, S/4) logits of a click at the deepest point of each of N masks: the mask to propagate."""
    one = torch.ones(len(masks), 1, dtype=torch.int)
    logits, scores, _ = decode(model, features, owner, deepest(masks)[:, None], one, None)
    return logits[torch.arange(len(logits)), scores.argmax(1)][:, None].clamp(-32, 32)


def ending_loss(
    model: SAM2Base,
    features: list[Tensor],
    seen: list[Tensor],
    bits: Tensor,
    neighbour_bits: Tensor,
    rng: np.random.Generator,
    each: int = 5,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the object score as a prediction of whether a propagated structure continues in the slice.

    features, bits: of the slices; seen, neighbour_bits: of their neighbours, from which up to `each` structures per
    slice are propagated, those that end first. A third of the masks is shifted, as if it had drifted. A structure
    continues if it overlaps the propagated mask. Returns the loss, and the accuracy for structures that continue and
    for those that end.
    """
    carried: list[tuple[int, Tensor]] = []
    for b, (here, there) in enumerate(zip(bits, neighbour_bits, strict=True)):
        known = [n for n in range(LEARNED) if int((there >> n & 1).sum()) >= 60]
        known.sort(key=lambda n: (int((here >> n & 1).sum()) > 0, rng.random()))
        carried += [(b, torch.stack([(x >> n & 1).float() for x in (there, here)])) for n in known[:each]]
    nothing = torch.zeros((), requires_grad=True)  # the loss of a step without propagated masks
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
    # Both classes have fixed total weights, whatever their numbers.
    counts = goes_on.sum().clamp_min(1), (1 - goes_on).sum().clamp_min(1)
    weight = torch.where(goes_on > 0, HOLE / counts[0], 1 / counts[1]) / (1 + HOLE)
    loss = (F.binary_cross_entropy_with_logits(presence, goes_on, reduction="none") * weight).sum()
    right = ((presence > 0) == (goes_on > 0)).float()
    figures = {"goes_on": right[goes_on > 0], "ended": right[goes_on == 0]}
    return loss, {name: float(each.mean()) for name, each in figures.items() if len(each)}


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
    """`clicks` successive prompts: the first as given, then one more click each at the deepest error.

    Returns the mean loss and the mean IoU of each turn. several=False: the first prompt is a box (see decode).
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
