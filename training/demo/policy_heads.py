"""Auxiliary losses of the demo policy: extra heads on its layers, and a target for one attention head.

They exist in training only.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from training.demo.dataset import NAMES
from training.phantoms.phantom import STRUCTURES


class ExtraHeads(nn.Module):
    """Heads for structures, click targets and the overlaid mask at visual tokens, and for the click while replying."""

    def __init__(self, width: int):
        super().__init__()
        self.shares, self.mid_shares = nn.Linear(width, 4 * len(NAMES)), nn.Linear(width, len(NAMES))
        self.targets, self.offsets = nn.Linear(width, len(STRUCTURES)), nn.Linear(width, 2 * len(STRUCTURES))
        self.mid_targets, self.place, self.covered = (
            nn.Linear(width, len(STRUCTURES)),
            nn.Linear(width, 2),
            nn.Linear(width, 1),
        )
        self.aim = nn.Linear(width, 2)
        self.seen_place, self.mid_offsets = nn.Linear(width, 2), nn.Linear(width, 2 * len(STRUCTURES))

    def aim_loss(self, late: Tensor, goals: Tensor) -> Tensor:
        """Loss of predicting the click from `late` (B, L, width). goals: (B, L, 2) x, y, or NaN where there is none."""
        known = ~goals[..., 0].isnan()
        return F.l1_loss(self.aim(late[known]), goals[known]) if known.any() else torch.zeros(())

    def loss(
        self,
        seen: Tensor,
        mid: Tensor | None,
        cells: Tensor,
        targets: Tensor,
        covered: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Loss over the T = rows × columns visual tokens.

        Args:
            seen, mid: (B, T, width), the vision tower's output, and a middle layer of the language model or None.
            cells: (B, T, 4 · structures) shares of the structures in each patch.
            targets: (B, structures, 3) token of the deepest point or -1, and its offset in the token.
            covered: (B, T) share covered by the mask.
        """
        rows, columns = grid
        bce = F.binary_cross_entropy_with_logits
        total = 4 * bce(self.shares(seen), cells) + bce(self.covered(seen)[..., 0], covered)
        known = targets[..., 0] >= 0
        cell = targets[..., 0].clamp_min(0).long()
        total = total + 0.5 * F.cross_entropy(self.targets(seen).transpose(1, 2)[known], cell[known])
        b, s = torch.nonzero(known, as_tuple=True)
        offset = self.offsets(seen).view(*seen.shape[:2], len(STRUCTURES), 2)[b, cell[b, s], s]
        total = total + F.l1_loss(offset, targets[b, s, 1:])
        number = torch.arange(rows * columns)
        place = torch.stack([number % columns / columns, number // columns / rows], -1)
        place = place.float().expand(len(seen), -1, -1)
        total = total + 2 * F.l1_loss(self.seen_place(seen), place)
        if mid is not None:
            coarse = cells.view(*cells.shape[:2], len(NAMES), 4).mean(-1)
            total = total + 2 * bce(self.mid_shares(mid), coarse)
            total = total + 0.5 * F.cross_entropy(self.mid_targets(mid).transpose(1, 2)[known], cell[known])
            total = total + 2 * F.l1_loss(self.place(mid), place)
            offset = self.mid_offsets(mid).view(*mid.shape[:2], len(STRUCTURES), 2)[b, cell[b, s], s]
            total = total + F.l1_loss(offset, targets[b, s, 1:])
        return total


def gaze_loss(attention: Tensor, goals: Tensor, first: int, grid: tuple[int, int]) -> Tensor:
    """Negative log of the attention of one head to the clicked token, while the reply is written.

    attention: (B, L, L) of that head; goals: (B, L, 2) x, y or NaN; first: index of the first visual token.
    """
    rows, columns = grid
    b, at = torch.nonzero(~goals[..., 0].isnan(), as_tuple=True)
    if not len(b):
        return torch.zeros(())
    x, y = goals[b, at].unbind(-1)
    column, row = (x * columns).long().clamp(max=columns - 1), (y * rows).long().clamp(max=rows - 1)
    return -attention[b, at, first + row * columns + column].clamp_min(1e-6).log().mean()


def show_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Make the language model's middle layer return its attention weights, for `gaze_loss`."""
    layers = model.model.language_model.layers
    attention = layers[len(layers) // 2].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation = "eager"
