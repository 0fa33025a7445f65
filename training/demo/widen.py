"""Double the channels of a trained demo segmenter after its trunk, without changing its masks.

    python -m training.demo.widen build/segmenter/model.safetensors --config wider.yaml --out build/wider.safetensors
    python -m training.demo.train_segmenter --start build/wider.safetensors --config wider.yaml --out build/segmenter2

A mask is computed from `d_model` / 8 channels. 8 are too few to place a correction at the click, and training a wider
model from scratch takes hours. Every channel is duplicated, as in Net2Net (Chen, Goodfellow, Shlens 2016): layers that
read a duplicated channel split its weight unevenly between the two, so that they can diverge. The memory is not copied
but initialised anew.
"""

from __future__ import annotations

from pathlib import Path

import torch
from ibis_agent.errors import InputError
from ibis_agent.segmenter.sam2.checkpoint import read_weights
from torch import Tensor, nn

from training.common.commands import command_parser
from training.demo.train_segmenter import build, save_model

KEPT = ("image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.", "no_mem_embed")


def widened(old: dict[str, Tensor], model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """Weights for `model`, whose `d_model` is twice that of `old`, with the same masks and scores as `old`.

    Raises InputError if the two differ in more than the width.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    new = model.state_dict()
    for name, target in new.items():
        if not name.startswith(KEPT):
            continue
        weight = old[name].float()
        layer = modules[name.rpartition(".")[0]]
        reads = {nn.Linear: 1, nn.Conv2d: 1, nn.ConvTranspose2d: 0}.get(type(layer))
        for axis, (had, has) in enumerate(zip(weight.shape, target.shape, strict=True)):
            if has == had:
                continue
            if has != 2 * had:
                raise InputError(
                    f"{name} has {had} channels and the configuration {has}: only doubling is possible"
                )
            weight = weight.repeat_interleave(2, axis)
            if name.endswith(".weight") and axis == reads:
                share = torch.rand(
                    [n // 2 if a == axis else n for a, n in enumerate(weight.shape)], generator=generator
                )
                share = 0.2 + 0.6 * share
                weight = weight * torch.stack([share, 1 - share], axis + 1).flatten(axis, axis + 1)
        if ".q_proj." in name and target.shape[0] == 2 * old[name].shape[0]:
            weight = weight / 2**0.5  # twice the products, scaled by the root of twice the channels
        if ".output_hypernetworks_mlps." in name and ".layers.2." in name:
            weight = weight / 2  # twice the products with the picture's channels
        new[name] = weight
    return new


def main() -> None:
    parser = command_parser("demo.widen", __doc__)
    parser.add_argument("weights", type=Path, help="a .safetensors made by training.demo.train_segmenter")
    parser.add_argument("--config", type=Path, required=True, help="the wider architecture, as a SAM2 .yaml")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    save_model(widened(read_weights(args.weights), build(args.config)), args.out, args.config)


if __name__ == "__main__":
    main()
