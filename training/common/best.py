"""The best state of a training, kept while it goes on; and whether the training has collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.common.resuming import save_atomically

BEST = "best.pt"
# More unreadable replies than the kept state has: a collapse also of what never answered well, see Best.
_FORGOTTEN = 0.5


class Best:
    """What was trained when the held questions were answered best, on the disk.

        best = Best(out / BEST, share=0.5)
        why = best.note(step, {"held_quality": 0.8, …}, trained)

    The start (step 0) is what a collapse is told by and goes back to; a training that merely gained nothing
    still ends with a state of its own.

    Attributes:
        step, figures: of the state that is kept; -1 and nothing before the first.
        peak: the best quality so far, and the step that it was measured at.
    """

    def __init__(self, path: Path, share: float = 0.5, device: str = "cpu") -> None:
        """share: a quality below this share of the peak is a collapse, and so is half of the replies unreadable that
        the kept state could write; 0: nothing is."""
        self.path, self._share, self._device = path, share, device
        self.step, self.figures, self.peak = -1, dict[str, float](), (-1.0, -1)
        if path.is_file():
            state = torch.load(path, weights_only=True, map_location=device)
            self.step, self.figures = int(state["step"]), dict(state["figures"])
            self.peak = tuple(state["peak"])

    def note(self, step: int, figures: Mapping[str, float], trained: Mapping[str, torch.Tensor]) -> str:
        """Keep this state if it is the best; the earlier of equal ones stays. Returns why the training collapsed,
        or an empty text."""
        collapsed = self.collapse(figures)
        if collapsed:
            return collapsed
        quality = figures["held_quality"]
        self.peak = max(self.peak, (quality, step), key=lambda each: each[0])
        if self.step <= 0 or quality > self.figures["held_quality"]:
            self.step, self.figures = step, dict(figures)
            weights = {name: each.detach() for name, each in trained.items()}
            state = {"step": step, "figures": self.figures, "peak": self.peak, "trained": weights}
            save_atomically(state, self.path)
        return ""

    def collapse(self, figures: Mapping[str, float]) -> str:
        """Why these figures are a collapse; empty where they are not."""
        now, (best, step) = figures["held_quality"], self.peak
        unreadable = figures.get("held_unreadable", 0.0)
        lost = unreadable - self.figures.get("held_unreadable", 1.0) >= _FORGOTTEN
        if not self._share or (now >= self._share * best and not lost):
            return ""
        return (
            f"collapsed: quality on the held questions {now:.2f}, after {best:.2f} at step {step}; "
            f"{100 * unreadable:.0f} % of the replies cannot be read"
        )

    @torch.no_grad()
    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Put the kept state's weights in place."""
        state: Any = torch.load(self.path, weights_only=True, map_location=self._device)
        for name, parameter in trained.items():
            parameter.copy_(state["trained"][name])
