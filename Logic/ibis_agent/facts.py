"""Facts about a model or a scan: text for people, with a value for programs."""

from __future__ import annotations

from typing import Any


class Fact(str):
    """A text; `value` is the number, list or object that it describes."""

    value: Any

    def __new__(cls, words: str, value: Any) -> Fact:
        made = super().__new__(cls, words)
        made.value = value
        return made


def values(facts: dict[str, str]) -> dict[str, Any]:
    """The facts for programs; those with the value None are omitted."""
    given = {term: fact.value if isinstance(fact, Fact) else fact for term, fact in facts.items()}
    return {term: value for term, value in given.items() if value is not None}
