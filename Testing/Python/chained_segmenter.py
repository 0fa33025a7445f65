"""A segmenter whose logits depend on all that it was asked, and replies to drive it with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.contract import PictureSegmenter

SIDE = 12


class ChainedSegmenter(PictureSegmenter):
    """Its logits depend on every click so far and on the logits before, as a hash does: one bit off shows."""

    identity = {"name": "chained", "sha256": "c0"}  # noqa: RUF012

    def __init__(self) -> None:
        self.embedded = 0

    def embed(self, rgb: np.ndarray) -> bytes:
        self.embedded += 1
        return rgb.tobytes()

    def predict(self, embedding: bytes, clicks: Sequence[Click], previous: np.ndarray | None = None) -> Any:
        digest = hashlib.sha256(embedding)
        digest.update(repr([(c.x, c.y, c.positive) for c in clicks]).encode())
        digest.update(b"" if previous is None else previous.tobytes())
        rng = np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
        logits = rng.standard_normal((4, 4)).astype(np.float32)
        mask = np.kron(logits > 0, np.ones((3, 3), bool))
        return SimpleNamespace(mask=mask, logits=logits, score=float(rng.random()), scores=None)


def picture(side: int = SIDE) -> Picture:
    rgb = np.random.default_rng(5).integers(0, 255, (side, side, 3), np.uint8)
    return Picture(rgb, PictureGeometry.of_picture(side, side), None)


def clicking(x: float, y: float = 0.5, positive: bool = True, thought: str = "I look.") -> str:
    return format_reply(Reply(thought, Click(x, y, positive)))


ENDING = format_reply(Reply("It fits.", Terminate("That is the liver.")))
