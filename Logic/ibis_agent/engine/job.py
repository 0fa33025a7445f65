"""Jobs for a worker, and the settings of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ibis_agent.engine.protocol import Message

DIED = "died"  # a kind of failure that only the client reports


@dataclass(frozen=True)
class ModelSettings:
    """The models of a worker. "demo" means those that come with the package."""

    policy: str = "demo"
    segmenter: str = "demo"
    segmenter_config: str = ""
    device: str = "auto"
    precision: str = "auto"
    # For a policy on a server: the model's name there, its card, and the host that may receive pictures.
    model: str = ""
    card: str = ""
    send_pictures_to: str = ""
    send_slices_to: str = ""  # for a segmenter on a server, the host that may receive slices


@dataclass(eq=False)
class Job:
    """A request and its callbacks. Exactly one of `done` and `failed` is called, once."""

    request: str
    fields: Message = field(default_factory=dict)
    session: str = ""
    done: Callable[[Message], None] = lambda message: None
    # Called with a kind of protocol.py or DIED, and a message.
    failed: Callable[[str, str], None] = lambda kind, text: None
    step: Callable[[Message], None] = lambda message: None
    slice: Callable[[Message], None] = lambda message: None
    text: Callable[[str], None] = lambda piece: None
    retry: Callable[[str], None] = lambda reason: None
    opened: Callable[[Message], None] = lambda message: None  # the answer to `ask`, if one was needed
    prepare: Callable[[], Message] = dict  # fields determined when the job is sent
    _over: bool = False

    @property
    def needs_models(self) -> bool:
        return self.request in ("load", "ask", "step", "add", "spread")

    @property
    def needs_session(self) -> bool:
        return self.request in ("ask", "step", "add", "spread")

    @property
    def is_click(self) -> bool:
        """Whether it is a user's click, which a later click must not cancel."""
        return self.request == "add"

    @property
    def is_awaited(self) -> bool:
        """Whether the user waits for it. Background requests are not cancelled."""
        return self.request not in ("close", "models")

    def fail(self, kind: str, text: str) -> None:
        if not self._over:
            self._over = True
            self.failed(kind, text)

    def finish(self, message: Message) -> None:
        if not self._over:
            self._over = True
            self.done(message)
