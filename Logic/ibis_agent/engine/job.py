"""What a worker can be given to do, and the models that it shall do it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ibis_agent.engine.protocol import Message

DIED = "died"  # a kind of failure that only the client can tell


@dataclass(frozen=True)
class ModelSettings:
    """Which models a worker shall hold. "demo" stands for the ones that come with the package."""

    policy: str = "demo"
    segmenter: str = "demo"
    segmenter_config: str = ""
    device: str = "auto"
    precision: str = "auto"
    # Of a policy on a server: its name there, its card, and the host that the person agreed to send pictures to.
    model: str = ""
    card: str = ""
    send_pictures_to: str = ""
    send_slices_to: str = ""  # the same for a segmenter on a server


@dataclass(eq=False)
class Job:
    """One thing to do, and whom to tell. Exactly one of `done` and `failed` is called, once."""

    request: str
    fields: Message = field(default_factory=dict)
    session: str = ""
    done: Callable[[Message], None] = lambda message: None
    failed: Callable[[str, str], None] = lambda kind, text: None  # kind of protocol.py or DIED; plain words
    step: Callable[[Message], None] = lambda message: None
    slice: Callable[[Message], None] = lambda message: None
    text: Callable[[str], None] = lambda piece: None
    retry: Callable[[str], None] = lambda reason: None
    # Takes the answer to `ask`, where one was needed first.
    opened: Callable[[Message], None] = lambda message: None
    prepare: Callable[[], Message] = dict  # fields that are settled only when the job's turn comes
    _over: bool = False

    @property
    def needs_models(self) -> bool:
        return self.request in ("load", "ask", "step", "add", "spread")

    @property
    def needs_session(self) -> bool:
        return self.request in ("ask", "step", "add", "spread")

    @property
    def is_click(self) -> bool:
        """Whether it is a click of the person's, which another click of theirs must not take away."""
        return self.request == "add"

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for it. Tidying up goes on behind the scenes, and is not to be stopped."""
        return self.request not in ("close", "models")

    def fail(self, kind: str, text: str) -> None:
        if not self._over:
            self._over = True
            self.failed(kind, text)

    def finish(self, message: Message) -> None:
        if not self._over:
            self._over = True
            self.done(message)
