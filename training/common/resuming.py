"""Parts of a training loop: learning rate, averaged weights, atomic checkpoints, curves."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Linear warm-up to `peak`, then a cosine decay to `floor` × `peak` at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t))))


class Averaged:
    """Exponential moving average of a module's parameters and buffers."""

    def __init__(self, module: torch.nn.Module, decay: float = 0.998):
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for k, v in module.state_dict().items():
            if v.dtype.is_floating_point:
                self.state[k].lerp_(v, 1 - decay)
            else:
                self.state[k].copy_(v)


def save_atomically(state: Any, path: Path) -> None:
    """Save with torch.save; a kill while saving leaves the previous file."""
    partial = path.with_suffix(path.suffix + ".part")
    torch.save(state, partial)
    os.replace(partial, path)


class Curves:
    """Figures by step, as JSON lines, a plot and TensorBoard files; truncated to the step where a run resumes."""

    def __init__(self, folder: Path, resumed_at: int = 0, tensorboard: bool = False):
        self.path = folder / "curves.jsonl"
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)
        self.rows: list[dict[str, float]] = []
        if resumed_at and self.path.exists():
            for line in self.path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # a line cut off by a crash
                    self.rows.append(json.loads(line))
            self.rows = [r for r in self.rows if r["step"] <= resumed_at]
        partial = self.path.with_suffix(".part")
        partial.write_text("".join(json.dumps(r) + "\n" for r in self.rows))
        os.replace(partial, self.path)

    def add(self, **row: float) -> None:
        self.rows.append(row)
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))
            self._board.flush()
        print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)

    def plot(self, path: Path, title: str) -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        names = sorted({k for r in self.rows for k in r} - {"step", "seconds", "rate"})
        if not names:
            return
        figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3), squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            points = [(r["step"], r[name]) for r in self.rows if name in r]
            axis.plot(*zip(*points, strict=True), lw=1)
            axis.set_title(name)
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
        figure.suptitle(title)
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        plt.close(figure)
