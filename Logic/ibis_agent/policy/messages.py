"""The conversation that asks a policy for one turn, for inference and training alike.

Each kind of policy turns these messages into its own tokens or requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from ibis_agent.policy.card import ModelCard
    from ibis_agent.policy.contract import Turn
from ibis_agent.policy.prompts import Prompts, check_question, fill
from ibis_agent.policy.vocabulary import wording


@dataclass(frozen=True)
class Message:
    """One message. picture: index of the picture that comes before a user's text."""

    role: Literal["system", "user", "assistant"]
    text: str
    picture: int | None = None


def build_messages(card: ModelCard, turn: Turn) -> list[Message]:
    """The conversation up to the user's last message.

    Pictures are numbered as in `pictures_of(card, turn)`. Raises InputError for an invalid question.
    """
    question = wording(check_question(turn.question, card.max_question, card.script), card.vocabulary)
    messages = [Message("system", card.prompts.system)] if card.prompts.system else []
    past = _kept(card, turn)
    for index, (_, reply) in enumerate(past):
        number = turn.number - len(past) + index
        messages.append(Message("user", _user_text(card.prompts, question, number, number > 1), index))
        messages.append(Message("assistant", reply))
    text = _user_text(card.prompts, question, turn.number, turn.has_mask or turn.number > 1)
    if turn.note:
        text += "\n" + turn.note
    messages.append(Message("user", text, len(past)))
    return messages


def pictures_of(card: ModelCard, turn: Turn) -> list[np.ndarray]:
    """The pictures of `build_messages`, earlier turns first; each (H, W, 3) uint8."""
    return [picture for picture, _ in _kept(card, turn)] + [turn.picture]


def _user_text(prompts: Prompts, question: str, number: int, refining: bool) -> str:
    return fill(prompts.refine if refining else prompts.first, question=question, number=number)


def _kept(card: ModelCard, turn: Turn) -> tuple[tuple[np.ndarray, str], ...]:
    return turn.past[-card.history :] if card.history else ()
