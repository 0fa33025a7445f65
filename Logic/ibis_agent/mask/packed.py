"""Masks that take one bit a pixel: of a volume of 1,500 slices all masks are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class _Bits:
    """An attribute that is set to a bool array, kept as bits, and read as a new array that is read-only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: Any = None) -> np.ndarray:
        return _unpack(*owner.__dict__[self._name])

    def __set__(self, owner: Any, mask: np.ndarray) -> None:
        owner.__dict__[self._name] = _pack(mask)


def packed(kind: type[T]) -> type[T]:
    """A decorator: the field `mask` of a dataclass is kept packed. Who reads it often keeps what it was given."""
    setattr(kind, "mask", _Bits("mask"))  # noqa: B010  (mypy takes an assignment for another type of the field)
    return kind


def packed_bytes(owner: Any) -> int:
    """Bytes that a packed mask takes."""
    return int(owner.__dict__["mask"][0].nbytes)


class PackedMasks(Mapping[int, np.ndarray]):
    """(H, W) bool masks by slice, each packed; read-only as they are read."""

    def __init__(self, masks: Iterable[tuple[int, np.ndarray]] = ()) -> None:
        self._packed = {index: _pack(mask) for index, mask in masks}

    def __getitem__(self, index: int) -> np.ndarray:
        return _unpack(*self._packed[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def _pack(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.packbits(np.asarray(mask, bool)), np.shape(mask)


def _unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape)
    mask.setflags(write=False)
    return mask
