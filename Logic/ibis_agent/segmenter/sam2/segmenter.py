"""SAM2 as a contract.Segmenter: on pictures (predictor) and through stacks of slices (propagation)."""

from __future__ import annotations

from ibis_agent.segmenter.contract import Following, PictureOf, Way
from ibis_agent.segmenter.sam2.predictor import Sam2Predictor, device_of, precision_on
from ibis_agent.segmenter.sam2.propagation import Propagation

__all__ = ["Sam2Segmenter", "device_of", "precision_on"]


class Sam2Segmenter(Sam2Predictor):
    """See predictor.Sam2Predictor and contract.Segmenter."""

    def follower(
        self,
        picture_of: PictureOf,
        count: int,
        size: tuple[int, int],
        way: Way = "auto",
        following: Following | None = None,
    ) -> Propagation:
        """See contract.Segmenter. way: "auto" is "memory", or "linked" if the memory was never trained."""
        return Propagation(self, picture_of, count, size, way, following)
