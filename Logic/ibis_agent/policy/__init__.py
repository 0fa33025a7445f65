"""Policies, one package per kind. `open` and `find` alone decide which kind a folder or address is.

policy = open("policies/ibis-7b")        # a folder, a server's address, or "demo"
policy.reply(observe(policy.card, Situation(rgb, "Segment the liver")))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ibis_agent.errors import ModelError

if TYPE_CHECKING:
    from ibis_agent.policy.contract import Policy, PolicySource
    from ibis_agent.policy.training_contract import Trainable

DEMO = "demo"


def is_address(where: object) -> bool:
    """Whether a policy is given by a server's address."""
    return isinstance(where, str) and where.lower().startswith(("http://", "https://"))


def find(
    where: str | os.PathLike[str] | PolicySource | None = DEMO,
    model: str = "",
    card: str | os.PathLike[str] | None = None,
    agreed: str = "",
) -> PolicySource:
    """The policy at `where` without loading it: its card, whether it can be used, and the memory it needs.

    Args:
        where: a policy's folder, a server's address (http:// or https://), or "demo" or None for the demonstration
            policy of this package. A PolicySource is returned unchanged.
        model: the model's name on a server.
        card: for a server, the policy's card or a folder with one; None for the published settings.
        agreed: the host that the user agreed to send pictures to.

    Raises InputError, ModelError.
    """
    if where is not None and not isinstance(where, (str, os.PathLike)):
        return where
    if isinstance(where, str) and is_address(where):
        from ibis_agent.policy.remote.source import RemoteAddress

        return RemoteAddress(where, model, card, agreed)
    from ibis_agent.policy.generic.source import GenericFolder, has_own_network
    from ibis_agent.policy.qwen25.source import Qwen25Folder, demo_folder

    folder = demo_folder() if where is None or where == DEMO else Path(where)
    if folder.is_file():
        served = (
            " Serve a GGUF file with llama-server, and give the server's address."
            if folder.suffix == ".gguf"
            else ""
        )
        raise ModelError(
            "is a file, not a policy folder",
            file=folder,
            remedy=f"Give the folder that contains config.json.{served}",
        )
    return Qwen25Folder(folder) if has_own_network(folder) else GenericFolder(folder)


def trainable(folder: str | os.PathLike[str]) -> Trainable:
    """The policy in a folder, for training. Raises ModelError for families that cannot be trained."""
    from ibis_agent.policy.folder import QWEN25
    from ibis_agent.policy.generic.source import model_type_of
    from ibis_agent.policy.qwen25.training import Qwen25Training

    family = model_type_of(Path(folder))
    if family not in ("", QWEN25):
        raise ModelError(
            "only Qwen2.5-VL can be trained",
            file=Path(folder) / "config.json",
            value=f"model_type {family}",
            remedy="Train it with other tools; the result runs here.",
        )
    return Qwen25Training(folder)


def open(
    where: str | os.PathLike[str] | None = DEMO,
    device: str = "auto",
    precision: str = "auto",
    **server: str,
) -> Policy:
    """Load the policy at `where`, or connect to it. `where` and `server` are the arguments of `find`.

    Args:
        device: "auto" (CUDA if available), "cpu", "cuda" or "cuda:1".
        precision: "fp32", "bf16", "fp16", "fp8", "int4" (bitsandbytes NF4), or "auto": on CUDA bf16, or fp16 on cards
            without it; on a CPU fp32, or bf16 if only that fits.

    Raises InputError, ModelError, NotEnoughMemoryError (a ModelError).
    """
    return find(where, **server).open(device, precision)
