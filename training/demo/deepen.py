"""Add vision layers to a trained demo policy without changing its replies.

    python -m training.demo.deepen build/policy --depth 8 --out build/deeper
    python -m training.demo.train_policy --start build/deeper --out build/policy2

A new layer starts as the identity: its output projections are zero, as in Zhang, Dauphin, Ma 2019 (Fixup). It learns
from the first step, and nothing learned is lost.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from training.common.commands import command_parser, ending
from training.demo.empty_policy import save_folder, weights_folder

ADDS = ("attn.proj.", "mlp.down_proj.")  # output projections of a layer


def deepened(model: Qwen2_5_VLForConditionalGeneration, depth: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model with `depth` vision layers: those of `model`, then new identity layers.

    Raises InputError if `model` has as many already.
    """
    vision: Any = model.config.vision_config
    has = vision.depth
    if depth <= has:
        raise InputError("the vision tower already has as many layers", value=f"{depth}, it has {has}")
    config = copy.deepcopy(model.config)
    vision = config.vision_config
    vision.depth, vision.fullatt_block_indexes = depth, list(range(depth))
    deeper = Qwen2_5_VLForConditionalGeneration(config)
    nn.Module.to(deeper, model.dtype)
    deeper.load_state_dict(model.state_dict(), strict=False)
    for block in deeper.model.visual.blocks[has:]:
        for name, weight in block.named_parameters():
            if name.startswith(ADDS):
                nn.init.zeros_(weight)
    return deeper


def main() -> None:
    parser = command_parser("demo.deepen", __doc__)
    parser.add_argument(
        "policy", type=Path, help="a folder made by training.demo.train_policy, or its `model`"
    )
    parser.add_argument("--depth", type=int, required=True, help="new number of vision layers")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with ending():
        folder = weights_folder(args.policy)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).float()
        save_folder(deepened(model, args.depth), tokenizer, args.out)


if __name__ == "__main__":
    main()
