"""Masks that take one bit a pixel: of a volume of 1,500 slices all masks are kept."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class _Bits:
    """An attribute that is set to a bool array, kept as bits, and read as a new array that is read-only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: Any = None) -> np.ndarray:
        bits, shape = owner.__dict__[self._name]
        mask = np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape)
        mask.setflags(write=False)
        return mask

    def __set__(self, owner: Any, mask: np.ndarray) -> None:
        owner.__dict__[self._name] = np.packbits(np.asarray(mask, bool)), np.shape(mask)


def packed(kind: type[T]) -> type[T]:
    """A decorator: the field `mask` of a dataclass is kept packed. Who reads it often keeps what it was given."""
    setattr(kind, "mask", _Bits("mask"))  # noqa: B010  (mypy takes an assignment for another type of the field)
    return kind


def packed_bytes(owner: Any) -> int:
    """Bytes that a packed mask takes."""
    return int(owner.__dict__["mask"][0].nbytes)
