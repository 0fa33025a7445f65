"""The settings and limits of a run, which are part of its record. No models, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ibis_agent.errors import InputError
from ibis_agent.run.doubtful_slices import Thresholds
from ibis_agent.run.episode import Limits
from ibis_agent.run.key_slice import Search
from ibis_agent.segmenter.contract import Following

Follow = Literal["auto", "memory", "linked", "carry", "alone"]
FOLLOWS: tuple[Follow, ...] = ("auto", "memory", "linked", "carry", "alone")


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        episode: the policy's limits on one slice; None for 20 turns on a single slice, 6 within a volume.
        looks: the most second looks.
        patience_mm: how far propagation continues past the last non-empty slice, to bridge gaps.
        search: the search for the key slice.
        follow: how masks are propagated: "memory", "linked" or "carry" (see Propagation), or "auto". "alone" is for a
            single slice; "auto" chooses it there.
        doubt: which slices deserve a second look.
        following: what counts as the object during propagation.
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
