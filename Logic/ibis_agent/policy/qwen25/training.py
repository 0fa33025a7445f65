"""A Qwen2.5-VL folder for training, see policy.trainable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.folder import PolicyFolder, look_into

if TYPE_CHECKING:
    from ibis_agent.policy.qwen25.chat import Chat


class Qwen25Training:
    """See training_contract.Trainable."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def inspect(self, weights_only: bool = False) -> PolicyFolder:
        return look_into(self.folder, weights_only)

    def chat(self, card: ModelCard) -> Chat:
        from ibis_agent.policy.qwen25.chat import Chat

        return Chat.load(self.folder, card)

    def network(self, found: PolicyFolder, device: str, precision: str) -> Any:
        from ibis_agent.policy.qwen25.reference import load_model

        return load_model(found, device, precision)
