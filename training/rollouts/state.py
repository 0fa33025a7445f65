"""One turn as rewards and credit see it: the reply, the action, and the masks before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ibis_agent.actions import Action
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import iou
from ibis_agent.policy.language import IBIS, Language


@dataclass(frozen=True, eq=False)
class State:
    """One turn as the rewards see it.

    Attributes:
        reply: the policy's text.
        action: its action; None if the reply could not be parsed.
        before, after: (H, W) bool masks before and after the action; the same array if the action has no prompt.
        truth: (H, W) bool.
        number: of the turn, from 1; None if unknown (as in the published rows).
        iou_before, iou_after: IoU of the masks with the truth.
        language: the policy's action language.
    """

    reply: str
    action: Action | None
    before: np.ndarray
    after: np.ndarray
    truth: np.ndarray
    number: int | None
    iou_before: float
    iou_after: float
    language: Language = IBIS

    @classmethod
    def of(
        cls,
        reply: str,
        action: Action | None,
        before: np.ndarray,
        after: np.ndarray,
        truth: np.ndarray,
        number: int | None,
        language: Language = IBIS,
    ) -> State:
        """A state with its IoUs computed. Raises InputError for masks of different sizes."""
        if not before.shape == after.shape == truth.shape:
            raise InputError(
                "masks and truth must have the same size",
                value=f"{before.shape}, {after.shape}, {truth.shape}",
            )
        overlaps = iou(before, truth), iou(after, truth)
        return cls(reply, action, before, after, truth, number, *overlaps, language)
