"""Whether a policy was trained on scans like this one: modality, plane and region of the body."""

from __future__ import annotations

from ibis_agent.policy.card import ModelCard
from ibis_agent.scan.slices import Slices


def unfamiliar(card: ModelCard, slices: Slices) -> str:
    """A warning if the card's policy was not trained on what the slices show; otherwise "".

    Photographs are not checked.
    """
    plane = slices.geometry(slices.first).plane
    if plane == "picture" or not (card.modalities or card.planes or card.regions):
        return ""
    return card.outside(slices.subject.modality, plane, slices.subject.region)
