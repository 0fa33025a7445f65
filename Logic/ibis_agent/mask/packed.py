"""Masks stored with one bit per pixel, so that all masks of a volume with 1,500 slices fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class _Bits:
    """An attribute that stores a bool array as bits; reading it returns a new read-only array."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: Any = None) -> np.ndarray:
        return _unpack(*owner.__dict__[self._name])

    def __set__(self, owner: Any, mask: np.ndarray) -> None:
        owner.__dict__[self._name] = _pack(mask)


def packed(kind: type[T]) -> type[T]:
    """A decorator: the field `mask` of a dataclass is stored packed. Each access unpacks it, so keep the result."""
    setattr(kind, "mask", _Bits("mask"))  # noqa: B010  (mypy takes an assignment for another type of the field)
    return kind


def packed_bytes(owner: Any) -> int:
    """Size of a packed mask in bytes."""
    return int(owner.__dict__["mask"][0].nbytes)


class PackedMasks(Mapping[int, np.ndarray]):
    """(H, W) bool masks by slice, stored packed; each access returns a new read-only array."""

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
