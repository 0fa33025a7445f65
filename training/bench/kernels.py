"""The number of operations of a block of tokens: the kernel launches that a captured graph saves.

    python -m training.bench.kernels

Counted on any machine, with the 28 layers of a 7B and narrow widths, which do not change the number: every operation
that torch dispatches, and those that launch a kernel on a GPU (views do not). The same for a token of transformers'
`generate`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from ibis_agent.policy.qwen25.block import Blocks
from ibis_agent.policy.qwen25.build import random_network
from ibis_agent.policy.qwen25.network import Memory
from torch.utils._python_dispatch import TorchDispatchMode

from training.bench.shapes import SEVEN_B, narrow, plain_model, shape_of
from training.common.commands import command_parser

PROMPT = 40


class Counting(TorchDispatchMode):
    """Counts dispatched operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.work: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        name = str(operation)
        self.all[name] += 1
        if not operation.is_view and name.split(".")[1] not in _STARTS_NOTHING:
            self.work[name] += 1
        return found


_STARTS_NOTHING = frozenset({"_unsafe_view", "_reshape_alias", "empty", "empty_like", "new_empty", "detach"})


def of_a_block(config: dict[str, Any]) -> tuple[int, int]:
    """(operations, kernel launches) of a block of eight tokens."""
    shape = shape_of(config)
    network = random_network(shape, "cpu", "fp32")
    blocks = Blocks(network, capture=False, fixed=True)
    memory = Memory(shape.text, 512, network.language.embeddings)
    memory.length = PROMPT
    with torch.inference_mode(), Counting() as counted:
        blocks.run(memory, list(range(blocks.size)), 0, 200, lambda: None)
    return counted.all.total(), counted.work.total()


def of_a_token(config: dict[str, Any]) -> tuple[int, int]:
    """(operations, kernel launches) of one token of transformers' `generate`: half of what two more tokens add."""
    model = plain_model(config, "cpu", torch.float32)
    ids = torch.arange(3, 3 + PROMPT)[None]
    found = []
    for tokens in (2, 4):
        with torch.inference_mode(), Counting() as counted:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
            )
        found.append((counted.all.total(), counted.work.total()))
    return (found[1][0] - found[0][0]) // 2, (found[1][1] - found[0][1]) // 2


def main() -> None:
    command_parser("bench.kernels", __doc__).parse_args()
    small = narrow(SEVEN_B)
    block, token = of_a_block(small), of_a_token(small)
    print(f"{'28 layers':32}{'operations':>12}{'of these, work':>16}")
    print(f"{'a block of 8 tokens':32}{block[0]:12}{block[1]:16}")
    print(f"{'a token of generate':32}{token[0]:12}{token[1]:16}")


if __name__ == "__main__":
    main()
