"""Train the demo segmenter on phantom slices, from nothing: clicks or a box in, masks out.

    python -m training.demo.dataset --out build/phantoms
    python -m training.demo.dataset --clips 400 --out build/clips
    python -m training.demo.train_segmenter --data build/phantoms --clips build/clips --out build/segmenter

A SAM2 of 4.0 M parameters learns as SAM does: a click or a box, a mask, a corrective click where the mask is
most wrong, and so on; every click sees the mask of before. Simplifications, and why:
- a dense head names every structure at every point of the feature maps while training, and is thrown away:
  from scratch, clicks alone teach the encoder too slowly;
- the object score stays "present" (its head is trained with the memory, training.demo.train_memory): an untrained
  score silences the masks and with them the gradient;
- what lies near a corrective click counts more in the loss;
- in a part of the steps the first prompt brings the mask of a neighbouring slice, as in runs over volumes.
Resuming is exact: every step's random numbers depend on the seed and the step alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from ibis_agent.errors import InputError
from ibis_agent.segmenter.sam2.checkpoint import read_weights
from ibis_agent.segmenter.sam2.eight_bits import packed
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from training.common.commands import ending
from training.demo import loop
from training.demo.dataset import FRAMES, NAMES, SIDE, Slices, load
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

CONFIG = Path(__file__).parents[2] / "Logic/ibis_agent/demo/segmenter/model.yaml"


def build(config: Path = CONFIG) -> SAM2Base:
    """The SAM2Base of `config`, with random weights; the object score is fixed at 'present'."""
    model = instantiate(OmegaConf.load(config).model)
    last = model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 5.0)
    return model


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
    """One prompt turn on N objects → three low-resolution logits (N, 3, S/4, S/4) and their scores (N, 3).

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
    return out[0], out[1]


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
    seed = rng.integers(2**31)
    # The same random numbers for both: a slice and its neighbour are moved and windowed alike.
    beside, beside_bits = batch_of(
        clips, numbers + steps, np.random.default_rng(seed), model.image_size, augment
    )
    pictures, bits = batch_of(clips, numbers, np.random.default_rng(seed), model.image_size, augment)
    masks, owner, names = choose_objects(bits, objects, rng)
    with torch.no_grad():
        before = (beside_bits[owner] >> names[:, None, None] & 1).float()
        there = before.flatten(1).sum(1) >= 24
        masks, owner, before = masks[there], owner[there], before[there]
        seen, _ = encode(model, beside)
        one = torch.ones(len(masks), 1, dtype=torch.int)
        logits, scores = decode(model, seen, owner, deepest(before)[:, None], one, None)
        prior = logits[torch.arange(len(logits)), scores.argmax(1)][:, None].clamp(-32, 32)
    found = (F.interpolate(prior, size=masks.shape[-2:], mode="bilinear")[:, 0] > 0).float()
    point, label = corrective_clicks(prior, masks)
    deep = deepest(torch.where(found.flatten(1).any(1)[:, None, None], found, before))
    inside = masks[torch.arange(len(masks)), deep[:, 1].long(), deep[:, 0].long()] > 0.5
    follow = inside & torch.from_numpy(rng.random(len(masks)) < 0.5)
    point, label = torch.where(follow[:, None], deep, point), torch.where(follow, 1, label).int()
    features, raw = encode(model, pictures)
    dense = head.loss(raw, bits)
    loss, ious = turns(model, features, owner, masks, point[:, None], label[:, None], prior, clicks)
    return dense * 0.5 + loss, {"dense": float(dense.detach()), "iou_carried": ious[0]}


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
        logits, scores = decode(model, features, owner, points, labels, prior, several or turn > 0)
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


@torch.inference_mode()
def measure(model: SAM2Base, data: Slices, numbers: np.ndarray, clicks: int = 5) -> dict[str, float]:
    """Mean IoU after 1 and `clicks` simulated clicks on every named structure of the slices `numbers`."""
    model.eval()
    first: list[float] = []
    last: list[float] = []
    names: list[int] = []
    for n in numbers:
        rng = np.random.default_rng(int(n))
        pictures, bits = batch_of(data, np.array([n]), rng, model.image_size, augment=0)
        wanted = [b for b in range(8) if int((bits >> b & 1).sum()) >= 60 * (model.image_size / SIDE) ** 2]
        if not wanted:
            continue
        masks = torch.stack([(bits[0] >> b & 1).float() for b in wanted])
        features, _ = encode(model, pictures)
        owner = torch.zeros(len(wanted), dtype=torch.long)
        points = deepest(masks)
        points, labels, prior = points[:, None], torch.ones(len(wanted), 1, dtype=torch.int), None
        for turn in range(clicks):
            logits, scores = decode(model, features, owner, points, labels, prior)
            prior = logits[torch.arange(len(wanted)), scores.argmax(1)][:, None]
            p = F.interpolate(prior, size=masks.shape[-2:], mode="bilinear")[:, 0] > 0
            t = masks > 0.5
            iou = ((p & t).sum((1, 2)) / (p | t).sum((1, 2))).tolist()
            if turn == 0:
                first += iou
                names += wanted
            point, label = corrective_clicks(prior, masks)
            points, labels = torch.cat([points, point[:, None]], 1), torch.cat([labels, label[:, None]], 1)
            prior = prior.clamp(-32, 32)
        last += iou
    model.train()
    out = {"held_iou_1": float(np.mean(first)), f"held_iou_{clicks}": float(np.mean(last))}
    per = {
        NAMES[b]: round(float(np.mean([i for i, n in zip(first, names, strict=True) if n == b])), 3)
        for b in sorted(set(names))
    }
    print("   per structure at 1:", per, flush=True)
    return out


def save_model(state: dict[str, Tensor], file: Path, config: Path = CONFIG) -> None:
    """Weights as safetensors of 8 bits, with the configuration beside them: what a segmenter loads."""
    save_file(packed(state), file)
    file.with_suffix(".yaml").write_text(config.read_text(encoding="utf-8"), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    loop.add_options(parser, Path("build/segmenter"), steps=7000, rate=1.2e-3)
    parser.add_argument(
        "--start", type=Path, help="weights to go on from (.safetensors), in place of random ones"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="the architecture, as a SAM2 .yaml")
    parser.add_argument(
        "--dense-steps", type=int, default=700, help="first steps that train the encoder alone"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--clicks", type=int, default=5, help="at most so many in a row")
    parser.add_argument("--boxes", type=float, default=0.12, help="how often a box comes first, not a click")
    parser.add_argument("--clips", type=Path, default=Path("build/clips"), help="neighbouring slices")
    parser.add_argument(
        "--carried", type=float, default=0.25, help="how often a neighbour's mask comes first; 0: no clips"
    )
    parser.add_argument(
        "--augment", type=float, default=1.0, help="how much pictures are changed; less is for the last steps"
    )
    args = parser.parse_args()
    with ending("stopped; the same command goes on from the last checkpoint"):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Train, or go on training, and write the model. Raises InputError for what is not there."""
    if args.start and not args.start.is_file():
        raise InputError("there are no such weights", file=args.start)
    data = load(*args.data)
    clips = load(args.clips) if args.carried else None
    loop.prepare(args)
    model, head = build(args.config), DenseHead(OmegaConf.load(args.config).model.image_encoder.neck.d_model)
    if args.start:
        model.load_state_dict(read_weights(args.start))
    frozen = {id(p) for p in model.sam_mask_decoder.pred_obj_score_head.parameters()}
    learned = [
        *model.image_encoder.parameters(),
        *model.sam_prompt_encoder.parameters(),
        *model.sam_mask_decoder.parameters(),
        model.no_mem_embed,
        *head.parameters(),
    ]
    learned = [p for p in learned if id(p) not in frozen]
    optimiser = torch.optim.AdamW(learned, lr=args.rate, weight_decay=0.05, betas=(0.9, 0.98))
    count = len(data) - args.held

    def learn(step: int) -> tuple[Tensor, loop.Figures]:
        rng = loop.random(args, step)
        clicks = 0 if step < args.dense_steps else int(rng.choice([1, 2, 3, 3, args.clicks]))
        if clips is not None and clicks and rng.random() < args.carried:
            numbers = np.sort(rng.choice(len(clips), args.batch, replace=False))
            return carried_step(model, head, clips, numbers, rng, args.objects, min(clicks, 2), args.augment)
        numbers = np.sort(rng.choice(count, args.batch, replace=False))
        return train_step(model, head, data, numbers, rng, args.objects, clicks, args.boxes, args.augment)

    def judge(weights: dict[str, Tensor]) -> loop.Figures:
        probe = build(args.config)
        probe.load_state_dict(weights)
        return measure(probe, data, np.arange(count, len(data)))

    training = loop.Training(args, model, optimiser, head)
    model.train()
    weights = training.run(learn, judge, "demo segmenter", measure_after=args.dense_steps)
    if loop.rank() == 0:
        save_model(weights, args.out / "model.safetensors", args.config)


if __name__ == "__main__":
    main()
