"""A worker without models that plays replies and faults from a file, for tests and demonstrations of the panel.

Start it with `python -m ibis_agent.engine --script FILE`; everything else is the real worker. The file:

    {"replies": ["<think>…</think>\\n<action>Positive Point (0.3, 0.4)</action>", …],   one for each turn
     "seconds": 0.02,        between two pieces of a reply
     "loading": 0.5,         seconds for loading the models
     "radius": 0.15,         reach of a click, as a fraction of the picture's width
     "memory": {…}, "fit": {…}   replies for the memory and for `info` (see Engine.memory, protocol.py)
     "segmenter": "demo",    a real segmenter instead (see protocol.py, `load`), with "config" if it needs one
     "faults": [{"request": "step", "nth": 2, "fault": "die"}]}

The script's own segmenter marks pixels near the click with a similar grey value, without torch. Faults: "die", "exit",
"hang", "garbage", "memory", "error", "flood".
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.engine.engine import Cancelled as IsStopped
from ibis_agent.engine.engine import Emit, Engine
from ibis_agent.engine.protocol import Message
from ibis_agent.errors import Cancelled, InputError, ModelError
from ibis_agent.fields import read_json
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import IsCancelled, OnText, Turn
from ibis_agent.scan.geometry import Orientation
from ibis_agent.segmenter.contract import Abilities, PictureSegmenter, Prediction

_PIECE = 4  # letters
_GREY = 26  # largest difference of grey values within a region


class ScriptedEngine(Engine):
    """An engine that plays a script instead of models, and fails where the script says so."""

    def __init__(self, script: Mapping[str, Any], channel: BinaryIO):
        super().__init__()
        self._script, self._channel = script, channel
        if "segmenter" not in script:
            self.scopes = ("slice",)  # its masks cannot be propagated
        self._counts: Counter[str] = Counter()

    @classmethod
    def read(cls, path: Path, channel: BinaryIO) -> ScriptedEngine:
        """Read a script. Raises InputError."""
        script = read_json(path)
        if not isinstance(script, dict) or not isinstance(script.get("replies"), list):
            raise InputError("this is not a script", file=path, remedy="It must contain a list of replies.")
        return cls(script, channel)

    def do(self, request: Message, emit: Emit, cancelled: IsStopped) -> Message:
        name = request["request"]
        self._counts[name] += 1
        for fault in self._script.get("faults", ()):
            if fault["request"] == name and fault.get("nth", 1) == self._counts[name]:
                self._fail(fault["fault"])
        return super().do(request, emit, cancelled)

    def load_policy(self, where: str, device: str, precision: str) -> Any:
        time.sleep(float(self._script.get("loading", 0)))
        return _Replies(self._script["replies"], float(self._script.get("seconds", 0)))

    def load_segmenter(self, where: str, config: str, device: str, agreed: str = "") -> Any:
        if "segmenter" in self._script:
            return super().load_segmenter(
                str(self._script["segmenter"]), str(self._script.get("config", "")), "cpu"
            )
        return _Painter(float(self._script.get("radius", 0.15)))

    def memory(self) -> Message:
        return dict(self._script.get("memory") or super().memory())

    def _info(self, request: Message, emit: Emit, cancelled: IsStopped) -> Message:
        if "fit" in self._script:
            return {"event": "done", "info": dict(self._script["fit"])}
        return super()._info(request, emit, cancelled)

    def _fail(self, fault: str) -> None:
        if fault == "die":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        elif fault == "exit":
            os._exit(3)
        elif fault == "hang":
            while True:
                time.sleep(60)
        elif fault == "garbage":
            self._channel.write(
                b"\x00\xff half a line {\n" + b'{"event": 7}\n["event"]\n{"event":"step","id":1}\n'
            )
            print("printed by a library that thinks stdout is free", flush=True)
        elif fault == "flood":
            self._channel.write(b"x" * 300_000 + b"\n")
        elif fault == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        elif fault == "error":
            raise ValueError("a mistake in the worker's own code")
        else:
            raise InputError("there is no such fault", value=fault)


class _Replies:
    """A policy that gives the reply with the turn's number, and so repeats itself after going back."""

    def __init__(self, replies: Sequence[str], seconds: float):
        self.card = ModelCard(
            name="scripted", orientation=Orientation.RADIOLOGICAL, note="A script, no model"
        )
        self.identity = {"name": "scripted", "sha256": ""}
        self._replies, self._seconds = list(replies), seconds

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        if turn.number > len(self._replies):
            raise ModelError("the script has no reply left", value=f"turn {turn.number}")
        text = self._replies[turn.number - 1]
        for start in range(0, len(text), _PIECE):
            if cancelled is not None and cancelled():
                raise Cancelled()
            if on_text is not None:
                on_text(text[start : start + _PIECE])
            time.sleep(self._seconds)
        return text


class _Painter(PictureSegmenter):
    """A segmenter without a network."""

    can = Abilities(boxes=True, starting_mask=True)

    def __init__(self, radius: float):
        self.identity = {"name": "scripted", "sha256": ""}
        self._radius = radius

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        """The grey picture smoothed by a 3 × 3 mean, (H, W) float."""
        height, width = rgb.shape[:2]
        grey = np.pad(rgb.astype(np.float32).mean(axis=2), 1, mode="edge")
        shifts = [grey[r : r + height, c : c + width] for r in range(3) for c in range(3)]
        return np.asarray(np.mean(shifts, axis=0))

    def predict(
        self, embedding: np.ndarray, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        mask = np.zeros(embedding.shape, dtype=bool) if previous_logits is None else previous_logits > 0
        for click in clicks:
            if isinstance(click, Box):
                mask = self._within(embedding.shape, click)
                continue
            assert isinstance(click, Click)
            mask = (
                mask | self._around(embedding, click)
                if click.positive
                else mask & ~self._around(embedding, click)
            )
        return self.started(mask)

    def started(self, mask: np.ndarray) -> Prediction:
        logits = np.where(mask, 1.0, -1.0).astype(np.float32)
        return Prediction(mask, logits, 0.9, np.array([0.9, 0.5, 0.1], dtype=np.float32))

    def _within(self, shape: tuple[int, ...], box: Box) -> np.ndarray:
        height, width = shape
        rows, cols = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width
        return np.asarray((box.x0 <= cols) & (cols <= box.x1) & (box.y0 <= rows) & (rows <= box.y1))

    def _around(self, grey: np.ndarray, click: Click) -> np.ndarray:
        height, width = grey.shape
        row, col = click.pixel(grey.shape)
        rows, cols = np.ogrid[:height, :width]
        near = np.hypot(rows - row, cols - col) <= self._radius * width
        return np.asarray(near & (np.abs(grey - grey[row, col]) < _GREY))
