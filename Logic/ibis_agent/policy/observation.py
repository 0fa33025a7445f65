"""What a policy sees before it acts: the only place that builds a Turn.

    turn = observe(card, Situation(rgb, "Segment the liver"))

Runs, rollouts and training samples all use it, so that training and inference agree.
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
    """The state of an episode on one picture.

    Attributes:
        rgb: (H, W, 3) uint8, the picture without a mask.
        question: the user's question.
        replies: the replies so far, oldest first.
        mask_after: number of replies → the (H, W) bool mask after them; None before the first prompt. Called only for
            the turns that the policy is shown.
        started: there was a starting mask, which counts as a turn.
        note: appended to the text, see prompts.rejection_note and prompts.retry_note.
        frame: the part of the picture that the policy sees; None for the whole picture. Coordinates in replies and
            note refer to the frame, masks to the whole picture.
    """

    rgb: np.ndarray
    question: str
    replies: Sequence[str] = ()
    mask_after: Callable[[int], np.ndarray | None] = _nothing_yet
    started: bool = False
    note: str = ""
    frame: Frame | None = None


def observe(card: ModelCard, state: Situation) -> Turn:
    """The next turn of a policy with this card: the picture with the mask, and the card's number of earlier turns."""
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
    """(H, W, 3) uint8: the picture as the policy sees it, with the mask if there is one."""
    rgb = state.rgb
    if state.frame is not None:
        rgb = np.ascontiguousarray(state.frame.crop(rgb))
        mask = None if mask is None else state.frame.crop(mask)
    return rgb if mask is None else overlay(rgb, mask, card.overlay_colour, card.overlay_alpha)
