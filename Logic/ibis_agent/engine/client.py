"""The side of the worker that stays alive: it starts workers, feeds them jobs, and outlives them.

A `WorkerClient` is given jobs ("one step of this session") and sees to what they need first: a process,
loaded models, an opened session. A worker may die at any time; the job it was doing fails with plain words,
and the next job starts a fresh worker and opens the session there again with the steps that exist. So nothing
that a person made lives only in the worker.

Here: the order of things. Not here: processes (a `Transport` is passed in), Qt, MRML, and what a run consists
of. Everything happens in the caller's thread, inside calls of this class or of the transport's callbacks.
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
    """One process, started at once or refusing. Callbacks come in the thread that made it."""

    def write(self, data: bytes) -> None:
        """Send bytes to the process's stdin; never blocks, never raises for a dead process."""

    def finish(self) -> None:
        """Ask the process to end by closing its stdin; it ends by itself within seconds."""

    def kill(self, pid: int | None) -> None:
        """End the process now. `pid`: the worker's own, which may be a child of the one that was started."""


# Starts a process. Arguments: on_bytes(chunk), on_end(reason in plain words). Raises OSError where it cannot.
StartTransport = Callable[[Callable[[bytes], None], Callable[[str], None]], Transport]


@dataclass
class _Sent:
    """What the worker is doing now: a job, or something that the job needs first."""

    id: int
    request: str
    job: Job
    settings: ModelSettings
    abandoned: bool = False  # the person does not wait for it any more
    stopping: bool = False  # it was asked to end early, and is still waited for


class WorkerClient:
    """Gives one worker process at a time one job at a time.

    - `start`: starts a process (see `StartTransport`).
    - `settings`: the models that jobs shall use; set it at any time, it counts from the next job on.
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
        self.ready: Message | None = None  # the last `ready` event of the living worker, models included
        self.hello: Message | None = None
        self.memory: Message | None = None  # device memory as the worker last told it
        self.loading = ""  # what is being loaded, in words
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
        """Whether a job that somebody still waits for is under way or queued."""
        under_way = self._sent is not None and not self._sent.abandoned and self._sent.job.is_awaited
        return under_way or any(job.is_awaited for job in self._queue)

    @property
    def clicking(self) -> bool:
        """Whether a click of the person's is under way or queued."""
        under_way = self._sent is not None and not self._sent.abandoned and self._sent.job.is_click
        return under_way or any(job.is_click for job in self._queue)

    # What a session is, and what to do

    def open(self, session: str, describe: Callable[[Path], Message]) -> None:
        """Make a session known. `describe(folder)` writes what the worker needs into its private folder and
        returns the fields of `ask`; it is called again for every fresh worker, so it must tell of all
        steps."""
        self._openers[session] = describe

    def close(self, session: str) -> None:
        """Forget a session: its jobs fail as cancelled, its late events are dropped."""
        self._openers.pop(session, None)
        self._give_up_jobs(lambda job: job.session == session)
        if session in self._opened:
            self._opened.discard(session)
            self.submit(Job("close", session=session))

    def submit(self, job: Job) -> None:
        """Do `job` after those already given."""
        self._queue.append(job)
        self._pump()

    def cancel(self, *, but_clicks: bool = False) -> int:
        """Stop what is under way and forget what waits; their jobs fail as cancelled before this returns.

        but_clicks: the person's clicks go on. Returns a token for `end_if_stuck`.
        """
        self._give_up_jobs(lambda job: job.is_awaited and not (but_clicks and job.is_click))
        self._changed()
        return self._sent.id if self._sent else 0

    def stop(self, *, but_clicks: bool = False) -> int:
        """Ask what is under way to come to its end, and forget what waits. What is done by then is still told.

        For work that is worth keeping in parts. As `cancel` otherwise.
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
        """Kill the worker if it still has not stopped what `cancel` or `stop` gave this token for. True if it
        was killed.
        """
        sent = self._sent
        if not token or sent is None or sent.id != token or not (sent.abandoned or sent.stopping):
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """End the worker at once. What waits is done by a fresh one."""
        self._end("it was terminated", kill=True)

    def shutdown(self) -> None:
        """End politely and for good: for when the application or the panel goes away."""
        self._queue.clear()
        if self._sent:
            self._sent.job._over = True
        self._openers.clear()
        self._end("", kill=False)

    # The worker's side

    def _pump(self) -> None:
        """Do the next thing that the first job needs."""
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
            elif job.request in ("load", "ask"):  # nothing is left to do
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
        except Exception as error:  # whatever the scene or the disk refuses must not take the panel along
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
            if (
                generation != self._generation
            ):  # this worker was ended by somebody who was just told something
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
        # Anything else is late: it belongs to something that is over.

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
        """What was loaded is gone, and the sessions with it: they are asked for again when they are needed."""
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
        """Whatever the end was: forget this worker, tell the job it was at, go on with what waits."""
        transport, self._transport = self._transport, None
        pid = self.hello["pid"] if self.hello else None
        sent, self._sent = self._sent, None
        at_front = self._queue[0] if self._queue and self.hello is None else None
        self.hello, self.memory, self.loading = None, None, ""
        self._generation += 1
        self._forget_models()
        if transport is not None:
            transport.kill(pid if isinstance(pid, int) else None) if kill else transport.finish()
        # The job that a worker died of is not tried again: the next one might die of it as well.
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
