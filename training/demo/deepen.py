"""Give a trained demo policy more vision layers, without changing what it answers.

    python -m training.demo.deepen build/policy --depth 8 --out build/deeper
    python -m training.demo.train_policy --start build/deeper --out build/policy2

A new layer begins as an exact copy of its input: what it would add is multiplied by weights that are zero, as in
Zhang, Dauphin, Ma 2019 (Fixup). It learns at once, and nothing that was learnt is lost.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from training.common.commands import ending
from training.demo.empty_policy import save_folder, weights_folder

ADDS = ("attn.proj.", "mlp.down_proj.")  # what a layer adds to its input comes out of these


def deepened(model: Qwen2_5_VLForConditionalGeneration, depth: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model whose vision tower has `depth` layers: those of `model`, then new ones that change nothing yet.

    Raises InputError where that is not more than it has.
    """
    vision: Any = model.config.vision_config
    has = vision.depth
    if depth <= has:
        raise InputError("the vision tower has as many layers already", value=f"{depth}, it has {has}")
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "policy", type=Path, help="a folder made by training.demo.train_policy, or its `model`"
    )
    parser.add_argument("--depth", type=int, required=True, help="vision layers it shall have")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with ending():
        folder = weights_folder(args.policy)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).float()
        save_folder(deepened(model, args.depth), tokenizer, args.out)


if __name__ == "__main__":
    main()
