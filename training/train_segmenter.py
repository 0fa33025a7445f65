"""Train the demo segmenter on phantom slices, from nothing: clicks or a box in, masks out.

    python -m training.dataset --out build/phantoms
    python -m training.train_segmenter --data build/phantoms --out build/segmenter

A SAM2 of 4.0 M parameters learns as SAM does: a click or a box, a mask, a corrective click where the mask is
most wrong, and so on; every click sees the mask of before. Simplifications, and why:
- a dense head names every structure at every point of the feature maps while training, and is thrown away:
  from scratch, clicks alone teach the encoder too slowly;
- the object score stays "present" (its head is trained with the memory, training.train_memory): an untrained
  score silences the masks and with them the gradient;
- clicks are found at half the picture's size; what lies near a corrective click counts more in the loss.
Resuming is exact: every step's random numbers depend on the seed and the step alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn

from training import loop
from training.dataset import NAMES, SIDE, Slices, load

CONFIG = Path(__file__).parent.parent / "Logic/ibis_agent/demo/segmenter/model.yaml"
PIXEL_MEAN = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
PIXEL_STD = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
LEARNED = len(NAMES)


def build(config: Path = CONFIG) -> nn.Module:
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
            target = F.adaptive_avg_pool2d(planes, f.shape[-2:])
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


def batch_of(
    data: Slices, numbers: np.ndarray, rng: np.random.Generator, side: int, augment: bool = True
) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, side, side) normalised and structure bits (B, side, side) int64 of slices `numbers`."""
    hu = torch.from_numpy(np.asarray(data.hu[numbers], np.float32))[:, None]
    bits = torch.from_numpy(data.bits[numbers].astype(np.float32))[:, None]
    count = len(numbers)
    if augment:
        zoom = np.where(rng.random(count) < 0.12, rng.uniform(0.4, 0.9, count), rng.uniform(0.9, 1.12, count))
        turn = rng.normal(0, 0.12, count)
        stretch = np.exp(rng.normal(0, 0.08, count))
        shift = rng.uniform(-1, 1, (count, 2)) * np.maximum(0.04, 0.8 * (1 - zoom))[:, None]
        flip_x, flip_y = np.where(rng.random(count) < 0.25, -1, 1), np.where(rng.random(count) < 0.03, -1, 1)
        theta = np.zeros((count, 2, 3), np.float32)
        theta[:, 0, 0], theta[:, 0, 1] = np.cos(turn) * zoom * stretch * flip_x, -np.sin(turn) * zoom
        theta[:, 1, 0], theta[:, 1, 1] = np.sin(turn) * zoom, np.cos(turn) * zoom / stretch * flip_y
        theta[:, :, 2] = shift
        grid = F.affine_grid(torch.from_numpy(theta), [count, 1, side, side], align_corners=False)
        hu = F.grid_sample(hu + 1024, grid, mode="bilinear", align_corners=False) - 1024
        bits = F.grid_sample(bits, grid, mode="nearest", align_corners=False)
    elif side != SIDE:
        hu = F.interpolate(hu, size=(side, side), mode="bilinear")
        bits = F.interpolate(bits, size=(side, side), mode="nearest-exact")
    lower = torch.from_numpy(rng.normal(-150, 30 if augment else 0, count).astype(np.float32))[
        :, None, None, None
    ]
    width = torch.from_numpy(
        np.exp(rng.normal(np.log(400), 0.22 if augment else 0, count)).astype(np.float32)
    )[:, None, None, None]
    grey = ((hu - lower) / width).clamp(0, 1)
    if augment:
        if rng.random() < 0.3:  # the look of coarse pixels
            coarse = int(rng.integers(90, 160))
            grey = F.interpolate(
                F.interpolate(grey, size=(coarse, coarse), mode="area"), size=(side, side), mode="bicubic"
            ).clamp(0, 1)
        noise = torch.from_numpy(rng.standard_normal(grey.shape, dtype=np.float32))
        strength = torch.from_numpy(
            np.where(rng.random(count) < 0.5, 0.0, rng.uniform(0, 0.05, count)).astype(np.float32)
        )
        gamma = torch.from_numpy(np.exp(rng.normal(0, 0.12, count)).astype(np.float32))[:, None, None, None]
        grey = (grey.clamp_min(1e-4) ** gamma + noise * strength[:, None, None, None]).clamp(0, 1)
    return (grey.repeat(1, 3, 1, 1) - PIXEL_MEAN) / PIXEL_STD, bits[:, 0].round().long()


def choose_objects(bits: Tensor, each: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`each` structures a picture, rarer and smaller ones more often.

    Returns masks (N, S, S), which picture (N,), which of NAMES (N,).
    """
    masks, owner, names = [], [], []
    for b in range(len(bits)):
        areas = np.array([int((bits[b] >> n & 1).sum()) for n in range(LEARNED)])
        weight = np.where(areas >= 24, 1.0, 0.0)
        weight[len(NAMES) - 7 :] *= 0.3
        weight[NAMES.index("lesion")] *= 3
        weight *= np.where(areas < 700, 1.6, 1.0)
        if weight.sum() == 0:
            continue
        for n in rng.choice(LEARNED, each, p=weight / weight.sum()):
            masks.append((bits[b] >> int(n) & 1).float())
            owner.append(b)
            names.append(int(n))
    return torch.stack(masks), torch.tensor(owner), torch.tensor(names)


def first_clicks(masks: Tensor, rng: np.random.Generator) -> Tensor:
    """(N, S, S) → (N, 2) x, y pixels: half of them deep inside, half anywhere inside."""
    points = []
    deep = _deepest(masks)
    for n, m in enumerate(masks):
        if rng.random() < 0.5:
            points.append(deep[n])
        else:
            inside = torch.nonzero(m > 0.5)
            points.append(inside[int(rng.integers(len(inside)))].flip(0).float())
    return torch.stack(points)


def corners(masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(N, S, S) → a box around each, drawn by a hand that is not quite steady, as SAM2's two corner points.

    Points (N, 2, 2) x, y pixels and their labels (N, 2), 2 for the first corner and 3 for the last.
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
    """Where the thresholded low-resolution mask is most wrong → points (N, 2) pixels, labels (N,) 1 or 0."""
    predicted = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear")[:, 0] > 0
    truth = masks > 0.5
    points = _deepest((predicted ^ truth).float())
    x, y = points.long().T
    return points, truth[torch.arange(len(masks)), y, x].int()


def _deepest(regions: Tensor) -> Tensor:
    """(N, S, S) 0 or 1 → (N, 2) x, y pixels: the deepest point of each, found at half the size."""
    half = F.avg_pool2d(regions[:, None], 2)[:, 0].numpy()
    points = []
    for covered, region in zip(half, regions, strict=True):
        inside = covered >= min(0.5, covered.max())
        ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        y0, x0 = ys[0], xs[0]
        part = np.pad(inside[y0 : ys[-1] + 1, x0 : xs[-1] + 1], 1)
        r, c = np.unravel_index(ndimage.distance_transform_edt(part).argmax(), part.shape)
        y, x = 2 * int(y0 + r - 1), 2 * int(x0 + c - 1)
        # The half-size cell may be covered in part: take a pixel of it that is inside.
        dy, dx = divmod(int(region[y : y + 2, x : x + 2].argmax()), 2)
        points.append([x + dx, y + dy])
    return torch.tensor(points, dtype=torch.float32)


def decode(
    model: nn.Module,
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


def encode(model: nn.Module, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
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


def nearness(points: Tensor, side: int, reach: float = 14.0) -> Tensor:
    """(N, 2) x, y pixels → (N, 1, side / 2, side / 2) weights: 7 at the click, 1 away from it.

    Without it a correction of a large structure hardly counts: its pixels are few among many that are right.
    """
    at = torch.arange(side // 2) * 2.0 + 1
    x, y = ((at - points[:, :1]) / reach) ** 2, ((at - points[:, 1:]) / reach) ** 2
    return 1 + 6 * torch.exp(-0.5 * (y[:, None, :, None] + x[:, None, None, :]))


def train_step(
    model, head, data, numbers, rng, objects: int, clicks: int, boxes: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """One batch: `clicks` turns on `objects` structures a picture; `boxes` is how often a box comes first."""
    pictures, bits = batch_of(data, numbers, rng, model.image_size)
    features, raw = encode(model, pictures)
    dense = head.loss(raw, bits)
    figures = {"dense": float(dense.detach())}
    if clicks == 0:
        return dense, figures
    masks, owner, _ = choose_objects(bits, objects, rng)
    boxed = rng.random() < boxes
    if boxed:
        points, labels = corners(masks, rng)
    else:
        points, labels = first_clicks(masks, rng)[:, None], torch.ones(len(masks), 1, dtype=torch.int)
    prior, near, total = None, None, dense * 0.5
    for turn in range(clicks):
        several = turn > 0 or not boxed
        logits, scores = decode(model, features, owner, points, labels, prior, several)
        loss, iou = mask_loss(logits, scores, masks, near)
        total = total + loss / clicks
        chosen = logits[torch.arange(len(logits)), scores.argmax(1)][:, None].detach()
        if turn in (0, clicks - 1):
            name = f"iou_{turn + 1}" if several else "iou_box"
            figures[name] = float(iou[torch.arange(len(iou)), scores.argmax(1)].mean())
        if turn < clicks - 1:
            point, label = corrective_clicks(chosen, masks)
            points, labels = torch.cat([points, point[:, None]], 1), torch.cat([labels, label[:, None]], 1)
            prior, near = chosen.clamp(-32, 32), nearness(point, masks.shape[-1])
    return total, figures


@torch.inference_mode()
def measure(model: nn.Module, data: Slices, numbers: np.ndarray, clicks: int = 5) -> dict[str, float]:
    """Mean IoU after 1 and `clicks` simulated clicks on every named structure of the slices `numbers`."""
    model.eval()
    first: list[float] = []
    last: list[float] = []
    names: list[int] = []
    for n in numbers:
        rng = np.random.default_rng(int(n))
        pictures, bits = batch_of(data, np.array([n]), rng, model.image_size, augment=False)
        wanted = [b for b in range(8) if int((bits >> b & 1).sum()) >= 60 * (model.image_size / SIDE) ** 2]
        if not wanted:
            continue
        masks = torch.stack([(bits[0] >> b & 1).float() for b in wanted])
        features, _ = encode(model, pictures)
        owner = torch.zeros(len(wanted), dtype=torch.long)
        points = _deepest(masks)
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
    """Weights as half-precision safetensors, with the configuration beside them: what a Segmenter loads."""
    half = {k: (v.half() if v.dtype.is_floating_point else v).contiguous() for k, v in state.items()}
    save_file(half, file)
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
    parser.add_argument(
        "--clicks", type=int, default=5, help="at most so many in a row; few are practised most"
    )
    parser.add_argument("--boxes", type=float, default=0.12, help="how often a box comes first, not a click")
    args = parser.parse_args()
    loop.prepare(args)
    model, head = build(args.config), DenseHead(OmegaConf.load(args.config).model.image_encoder.neck.d_model)
    if args.start:
        model.load_state_dict(load_file(args.start))
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
    data = load(args.data)
    count = len(data) - args.held

    def learn(step: int) -> tuple[Tensor, loop.Figures]:
        rng = np.random.default_rng([args.seed, step])
        numbers = np.sort(rng.choice(count, args.batch, replace=False))
        clicks = 0 if step < args.dense_steps else int(rng.choice([1, 2, 3, 3, args.clicks]))
        return train_step(model, head, data, numbers, rng, args.objects, clicks, args.boxes)

    def judge(weights: dict[str, Tensor]) -> loop.Figures:
        probe = build(args.config)
        probe.load_state_dict(weights)
        return measure(probe, data, np.arange(count, len(data)))

    training = loop.Training(args, model, optimiser, head)
    model.train()
    weights = training.run(learn, judge, "demo segmenter", measure_after=args.dense_steps)
    save_model(weights, args.out / "model.safetensors", args.config)


if __name__ == "__main__":
    main()
