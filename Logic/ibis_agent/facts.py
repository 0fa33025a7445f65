"""A fact in words for people, with the value behind it for programs."""

from __future__ import annotations

from typing import Any


class Fact(str):
    """Words; `value` is the number, list or object that they tell."""

    value: Any

    def __new__(cls, words: str, value: Any) -> Fact:
        made = super().__new__(cls, words)
        made.value = value
        return made


def values(facts: dict[str, str]) -> dict[str, Any]:
    """The facts for a program; those whose value is None are told by others already."""
    given = {term: fact.value if isinstance(fact, Fact) else fact for term, fact in facts.items()}
    return {term: value for term, value in given.items() if value is not None}
