"""Whether a policy was trained on scans like this one: modality, plane and region of the body."""

from __future__ import annotations

from ibis_agent.policy.card import ModelCard
from ibis_agent.scan.body_region import region_of
from ibis_agent.scan.slices import Slices, Stack


def unfamiliar(card: ModelCard, slices: Slices) -> str:
    """A warning if the card's policy was not trained on what the middle slice shows; otherwise "".

    Photographs are not checked. Of a recorded picture without its scan only the plane is known, and the modality if
    it was recorded.
    """
    if not (card.modalities or card.planes or card.regions):
        return ""
    if not isinstance(slices, Stack) and slices.first != slices.last:
        return ""
    picture = slices.picture((slices.first + slices.last) // 2)
    geometry = picture.geometry
    if geometry.plane == "picture":
        return ""
    values, modality, region = picture.values, picture.modality, ""
    if values is not None and not picture.ct:
        modality = modality or "a scan that does not look like CT"
    if card.regions and values is not None and picture.ct and geometry.plane == "axial":
        region = region_of(values, (geometry.row_mm or 1.0, geometry.col_mm or 1.0))
    return card.outside(modality, geometry.plane, region)
