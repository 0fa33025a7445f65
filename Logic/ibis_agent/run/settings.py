"""How a run goes about it, and where it stops by itself: part of its record. No models, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ibis_agent.errors import InputError
from ibis_agent.run.doubt import Thresholds
from ibis_agent.run.episode import Limits
from ibis_agent.run.key_slice import Search
from ibis_agent.segmenter.contract import Following

Follow = Literal["auto", "memory", "linked", "carry", "alone"]
FOLLOWS: tuple[Follow, ...] = ("auto", "memory", "linked", "carry", "alone")


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        episode: where the policy is stopped on one slice; None for 20 turns on a slice alone, 6 within a volume.
        looks: the most second looks.
        patience_mm: so far beyond its last slice an object is still searched for: gaps are bridged.
        search: how the key slice is looked for.
        follow: from slice to slice by "memory", "linked" or "carry" (see Propagation), or "auto". "alone" is for one
            slice, which "auto" then comes to.
        doubt: which slices deserve a second look.
        following: what counts as the object while it is followed.
    """

    episode: Limits | None = None
    looks: int = 4
    patience_mm: float = 20.0
    search: Search = field(default_factory=Search)
    follow: Follow = "auto"
    doubt: Thresholds = field(default_factory=Thresholds)
    following: Following = field(default_factory=Following)

    def __post_init__(self) -> None:
        if isinstance(self.looks, bool) or not isinstance(self.looks, int) or self.looks < 0:
            raise InputError("the number of second looks must be a whole number from 0", value=self.looks)
