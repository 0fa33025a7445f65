"""Replies requested in advance, for a policy that answers several requests in parallel (one on a server).

The first looks at slices spread over a volume do not depend on each other. They are requested together, and each reply
is used when its turn comes. Requests and results are the same as one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ibis_agent.errors import Cancelled
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import IsCancelled, OnText, Policy, Turn

_TICK = 0.05


class Prefetch:
    """Replies in progress, by slice."""

    def __init__(self) -> None:
        self._asked: dict[int, _Asked] = {}

    def ask(self, policy: Policy, turns: Mapping[int, Turn]) -> None:
        """Request these replies, each in its own thread; slices already requested are skipped."""
        for index, turn in turns.items():
            if index not in self._asked:
                self._asked[index] = _Asked(policy, turn)

    def policy_for(self, index: int, policy: Policy) -> Policy:
        """A policy whose next reply is the one requested for this slice; `policy` itself if there is none."""
        asked = self._asked.pop(index, None)
        return policy if asked is None else _Answered(policy, asked)

    def __contains__(self, index: int) -> bool:
        return index in self._asked

    def stop(self) -> None:
        """Cancel and drop all requests."""
        for asked in self._asked.values():
            asked.stopped.set()
        self._asked.clear()


class _Asked:
    """One reply, requested in its own thread."""

    def __init__(self, policy: Policy, turn: Turn) -> None:
        self.turn, self.stopped = turn, threading.Event()
        self._policy, self._done = policy, threading.Event()
        self._text, self._error = "", None
        threading.Thread(target=self._run, daemon=True).start()

    _error: BaseException | None

    def _run(self) -> None:
        try:
            self._text = self._policy.reply(self.turn, None, self.stopped.is_set)
        except BaseException as error:  # raised again by take()
            self._error = error
        finally:
            self._done.set()

    def take(self, cancelled: IsCancelled | None) -> str:
        """Wait for the reply. Raises Cancelled, and whatever the policy raised."""
        while not self._done.wait(_TICK):
            if cancelled is not None and cancelled():
                self.stopped.set()
                raise Cancelled()
        if self._error is not None:
            raise self._error
        return self._text


class _Answered:
    """A policy whose first reply was requested in advance; later ones come from the policy itself."""

    def __init__(self, policy: Policy, asked: _Asked) -> None:
        self.card: ModelCard = policy.card
        self.identity = policy.identity
        self._policy, self._asked = policy, asked

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        asked, self._asked = self._asked, None  # type: ignore[assignment]
        if asked is None:
            return self._policy.reply(turn, on_text, cancelled)
        text = asked.take(cancelled)
        if on_text is not None:
            on_text(text)
        return text
