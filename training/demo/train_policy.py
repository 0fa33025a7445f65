"""Train the demo policy on phantom slices from scratch: picture and question in, thinking and click out.

    python -m training.demo.dataset --out build/phantoms
    python -m training.demo.train_policy --data build/phantoms --out build/policy

A Qwen2.5-VL of about 3.1 M parameters is trained by supervised fine-tuning on simulated turns: the first click, the
judgement of a mask over the picture (stop, add, remove), and the answer that a structure is absent. Simplifications,
and why:
- masks of later turns are made from the truth (training.trajectories.mistakes): good, incomplete, spilled, or wrong;
- heads for structures and click targets at every visual token exist in training only: without them a model of this
  size takes ten times longer to learn what the digits of a coordinate mean;
- one attention head is trained to attend to the clicked token while a reply with a click is written;
- coordinates have two decimals, whose digits have a higher weight, the first most of all; instead of one correct text
  they learn the worth of the best click that starts with them (training.demo.policy_clicks);
- the questions about a picture share its tokens: one sequence, in which each question sees the picture and itself.
Resuming is exact: the random numbers of a step depend only on the seed and the step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ibis_agent.actions import Click, Terminate, parse_reply
from ibis_agent.errors import ReplyError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from training.common import questions as q
from training.common.commands import RESUMABLE, command_parser, ending
from training.demo import loop
from training.demo.dataset import ALIKE, NAMES, SIDE, Slices, load
from training.demo.empty_policy import make_config, make_tokenizer, save_folder, weights_folder
from training.demo.policy_heads import ExtraHeads, gaze_loss, show_attention
from training.demo.policy_turns import (
    MEAN,
    SMALLEST,
    STD,
    Buckets,
    augmented,
    collate,
    grid_of,
    patches_of,
    show,
)
from training.demo.policy_writer import Writer
from training.phantoms.phantom import STRUCTURES

SMALL = 500  # pixels on the SIDE grid; of smaller structures, one in four was missed


def train_step(
    model,
    heads: ExtraHeads,
    writer: Writer,
    batch: dict[str, Tensor],
    grid: tuple[int, int],
    extra: float,
    language: bool = True,
) -> tuple[Tensor, dict[str, float]]:
    """(loss, figures) of a batch. extra: weight of the heads; without `language` only the vision tower is trained."""
    rows, columns = grid
    count = len(batch["pictures"])
    thw = torch.tensor([[1, rows * 2, columns * 2]] * count)
    seen = model.model.visual(patches_of(batch["pictures"]), grid_thw=thw).pooler_output.view(
        count, rows * columns, -1
    )
    if not language:
        loss = heads.loss(seen, None, batch["cells"], batch["targets"], batch["covered"], grid)
        return loss, {"extra": float(loss.detach())}
    speech = model.model.language_model
    start = len(writer.prefix)
    embedded = speech.embed_tokens(batch["ids"])
    embedded = torch.cat([embedded[:, :start], seen, embedded[:, start + rows * columns :]], 1)
    heard: list[Tensor] = []
    half = len(speech.layers) // 2
    looked: list[Tensor] = []
    hooks = [
        speech.layers[n].register_forward_hook(
            lambda m, i, o: heard.append(o[0] if isinstance(o, tuple) else o)
        )
        for n in (half - 1, half)
    ]
    hooks.append(speech.layers[half].self_attn.register_forward_hook(lambda m, i, o: looked.append(o[1])))
    mask = torch.zeros(batch["allowed"].shape).masked_fill(~batch["allowed"], torch.finfo(torch.float32).min)[
        :, None
    ]
    hidden = speech(
        inputs_embeds=embedded, attention_mask=mask, position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    for hook in hooks:
        hook.remove()
    weights = batch["weights"][:, 1:]
    chosen = weights > 0
    logits = model.lm_head(hidden[:, :-1][chosen])
    labels, weights = batch["ids"][:, 1:][chosen], weights[chosen]
    worth = batch["worth"][:, 1:][chosen]
    each = reply_loss(logits, labels, worth, writer.digits)
    said = (each * weights).sum() / weights.sum()
    loss = said
    figures = {"said": float(said.detach())}
    if worth.any():
        figures["worth"] = float(worth_of(logits, worth, writer.digits))
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


def reply_loss(logits: Tensor, labels: Tensor, worth: Tensor, digits: list[int]) -> Tensor:
    """(N,) cross entropy of each token; for a click's digits, minus the log of their expected worth.

    worth: (N, 10) of each digit, all 0 for other tokens. Any click well inside the structure is a good answer.
    """
    each = F.cross_entropy(logits, labels, reduction="none")
    clicked = worth.any(-1)
    odds = logits[clicked].softmax(-1)[:, digits]
    return each.masked_scatter(clicked, -(odds * worth[clicked]).sum(-1).clamp_min(1e-6).log())


def worth_of(logits: Tensor, worth: Tensor, digits: list[int]) -> Tensor:
    """Mean worth of the most likely digits."""
    clicked = worth.any(-1)
    best = logits[clicked][:, digits].argmax(-1, keepdim=True)
    return worth[clicked].gather(1, best).mean()


@torch.inference_mode()
def measure(model, writer: Writer, data: Slices, numbers: np.ndarray) -> dict[str, float]:
    """First clicks by greedy decoding without augmentation: hit rate, absent recall, false absences, unreadable."""
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
            a = writer.ask(f"Segment the {name}", "")
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
    """The greedy reply to one question about the picture with visual tokens `seen`."""
    opening, places = writer.start(grid)
    after = int(places.max()) + 1
    language = model.model.language_model
    embedded = language.embed_tokens(torch.tensor([opening + suffix]))
    embedded[:, len(writer.prefix) : len(opening)] = seen
    follows = after + torch.arange(len(suffix)).expand(3, -1)
    positions = torch.cat([torch.from_numpy(places), follows], 1)[:, None]
    out = language(inputs_embeds=embedded, position_ids=positions, use_cache=True)
    said: list[int] = []
    for i in range(limit):
        token = int(model.lm_head(out.last_hidden_state[:, -1]).argmax())
        if token in writer.chat.stops:
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


def sampling_weight(data: Slices, n: int) -> float:
    """The sampling weight of slice n: higher with lesions, which are rare, and with small, hard structures."""
    if data.mask(n, "lesion").sum() >= SMALLEST:
        return 2.0
    return 2.5 if any(SMALLEST <= data.mask(n, name).sum() < SMALL for name in ALIKE) else 1.0


def main() -> None:
    parser = command_parser("demo.train_policy", __doc__)
    loop.add_options(parser, Path("build/policy"), steps=9000, rate=1.0e-3)
    parser.add_argument("--start", type=Path, help="a folder made by this command, to start from its weights")
    parser.add_argument(
        "--vision-steps",
        type=int,
        default=1200,
        help="number of first steps that train only the vision tower",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--later-turns", type=float, default=0.35, help="share of batches with a mask")
    args = parser.parse_args()
    with ending(RESUMABLE):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Train, or resume, and write the model. Raises InputError if a file is missing."""
    start = weights_folder(args.start) if args.start else None
    data = load(*args.data)
    loop.prepare(args)
    tokenizer_file = args.out / "tokenizer.json"

    def put_tokenizer() -> None:
        if start and not tokenizer_file.exists():
            tokenizer_file.write_bytes((start / "tokenizer.json").read_bytes())
        if not tokenizer_file.exists():
            make_tokenizer(q.corpus(np.random.default_rng(args.seed))).save(str(tokenizer_file))

    loop.once(put_tokenizer)
    writer = Writer(Tokenizer.from_file(str(tokenizer_file)))
    if start:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(start).float()  # stored in bf16
    else:
        model = Qwen2_5_VLForConditionalGeneration(make_config(writer.tokenizer))
    config = model.config
    model.train()
    show_attention(model)
    heads = ExtraHeads(config.text_config.hidden_size)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *heads.parameters()], lr=args.rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    count = len(data) - args.held
    buckets = Buckets(
        np.asarray(data.aspect[:count]), np.array([sampling_weight(data, n) for n in range(count)])
    )

    def learn(step: int) -> tuple[Tensor, loop.Figures]:
        rng = loop.random(args, step)
        grid, numbers = buckets.draw(args.batch, rng)
        later = rng.random() < args.later_turns
        shown = []
        for n in numbers:
            grey, bits = augmented(data, int(n), rng)
            shown.append(show(writer, grey, bits, float(data.aspect[n]), grid, later, rng))
        seeing = step < args.vision_steps
        batch = collate(writer, shown, grid)
        loss, figures = train_step(model, heads, writer, batch, grid, 1.0 if seeing else 0.5, not seeing)
        if later and "worth" in figures:
            figures["worth_later"] = figures.pop("worth")
        return loss, figures

    def filled(weights: dict[str, Tensor]) -> Qwen2_5_VLForConditionalGeneration:
        probe = Qwen2_5_VLForConditionalGeneration(config).float()
        probe.load_state_dict(weights)
        return probe

    def judge(weights: dict[str, Tensor]) -> loop.Figures:
        return measure(filled(weights), writer, data, np.arange(count, len(data)))

    training = loop.Training(args, model, optimiser, heads)
    weights = training.run(learn, judge, "demo policy", measure_after=args.vision_steps)
    if loop.rank() == 0:
        save_folder(filled(weights), writer.tokenizer, args.out / "model")
        (args.out / "made.json").write_text(json.dumps({k: str(v) for k, v in vars(args).items()}, indent=1))


if __name__ == "__main__":
    main()
