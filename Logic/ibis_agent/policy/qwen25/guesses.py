"""Guesses of the next tokens, for speculative decoding.

Sources, in order of preference among equals: the policy's last replies, its card's drafts, and the prompt, which may
show the format of a reply.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Weights for comparing the last twelve tokens; the latest count most.
_WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4, 8], np.int32)
_REMEMBERED = 8


class Guesses:
    """The sources of guesses."""

    def __init__(self, drafts: Sequence[Sequence[int]] = ()) -> None:
        """drafts: the tokens of likely replies."""
        self._drafts = [_Source(each) for each in drafts]
        self._replies: list[_Source] = []

    def remember(self, ids: Sequence[int]) -> None:
        """Add a reply as a source; the latest comes first."""
        source = _Source(ids)
        same = [each for each in self._replies if each.ids != source.ids]
        self._replies = [source, *same][:_REMEMBERED]

    def forget(self) -> None:
        self._replies.clear()

    def beside(self, prompt: Sequence[int] | np.ndarray) -> Proposer:
        """The proposer for one reply, with its prompt's tokens as another source."""
        return Proposer([*self._replies, *self._drafts, _Source(np.asarray(prompt).tolist())])


class Proposer:
    """Proposes the next tokens of a reply."""

    def __init__(self, sources: Sequence[_Source]) -> None:
        self._sources = sources
        self._windows = np.concatenate([each.windows for each in sources] or [_Source(()).windows])
        self._starts = np.cumsum([0, *(len(each.windows) for each in sources)])

    def propose(self, ids: Sequence[int], length: int) -> list[int]:
        """Up to `length` tokens that may follow `ids`.

        They follow the position in a source whose preceding tokens are most similar to the end of `ids`; single tokens
        may differ, such as digits of coordinates. Among equals the first wins.
        """
        if length < 1 or not len(self._windows):
            return []
        alike = (self._windows == _window(ids)) @ _WEIGHTS
        best = int(alike.argmax())
        if not alike[best]:
            return []
        number = int(np.searchsorted(self._starts, best, side="right")) - 1
        end = best - int(self._starts[number]) + 1
        return self._sources[number].ids[end : end + length]


class _Source:
    """A list of tokens, and the window of tokens up to each position."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = [int(each) for each in ids]
        width = len(_WEIGHTS)
        padded = np.array([-1] * (width - 1) + self.ids, np.int32)
        count = max(len(self.ids) - 1, 0)
        self.windows = (
            np.lib.stride_tricks.sliding_window_view(padded, width)[:count]
            if count
            else np.zeros((0, width), np.int32)
        )


def _window(ids: Sequence[int]) -> np.ndarray:
    """The last tokens, padded in front with -1."""
    last = list(ids[-len(_WEIGHTS) :])
    return np.array([-1] * (len(_WEIGHTS) - len(last)) + last, np.int32)
