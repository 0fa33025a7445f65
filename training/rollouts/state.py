"""One turn as rewards and credit see it: what was said, what was done, and the masks around it."""

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
        action: what it asked for; None where the reply could not be read.
        before, after: (H, W) bool, the masks around the action; the same array after an end or no action.
        truth: (H, W) bool.
        number: of the turn, from 1; None where it is not known (the published rows).
        iou_before, iou_after: of the masks with the truth.
        language: that the policy is to write.
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
        """A state whose IoUs are computed here. Raises InputError for masks of different sizes."""
        if not before.shape == after.shape == truth.shape:
            raise InputError(
                "masks and truth must be of one size", value=f"{before.shape}, {after.shape}, {truth.shape}"
            )
        overlaps = iou(before, truth), iou(after, truth)
        return cls(reply, action, before, after, truth, number, *overlaps, language)
