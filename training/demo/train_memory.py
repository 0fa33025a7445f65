"""Train the demo segmenter's SAM2 memory and object score, to propagate a mask from slice to slice.

    python -m training.demo.dataset --clips 400 --out build/clips
    python -m training.demo.train_memory --start build/segmenter/resume.pt --clips build/clips --out build/memory

One slice of a clip gets a click (or the true mask); the others are segmented from memory alone, up or down the stack.
The image encoder is frozen. The mask decoder is trained further, with single slices mixed in so that it keeps its
accuracy on clicks. The object score affects the memory; in half of the clips it is replaced by the truth. Resuming is
exact.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ibis_agent.errors import InputError
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from training.common.commands import RESUMABLE, command_parser, ending
from training.demo import loop
from training.demo.dataset import FRAMES, Slices, load
from training.demo.segmenter_prompts import LEARNED, batch_of, choose_objects, first_clicks
from training.demo.segmenter_steps import mask_loss, turns
from training.demo.train_segmenter import CONFIG, build, measure, save_model


class Heard:
    """A hook on the mask decoder: keeps its raw masks and scores, and can replace the object score by the truth.

    SAM2 clears the masks of objects that it considers absent, so their gradient would be lost.
    """

    def __init__(self, model: SAM2Base):
        self.truth: Tensor | None = None
        self.masks = self.scores = self.present = torch.empty(0)
        model.sam_mask_decoder.register_forward_hook(self._hear)

    def _hear(self, module: nn.Module, args: object, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.masks, self.scores, tokens, self.present = out
        if self.truth is None:
            return out
        return (self.masks, self.scores, tokens, (self.truth * 20 - 10)[:, None])


def clip_objects(bits: Tensor, each: int, rng: np.random.Generator) -> tuple[Tensor, int]:
    """((N, FRAMES, S, S) masks of structures in a common key slice, the key slice) of (FRAMES, S, S) structure bits."""
    areas = torch.stack([(bits >> b & 1).flatten(1).sum(1) for b in range(LEARNED)], 1)
    weight = (areas >= 60).float() @ torch.tensor([1.0] * 8 + [0.3] * (LEARNED - 8)) + 1e-3
    odds = weight.double().numpy()
    key = int(rng.choice(len(bits), p=odds / odds.sum()))
    odds = np.where(areas[key].numpy() >= 40, 1.0, 0.0) * np.array([1.0] * 7 + [3.0] + [0.3] * (LEARNED - 8))
    # Prefer structures that end within the clip.
    odds = odds * np.where((areas == 0).any(0).numpy(), 2.0, 1.0)
    if odds.sum() == 0:
        return torch.empty(0), key
    chosen = rng.choice(LEARNED, each, p=odds / odds.sum())
    return torch.stack([(bits >> int(b) & 1).float() for b in chosen]), key


def track(
    model: SAM2Base, heard: Heard, clips: Slices, numbers: np.ndarray, objects: int, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """(loss, figures) over a batch of clips; each clip is followed from its key slice to one end."""
    total, ious, right, frames = torch.zeros(()), [], [], 0
    use_truth = rng.random() < 0.5
    for clip in numbers:
        order = np.arange(FRAMES) + int(clip) * FRAMES
        if rng.random() < 0.5:
            order = order[::-1]
        pictures, bits = clip_batch(clips, order, rng, model.image_size)
        masks, key = clip_objects(bits, objects, rng)
        if not len(masks):
            continue
        key = min(key, FRAMES - 3)
        if not (masks[:, key].flatten(1).sum(1) >= 20).all():
            continue
        with torch.no_grad():
            out = model.image_encoder(pictures)
        count = len(masks)
        outputs: dict[str, dict[int, dict]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        for frame in range(key, FRAMES):
            raw = [f[frame : frame + 1] for f in out["backbone_fpn"]]
            maps = [model.sam_mask_decoder.conv_s0(raw[0]), model.sam_mask_decoder.conv_s1(raw[1]), raw[2]]
            feats = [m.expand(count, -1, -1, -1).flatten(2).permute(2, 0, 1) for m in maps]
            places = [
                p[frame : frame + 1].expand(count, -1, -1, -1).flatten(2).permute(2, 0, 1)
                for p in out["vision_pos_enc"]
            ]
            truth = masks[:, frame]
            present = (truth.flatten(1).sum(1) >= 12).float()
            first = frame == key
            heard.truth = present if use_truth or first else None
            points, given = None, None
            if first and rng.random() < 0.7:
                points = {
                    "point_coords": first_clicks(truth, rng)[:, None],
                    "point_labels": torch.ones(count, 1, dtype=torch.int32),
                }
            elif first:
                given = truth[:, None]
            found = model.track_step(
                frame_idx=frame,
                is_init_cond_frame=first,
                current_vision_feats=feats,
                current_vision_pos_embeds=places,
                feat_sizes=[(model.image_size // stride,) * 2 for stride in (4, 8, 16)],
                point_inputs=points,
                mask_inputs=given,
                output_dict=outputs,
                num_frames=FRAMES,
            )
            outputs["cond_frame_outputs" if first else "non_cond_frame_outputs"][frame] = found
            if given is not None:
                continue
            here = present > 0
            loss = F.binary_cross_entropy_with_logits(heard.present[:, 0], present)
            if here.any():
                seen, iou = mask_loss(heard.masks[here], heard.scores[here], truth[here])
                loss = loss + seen
                if not first:
                    ious.append(float(iou[torch.arange(len(iou)), heard.scores[here].argmax(1)].mean()))
            if not first:
                right.append(float(((heard.present[:, 0] > 0) == here).float().mean()))
            total = total + loss
            frames += 1
    heard.truth = None
    figures = {}
    if ious:
        figures = {"tracked_iou": float(np.mean(ious)), "presence_right": float(np.mean(right))}
    return total / max(1, frames), figures


def clip_batch(
    clips: Slices, order: np.ndarray, rng: np.random.Generator, side: int
) -> tuple[Tensor, Tensor]:
    """The slices `order` of one clip, all augmented in the same way."""
    seed = int(rng.integers(2**31))
    pairs = [batch_of(clips, np.array([n]), np.random.default_rng(seed), side) for n in order]
    return torch.cat([p for p, _ in pairs]), torch.cat([b for _, b in pairs])


def single_slices(model: SAM2Base, data: Slices, numbers: np.ndarray, rng: np.random.Generator) -> Tensor:
    """The loss of clicks on single slices, as in training.demo.train_segmenter, with a frozen encoder."""
    pictures, bits = batch_of(data, numbers, rng, model.image_size)
    with torch.no_grad():
        raw = model.image_encoder(pictures)["backbone_fpn"]
    decoder = model.sam_mask_decoder
    features = [
        decoder.conv_s0(raw[0]),
        decoder.conv_s1(raw[1]),
        raw[2] + model.no_mem_embed.permute(1, 2, 0)[..., None],
    ]
    masks, owner, _ = choose_objects(bits, 4, rng)
    points, labels = first_clicks(masks, rng)[:, None], torch.ones(len(masks), 1, dtype=torch.int)
    return turns(model, features, owner, masks, points, labels, None, int(rng.choice([1, 2, 4])))[0]


def main() -> None:
    parser = command_parser("demo.train_memory", __doc__)
    loop.add_options(parser, Path("build/memory"), steps=900, rate=8e-4, every=100)
    parser.add_argument("--start", type=Path, default=Path("build/segmenter/resume.pt"))
    parser.add_argument("--config", type=Path, default=CONFIG, help="the architecture, as a SAM2 .yaml")
    parser.add_argument("--clips", type=Path, default=Path("build/clips"))
    parser.add_argument("--batch", type=int, default=2, help="clips per step")
    parser.add_argument("--objects", type=int, default=4)
    args = parser.parse_args()
    with ending(RESUMABLE):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Train, or resume, and write the model. Raises InputError if a file is missing."""
    if not args.start.is_file():
        remedy = "Make it: python -m training.demo.train_segmenter."
        raise InputError("there is no such checkpoint", file=args.start, remedy=remedy)
    clips, data = load(args.clips), load(*args.data)
    loop.prepare(args)
    model = build(args.config)
    model.load_state_dict(torch.load(args.start, weights_only=True)["averaged"])
    score = model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    nn.init.trunc_normal_(score.weight, std=0.02)
    nn.init.constant_(score.bias, 2.0)
    for p in model.image_encoder.parameters():
        p.requires_grad = False
    known = [*model.sam_mask_decoder.parameters(), *model.sam_prompt_encoder.parameters(), model.no_mem_embed]
    fast = {id(p) for p in model.sam_mask_decoder.pred_obj_score_head.parameters()}
    ids = {id(p) for p in known} - fast
    fresh = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    known = [p for p in known if id(p) in ids]
    optimiser = torch.optim.AdamW(
        [{"params": fresh, "scale": 1.0}, {"params": known, "scale": 0.25}], lr=args.rate, weight_decay=0.02
    )
    heard = Heard(model)
    count, singles = len(clips) // FRAMES, len(data) - args.held

    def learn(step: int) -> tuple[Tensor, loop.Figures]:
        rng = loop.random(args, step, 3)
        torch.manual_seed(args.seed * 100_003 + step)  # for the attention's dropout
        chosen = rng.choice(count, args.batch, replace=False)
        loss, figures = track(model, heard, clips, chosen, args.objects, rng)
        loss = loss + single_slices(model, data, np.sort(rng.choice(singles, 3, replace=False)), rng)
        return loss, {"loss": float(loss.detach()), **figures}

    def judge(weights: dict[str, Tensor]) -> loop.Figures:
        probe = build(args.config)
        probe.load_state_dict(weights)
        return measure(probe, data, np.arange(singles, len(data)))

    training = loop.Training(args, model, optimiser, decay=0.995, warmup=50)
    model.train()
    model.image_encoder.eval()
    weights = training.run(learn, judge, "demo segmenter, memory", report_every=10, measure_every=args.steps)
    if loop.rank() == 0:
        save_model(weights, args.out / "model.safetensors", args.config)


if __name__ == "__main__":
    main()
