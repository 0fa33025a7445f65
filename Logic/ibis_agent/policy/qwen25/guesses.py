"""What may follow in a reply: guesses from replies that are likely. A wrong one costs nothing but its chance.

Looked for in this order where several are equally alike: the last replies of this policy, the replies that its
card calls usual, and the request itself, whose prompt may show the form of a reply.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# How a place is compared: the last twelve tokens, the latest of them counting most.
_WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4, 8], np.int32)
_REMEMBERED = 8


class Guesses:
    """Sources of guesses, each a list of tokens. `remember` adds a reply; the latest come first."""

    def __init__(self, drafts: Sequence[Sequence[int]] = ()) -> None:
        """drafts: the tokens of each."""
        self._drafts = [_Source(each) for each in drafts]
        self._replies: list[_Source] = []

    def remember(self, ids: Sequence[int]) -> None:
        """A reply that was written: the next one is often like it."""
        source = _Source(ids)
        same = [each for each in self._replies if each.ids != source.ids]
        self._replies = [source, *same][:_REMEMBERED]

    def forget(self) -> None:
        self._replies.clear()

    def beside(self, prompt: Sequence[int] | np.ndarray) -> Proposer:
        """What proposes for one reply, with the tokens of its prompt as a further source."""
        return Proposer([*self._replies, *self._drafts, _Source(np.asarray(prompt).tolist())])

    def propose(self, ids: Sequence[int], length: int) -> list[int]:
        """As `Proposer.propose`, without a prompt."""
        return Proposer([*self._replies, *self._drafts]).propose(ids, length)


class Proposer:
    """Proposes what may follow the tokens so far."""

    def __init__(self, sources: Sequence[_Source]) -> None:
        self._sources = sources
        self._windows = np.concatenate([each.windows for each in sources] or [_Source(()).windows])
        self._starts = np.cumsum([0, *(len(each.windows) for each in sources)])

    def propose(self, ids: Sequence[int], length: int) -> list[int]:
        """Up to `length` tokens that may follow `ids`.

        They are what follows the place in a source whose last tokens are most like those of `ids`; single ones
        may differ, as the digits of coordinates do. Of equal places the first wins.
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
    """One list of tokens, and the window before every place in it."""

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
    """The last tokens; what would lie before the first is -1, as before a source's first."""
    last = list(ids[-len(_WEIGHTS) :])
    return np.array([-1] * (len(_WEIGHTS) - len(last)) + last, np.int32)
