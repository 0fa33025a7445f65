"""What a policy sees and is told before it acts: the one place that builds a Turn.

    turn = observe(card, Situation(rgb, "Segment the liver"))

Runs, rollouts and training samples all come here, so that a policy is trained on what it will be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Turn
from ibis_agent.scan.frame import Frame
from ibis_agent.scan.picture import overlay


def _nothing_yet(done: int) -> np.ndarray | None:
    return None


@dataclass(frozen=True, eq=False)
class Situation:
    """How things stand on one picture.

    Attributes:
        rgb: (H, W, 3) uint8, the picture without a mask.
        question: the person's.
        replies: what was said before each action that was done, oldest first.
        mask_after: how many of them were done → the (H, W) bool mask then; None while nothing was prompted. Asked only
            for what the policy is shown.
        started: there was a mask before the first action; it counts as a turn that was done.
        note: added to the text, see prompts.rejection_note and prompts.retry_note.
        frame: the part of the picture that the policy sees; None for all of it. Replies and note are about that part,
            masks about the whole picture.
    """

    rgb: np.ndarray
    question: str
    replies: Sequence[str] = ()
    mask_after: Callable[[int], np.ndarray | None] = _nothing_yet
    started: bool = False
    note: str = ""
    frame: Frame | None = None


def observe(card: ModelCard, state: Situation) -> Turn:
    """What a policy of this card is asked now: the mask painted over the picture, and what the card keeps of before."""
    done = len(state.replies)
    past = tuple(
        (_seen(card, state, state.mask_after(n)), state.replies[n])
        for n in range(max(0, done - card.history), done)
    )
    mask = state.mask_after(done)
    return Turn(
        picture=_seen(card, state, mask),
        question=state.question,
        number=done + (2 if state.started else 1),
        has_mask=mask is not None,
        past=past,
        note=state.note,
    )


def _seen(card: ModelCard, state: Situation, mask: np.ndarray | None) -> np.ndarray:
    """(H, W, 3) uint8: the picture as the policy sees it; bare while nothing was prompted."""
    rgb = state.rgb
    if state.frame is not None:
        rgb = np.ascontiguousarray(state.frame.crop(rgb))
        mask = None if mask is None else state.frame.crop(mask)
    return rgb if mask is None else overlay(rgb, mask, card.overlay_colour, card.overlay_alpha)
