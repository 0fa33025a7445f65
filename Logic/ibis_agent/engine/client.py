"""The client of the worker process: it starts workers, sends them jobs, and survives their failures.

A `WorkerClient` gets jobs ("one step of this session") and first provides what they need: a process, loaded models, an
open session. If a worker dies, its job fails with a message, and the next job starts a new worker and reopens the
session with its steps. So nothing that a user made exists only in the worker.

Processes are started through a `Transport`; there is no Qt here. Everything runs in the caller's thread, within calls
of this class or callbacks of the transport.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ibis_agent.engine import protocol
from ibis_agent.engine.job import DIED, Job, ModelSettings
from ibis_agent.engine.protocol import Framer, Message


class Transport(Protocol):
    """A running process. Its callbacks come in the thread that created it."""

    def write(self, data: bytes) -> None:
        """Send bytes to the process's stdin. Never blocks, and never raises for a dead process."""

    def finish(self) -> None:
        """Close the process's stdin; it then ends within seconds."""

    def kill(self, pid: int | None) -> None:
        """Kill the process. pid: the worker's own, which may be a child of the started process."""


# Starts a process. Arguments: on_bytes(chunk), on_end(reason for people). Raises OSError.
StartTransport = Callable[[Callable[[bytes], None], Callable[[str], None]], Transport]


@dataclass
class _Sent:
    """The request that the worker is processing, for a job or for what the job needs first."""

    id: int
    request: str
    job: Job
    settings: ModelSettings
    abandoned: bool = False  # its job has been cancelled
    stopping: bool = False  # asked to end early; its result is still awaited


class WorkerClient:
    """Runs jobs one at a time in one worker process.

    - `start`: starts a process, see `StartTransport`.
    - `settings`: the models for the next jobs; may be set at any time.
    - `changed`: called after every change of `state`, `ready` or `memory`.
    - `logged`: called with each line for the log.
    """

    def __init__(
        self,
        start: StartTransport,
        changed: Callable[[], None] = lambda: None,
        logged: Callable[[str], None] = lambda line: None,
    ):
        self.settings = ModelSettings()
        self.ready: Message | None = None  # the last `ready` event of the present worker
        self.hello: Message | None = None
        self.memory: Message | None = None  # device memory, as last reported by the worker
        self.loading = ""  # what is being loaded, for people
        self._start, self._changed, self._logged = start, changed, logged
        self._transport: Transport | None = None
        self._framer = Framer("event")
        self._generation = 0
        self._sent: _Sent | None = None
        self._queue: deque[Job] = deque()
        self._openers: dict[str, Callable[[Path], Message]] = {}
        self._opened: set[str] = set()
        self._loaded: ModelSettings | None = None
        self._ids = 0

    @property
    def state(self) -> str:
        """ "stopped", "starting", "loading", "busy", "stopping" or "idle"."""
        if self._transport is None:
            return "stopped"
        if self.hello is None:
            return "starting"
        if self._sent is None:
            return "idle"
        if self._sent.abandoned or self._sent.stopping:
            return "stopping"
        return "loading" if self._sent.request == "load" else "busy"

    @property
    def waiting(self) -> bool:
        """Whether an awaited job is running or queued, see Job.is_awaited."""
        under_way = self._sent is not None and not self._sent.abandoned and self._sent.job.is_awaited
        return under_way or any(job.is_awaited for job in self._queue)

    @property
    def clicking(self) -> bool:
        """Whether a user's click is running or queued."""
        under_way = self._sent is not None and not self._sent.abandoned and self._sent.job.is_click
        return under_way or any(job.is_click for job in self._queue)

    # Sessions and jobs

    def open(self, session: str, describe: Callable[[Path], Message]) -> None:
        """Register a session. `describe(folder)` writes what the worker needs into its private folder and returns the
        fields of `ask`. It is called again for every new worker, so it must include all steps.
        """
        self._openers[session] = describe

    def close(self, session: str) -> None:
        """Forget a session: its jobs fail as cancelled, and late events are dropped."""
        self._openers.pop(session, None)
        self._give_up_jobs(lambda job: job.session == session)
        if session in self._opened:
            self._opened.discard(session)
            self.submit(Job("close", session=session))

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)
        self._pump()

    def cancel(self, *, but_clicks: bool = False) -> int:
        """Cancel the running job and all queued ones; they fail as cancelled before this returns.

        but_clicks: except the user's clicks. Returns a token for `end_if_stuck`.
        """
        self._give_up_jobs(lambda job: job.is_awaited and not (but_clicks and job.is_click))
        self._changed()
        return self._sent.id if self._sent else 0

    def stop(self, *, but_clicks: bool = False) -> int:
        """Ask a running step or spread to end early and keep its partial result; cancel queued jobs.

        For other requests as `cancel`.
        """
        if self._sent is None or self._sent.request not in ("step", "spread"):
            return self.cancel(but_clicks=but_clicks)
        sent = self._sent
        self._give_up_jobs(
            lambda job: job.is_awaited and job is not sent.job and not (but_clicks and job.is_click)
        )
        if not sent.stopping:
            sent.stopping = True
            self._write({"request": "cancel", "id": 0, "target": sent.id})
        self._changed()
        return sent.id

    def end_if_stuck(self, token: int) -> bool:
        """Kill the worker if the request that `cancel` or `stop` gave this token for is still running.

        Returns whether it was killed.
        """
        sent = self._sent
        if not token or sent is None or sent.id != token or not (sent.abandoned or sent.stopping):
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """Kill the worker. A new one does the queued jobs."""
        self._end("it was terminated", kill=True)

    def shutdown(self) -> None:
        """Close the worker for good, when the application or the panel is closed."""
        self._queue.clear()
        if self._sent:
            self._sent.job._over = True
        self._openers.clear()
        self._end("", kill=False)

    # The worker's side

    def _pump(self) -> None:
        """Send the next request that the first job needs."""
        while self._queue and self._sent is None:
            job = self._queue[0]
            if self._transport is None:
                if self._start_worker(job):
                    return
            elif self.hello is None:
                return
            elif job.needs_models and self._loaded != self.settings:
                self._send("load", job, asdict(self.settings))
            elif job.needs_session and job.session not in self._opened:
                self._open(job)
            elif job.request in ("load", "ask"):  # already done
                self._queue.popleft()
                job.finish(self.ready or {})
            else:
                self._queue.popleft()
                session = {"session": job.session} if job.session else {}
                self._send(job.request, job, {**job.prepare(), **job.fields, **session})

    def _start_worker(self, job: Job) -> bool:
        self._generation += 1
        generation = self._generation
        self._framer = Framer("event")
        try:
            self._transport = self._start(
                lambda chunk: self._on_bytes(generation, chunk),
                lambda reason: self._on_end(generation, reason),
            )
        except OSError as error:
            self._drop(job)
            job.fail(DIED, f"The worker could not be started: {error}")
            return False
        self._changed()
        return True

    def _open(self, job: Job) -> None:
        try:
            assert self.hello is not None
            fields = self._openers[job.session](Path(self.hello["folder"]))
        except Exception as error:  # an error in the scene or on the disk must not break the panel
            self._drop(job)
            job.fail(protocol.INPUT, str(error))
            return
        self._send("ask", job, {**fields, "session": job.session})

    def _send(self, request: str, job: Job, fields: Message) -> None:
        self._ids += 1
        self._sent = _Sent(self._ids, request, job, self.settings)
        self._write({"request": request, "id": self._ids, **fields})
        self._changed()

    def _write(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(protocol.encode(message))

    def _on_bytes(self, generation: int, chunk: bytes) -> None:
        for message in self._framer.feed(chunk) if generation == self._generation else ():
            if isinstance(message, str):
                self._logged(message)
                continue
            try:
                self._on_event(message)
            except (KeyError, TypeError, ValueError) as error:
                self._logged(f"unreadable message from the worker: {type(error).__name__}: {error}")
            if generation != self._generation:  # a callback has just ended this worker
                break
        self._pump()

    def _on_event(self, message: Message) -> None:
        event = message["event"]
        if event == "log":
            self._logged(str(message["text"]))
        elif event == "hello":
            if message["protocol"] != protocol.PROTOCOL or not isinstance(message["folder"], str):
                self._end("it uses a different version of the protocol; restart the application", kill=True)
                return
            self.hello = message
            self._changed()
        elif self._sent is not None and message.get("id") == self._sent.id:
            self._on_answer(self._sent, event, message)
        # Other events belong to an earlier request and are ignored.

    def _on_answer(self, sent: _Sent, event: str, message: Message) -> None:
        job = sent.job
        if "memory" in message:
            self.memory = message["memory"]
        if event == "loading":
            self.loading = str(message.get("text", ""))
        elif event == "text" and not sent.abandoned:
            job.text(str(message["text"]))
        elif event == "retry" and not sent.abandoned:
            job.retry(str(message["text"]))
        elif event == "step" and not sent.abandoned:
            job.step(message)
        elif event == "slice" and not sent.abandoned:
            job.slice(message)
        elif event == "error":
            self._sent, self.loading = None, ""
            if sent.request == "load":
                self._forget_models()
            self._drop(job)
            words = (str(message.get(part) or "").strip() for part in ("text", "remedy"))
            job.fail(str(message.get("kind") or protocol.INTERNAL), " ".join(filter(None, words)))
        elif event in ("ready", "done"):
            self._sent, self.loading = None, ""
            if sent.request in ("load", "unload"):
                self._forget_models()
            if sent.request == "load":
                self.ready, self._loaded = message, sent.settings
            elif sent.request == "ask" and not sent.abandoned:
                self._opened.add(job.session)
                job.opened(message)
            if sent.request == job.request:
                self._drop(job)
                job.finish(message)
        if event not in ("text", "slice"):
            self._changed()

    def _forget_models(self) -> None:
        """Models and sessions are gone; they are loaded and opened again when needed."""
        self.ready, self._loaded = None, None
        self._opened.clear()

    def _drop(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)

    def _give_up_jobs(self, which: Callable[[Job], bool]) -> None:
        given_up = [job for job in self._queue if which(job)]
        self._queue = deque(job for job in self._queue if not which(job))
        if self._sent is not None and which(self._sent.job) and not self._sent.abandoned:
            self._sent.abandoned = True
            self._write({"request": "cancel", "id": 0, "target": self._sent.id})
            given_up.append(self._sent.job)
        for job in given_up:
            job.fail(protocol.CANCELLED, "Stopped.")

    def _on_end(self, generation: int, reason: str) -> None:
        if generation == self._generation and self._transport is not None:
            self._transport = None
            self._end(reason, kill=False)

    def _end(self, reason: str, kill: bool) -> None:
        """Forget this worker, fail its present job, and continue with the queue."""
        transport, self._transport = self._transport, None
        pid = self.hello["pid"] if self.hello else None
        sent, self._sent = self._sent, None
        at_front = self._queue[0] if self._queue and self.hello is None else None
        self.hello, self.memory, self.loading = None, None, ""
        self._generation += 1
        self._forget_models()
        if transport is not None:
            transport.kill(pid if isinstance(pid, int) else None) if kill else transport.finish()
        # The job during which a worker died is not repeated: it may be the cause.
        if sent is not None and sent.stopping:
            sent.job.fail(protocol.CANCELLED, "Stopped.")
        for job in (sent.job if sent else None, at_front):
            if job is not None:
                self._drop(job)
                job.fail(
                    DIED,
                    f"The worker ended unexpectedly ({reason}). Nothing is lost: press Step to continue.",
                )
        self._changed()
        self._pump()
