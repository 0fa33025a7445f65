"""Policies, one package a kind, and `open`, the one place that tells the kinds apart.

policy = open("policies/ibis-7b")        # a folder, or "demo"
policy.reply(observe(policy.card, Situation(rgb, "Segment the liver")))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibis_agent.policy.contract import Policy
    from ibis_agent.policy.qwen25.source import Qwen25Folder

DEMO = "demo"


def find(where: str | os.PathLike[str] | None = DEMO) -> Qwen25Folder:
    """What lies at `where`, told without loading it: its card, whether it can be used, what it needs.

    where: a policy's folder, or "demo" (None, too) for the demonstration policy of this package.
    """
    from ibis_agent.policy.qwen25.source import Qwen25Folder, demo_folder

    return Qwen25Folder(demo_folder() if where is None or where == DEMO else where)


def open(
    where: str | os.PathLike[str] | None = DEMO, device: str = "auto", precision: str = "auto"
) -> Policy:
    """Load the policy at `where`, see `find`.

    Args:
        device: "auto" (CUDA where there is a device), "cpu", "cuda" or "cuda:1".
        precision: "fp32", "bf16", "fp16", "int4" (bitsandbytes NF4), or "auto": on CUDA bf16, or fp16 on cards
            without it; on a CPU fp32, or bf16 where only that fits.

    Raises ModelError, NotEnoughMemoryError (a ModelError), naming the file and the remedy.
    """
    return find(where).open(device, precision)
