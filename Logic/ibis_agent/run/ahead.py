"""Replies that are asked for before they are needed, where a policy answers several at once (one on a server).

The first looks at slices spread over a volume do not depend on each other: they are asked together, and each is taken
when its turn comes. What is asked, and what is done with it, is as if they were asked one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ibis_agent.errors import Cancelled
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import IsCancelled, OnText, Policy, Turn

_TICK = 0.05


class Ahead:
    """The replies that are under way, by slice."""

    def __init__(self) -> None:
        self._asked: dict[int, _Asked] = {}

    def ask(self, policy: Policy, turns: Mapping[int, Turn]) -> None:
        """Begin to ask these, each in a thread; those that are under way already go on."""
        for index, turn in turns.items():
            if index not in self._asked:
                self._asked[index] = _Asked(policy, turn)

    def policy_for(self, index: int, policy: Policy) -> Policy:
        """A policy whose next reply is the one that was asked ahead for this slice, if it was."""
        asked = self._asked.pop(index, None)
        return policy if asked is None else _Answered(policy, asked)

    def __contains__(self, index: int) -> bool:
        return index in self._asked

    def stop(self) -> None:
        """Nobody needs them any more."""
        for asked in self._asked.values():
            asked.stopped.set()
        self._asked.clear()


class _Asked:
    """One reply, asked in a thread of its own."""

    def __init__(self, policy: Policy, turn: Turn) -> None:
        self.turn, self.stopped = turn, threading.Event()
        self._policy, self._done = policy, threading.Event()
        self._text, self._error = "", None
        threading.Thread(target=self._run, daemon=True).start()

    _error: BaseException | None

    def _run(self) -> None:
        try:
            self._text = self._policy.reply(self.turn, None, self.stopped.is_set)
        except BaseException as error:  # whoever takes the reply gets the failure
            self._error = error
        finally:
            self._done.set()

    def take(self, cancelled: IsCancelled | None) -> str:
        """The reply. Raises what asking raised, and Cancelled."""
        while not self._done.wait(_TICK):
            if cancelled is not None and cancelled():
                self.stopped.set()
                raise Cancelled()
        if self._error is not None:
            raise self._error
        return self._text


class _Answered:
    """A policy that was asked already: the first reply is that one, later ones come from the policy."""

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
