"""Train the demo segmenter on phantom slices from scratch: clicks or a box in, masks out.

    python -m training.demo.dataset --out build/phantoms
    python -m training.demo.dataset --clips 400 --out build/clips
    python -m training.demo.train_segmenter --data build/phantoms --clips build/clips --out build/segmenter

A SAM2 of 4.0 M parameters is trained as SAM: a click or a box, a mask, a corrective click at the deepest error, and so
on, each with the previous mask as input. Simplifications, and why:
- in training only, a dense head predicts every structure at every point of the feature maps: from scratch, clicks
  alone train the encoder too slowly;
- the object score stays at "present" until the rest is trained: an untrained score suppresses masks and their
  gradient. `--score-only` then trains only the score, to say whether a propagated structure continues in a slice;
- pixels near a corrective click have a higher weight in the loss;
- in some of the steps the first prompt includes the mask of a neighbouring slice, as in volume runs.
Resuming is exact: the random numbers of a step depend only on the seed and the step.
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
from ibis_agent.segmenter.sam2.int8_storage import packed
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from training.common.commands import RESUMABLE, command_parser, ending
from training.demo import loop
from training.demo.dataset import NAMES, SIDE, Slices, load
from training.demo.segmenter_prompts import batch_of, corrective_clicks, deepest
from training.demo.segmenter_steps import DenseHead, carried_step, decode, encode, ending_step, train_step

CONFIG = Path(__file__).parents[2] / "Logic/ibis_agent/demo/segmenter/model.yaml"


def build(config: Path = CONFIG) -> SAM2Base:
    """The SAM2Base of `config` with random weights, and an object score of "present"."""
    model = instantiate(OmegaConf.load(config).model)
    last = model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 5.0)
    return model


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
            logits, scores, _ = decode(model, features, owner, points, labels, prior)
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
    """Save weights as 8-bit safetensors, with the configuration next to them, as segmenter.open expects."""
    save_file(packed(state), file)
    file.with_suffix(".yaml").write_text(config.read_text(encoding="utf-8"), encoding="utf-8")


def train_score_only(model: SAM2Base) -> list[nn.Parameter]:
    """Freeze all parameters except those of the object score, reset the score's bias, and return them."""
    score = model.sam_mask_decoder.pred_obj_score_head
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if not bool(score.layers[-1].weight.any()):
        nn.init.zeros_(score.layers[-1].bias)
    return [parameter.requires_grad_(True) for parameter in score.parameters()]


def main() -> None:
    parser = command_parser("demo.train_segmenter", __doc__)
    loop.add_options(parser, Path("build/segmenter"), steps=7000, rate=1.2e-3)
    parser.add_argument(
        "--start", type=Path, help="weights to start from (.safetensors), instead of random ones"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="the architecture, as a SAM2 .yaml")
    parser.add_argument(
        "--dense-steps", type=int, default=700, help="number of first steps that train only the encoder"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--clicks", type=int, default=5, help="most clicks per structure")
    parser.add_argument(
        "--boxes", type=float, default=0.12, help="share of steps that start with a box, not a click"
    )
    parser.add_argument(
        "--clips", type=Path, default=Path("build/clips"), help="folder of clips of neighbouring slices"
    )
    parser.add_argument(
        "--carried",
        type=float,
        default=0.25,
        help="share of steps that start from a neighbour's mask; 0: no clips",
    )
    parser.add_argument(
        "--augment", type=float, default=1.0, help="strength of augmentation; use less for the last steps"
    )
    parser.add_argument(
        "--score-only", action="store_true", help="train only the object score; masks do not change"
    )
    args = parser.parse_args()
    with ending(RESUMABLE):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Train, or resume, and write the model. Raises InputError if a file is missing."""
    if args.start and not args.start.is_file():
        raise InputError("there is no such file", file=args.start)
    data = load(*args.data)
    clips = load(args.clips) if args.carried or args.score_only else None
    loop.prepare(args)
    model, head = build(args.config), DenseHead(OmegaConf.load(args.config).model.image_encoder.neck.d_model)
    if args.start:
        model.load_state_dict(read_weights(args.start))
    learned = [
        *model.image_encoder.parameters(),
        *model.sam_prompt_encoder.parameters(),
        *model.sam_mask_decoder.parameters(),
        model.no_mem_embed,
        *head.parameters(),
    ]
    if args.score_only:
        learned = train_score_only(model)
    optimiser = torch.optim.AdamW(learned, lr=args.rate, weight_decay=0.05, betas=(0.9, 0.98))
    count = len(data) - args.held

    def learn(step: int) -> tuple[Tensor, loop.Figures]:
        rng = loop.random(args, step)
        if args.score_only:
            assert clips is not None
            numbers = np.sort(rng.choice(len(clips), args.batch, replace=False))
            return ending_step(model, clips, numbers, rng, args.augment)
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

    training = loop.Training(args, model, optimiser, head, warmup=20 if args.score_only else 200)
    model.train()
    weights = training.run(learn, judge, "demo segmenter", measure_after=args.dense_steps)
    if loop.rank() == 0:
        save_model(weights, args.out / "model.safetensors", args.config)


if __name__ == "__main__":
    main()
