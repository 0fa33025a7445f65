"""The best state of a training run so far, and whether the run has collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.common.resuming import save_atomically

BEST = "best.pt"
# This increase of the share of unreadable replies over the best state is a collapse, even if quality was always low.
_FORGOTTEN = 0.5


class Best:
    """The trainable weights with the best quality on the held-out questions, on disk.

        best = Best(out / BEST, share=0.5)
        why = best.note(step, {"held_quality": 0.8, …}, trained)

    The initial state (step 0) is kept only until the next evaluation: a run that gained nothing still ends with a
    state of its own, but a collapse can go back to the start.

    Attributes:
        step, figures: of the best state; -1 and empty before the first evaluation.
        peak: (best quality so far, its step).
    """

    def __init__(self, path: Path, share: float = 0.5, device: str = "cpu") -> None:
        """share: quality below this share of the peak is a collapse, and so are many more unreadable replies than in
        the best state; 0: never."""
        self.path, self._share, self._device = path, share, device
        self.step, self.figures, self.peak = -1, dict[str, float](), (-1.0, -1)
        if path.is_file():
            state = torch.load(path, weights_only=True, map_location=device)
            self.step, self.figures = int(state["step"]), dict(state["figures"])
            self.peak = tuple(state["peak"])

    def note(self, step: int, figures: Mapping[str, float], trained: Mapping[str, torch.Tensor]) -> str:
        """Keep this state if it is better than the best. Returns the reason for a collapse, or ""."""
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
        """The reason why these figures are a collapse, or ""."""
        now, (best, step) = figures["held_quality"], self.peak
        unreadable = figures.get("held_unreadable", 0.0)
        lost = unreadable - self.figures.get("held_unreadable", 1.0) >= _FORGOTTEN
        if not self._share or (now >= self._share * best and not lost):
            return ""
        return (
            f"collapsed: quality on the held-out questions is {now:.2f}, down from {best:.2f} at step {step}; "
            f"{100 * unreadable:.0f} % of the replies are unreadable"
        )

    def warning(self) -> str:
        """A message if the initial state was better than the kept one, or ""."""
        if self.step <= 0 or self.peak[0] <= self.figures["held_quality"]:
            return ""
        return (
            f"training did not help: quality on the held-out questions was {self.peak[0]:.2f} at step "
            f"{self.peak[1]}, and at best {self.figures['held_quality']:.2f} later, at step {self.step}, which is kept"
        )

    @torch.no_grad()
    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Copy the best state's weights into `trained`."""
        state: Any = torch.load(self.path, weights_only=True, map_location=self._device)
        for name, parameter in trained.items():
            parameter.copy_(state["trained"][name])
