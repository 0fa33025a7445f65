"""The client of the worker: what a job is told when a real worker process works, dies, hangs or makes noise."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ibis_agent.engine.client import WorkerClient
from ibis_agent.engine.job import DIED, Job, ModelSettings
from worker_transport import Starter, image, write_script


class Told:
    """Records what a job is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def job(self, request: str, session: str = "", **fields: Any) -> Job:
        return Job(
            request,
            fields,
            session,
            done=lambda message: self.events.append(("done", message)),
            failed=lambda kind, text: self.events.append((kind, text)),
            step=lambda message: self.events.append(("step", message["step"])),
            opened=lambda message: self.events.append(("opened", message)),
        )

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def last(self, name: str) -> Any:
        return next(value for each, value in reversed(self.events) if each == name)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[..., tuple[WorkerClient, Starter]]]:
    starters: list[Starter] = []

    def make(**script: Any) -> tuple[WorkerClient, Starter]:
        starters.append(Starter("--script", str(write_script(tmp_path, **{"radius": 0.5, **script}))))
        return WorkerClient(starters[-1]), starters[-1]

    yield make
    for each in starters:
        each.end_all()


def opener(known: dict[str, Any] | None = None, head: dict[str, Any] | None = None) -> Any:
    def describe(folder: Path) -> dict[str, Any]:
        fields: dict[str, Any] = {"question": "Segment the liver"}
        return {**fields, "head": head, "known": known} if head else {**fields, "image": image(folder)}

    return describe


def test_a_step_brings_about_all_that_it_needs(client: Callable[..., Any]) -> None:
    worker, starter = client()
    told = Told()
    worker.open("a", opener())
    worker.submit(told.job("step", "a", after=[]))
    starter.pump_until(lambda: "done" in told.names())
    assert told.names() == ["opened", "step", "done"]
    assert list(Path(worker.hello["folder"]).iterdir()) == []  # no image stays behind
    assert worker.state == "idle"
    assert worker.ready["card"]["name"] == "scripted"


@pytest.mark.parametrize("fault", ["die", "exit"])
def test_a_worker_that_dies_loses_nothing_and_the_next_step_goes_on(
    client: Callable[..., Any], fault: str
) -> None:
    worker, starter = client(faults=[{"request": "step", "nth": 2, "fault": fault}])
    told = Told()
    worker.open("a", opener())
    worker.submit(told.job("step", "a", after=[]))
    starter.pump_until(lambda: "done" in told.names())
    first, head = told.last("step"), told.last("opened")["head"]
    worker.open("a", opener({first["uid"]: first}, head))
    worker.submit(told.job("step", "a", after=[first["uid"]]))
    starter.pump_until(lambda: DIED in told.names())
    assert worker.state == "stopped"
    worker.submit(told.job("step", "a", after=[first["uid"]]))
    starter.pump_until(lambda: told.names()[-1] == "done")
    assert told.last("step")["number"] == 2
    assert len(starter.started) == 2


@pytest.mark.parametrize("fault", ["garbage", "flood"])
def test_noise_on_stdout_does_not_disturb(client: Callable[..., Any], fault: str) -> None:
    worker, starter = client(faults=[{"request": "step", "fault": fault}])
    told = Told()
    worker.open("a", opener())
    worker.submit(told.job("step", "a", after=[]))
    starter.pump_until(lambda: told.names()[-1:] == ["done"])
    assert told.last("step")["number"] == 1


def test_stop_is_immediate_for_the_person_and_the_worker_follows(client: Callable[..., Any]) -> None:
    worker, starter = client(seconds=0.05, replies=["<think>" + "so " * 500 + "</think>"])
    told = Told()
    worker.open("a", opener())
    worker.submit(told.job("step", "a", after=[]))
    starter.pump_until(lambda: worker.state == "busy" and "opened" in told.names())
    worker.cancel()
    assert told.names()[-1] == "cancelled"
    assert worker.state == "stopping"
    starter.pump_until(lambda: worker.state == "idle")
    assert told.names().count("cancelled") == 1


def test_a_worker_that_does_not_stop_is_ended_and_a_fresh_one_goes_on(client: Callable[..., Any]) -> None:
    worker, starter = client(faults=[{"request": "step", "fault": "hang"}])
    told = Told()
    worker.open("a", opener())
    worker.submit(told.job("step", "a", after=[]))
    starter.pump_until(lambda: worker.state == "busy" and "opened" in told.names())
    starter.started[0].pump(0.5)  # let it begin, so that it cannot see the cancel
    token = worker.cancel()
    starter.started[0].pump(0.3)
    assert worker.state == "stopping"
    click = {"x": 0.3, "y": 0.4, "positive": True}
    worker.submit(told.job("add", "a", after=[], click=click))
    assert worker.end_if_stuck(token)
    starter.pump_until(lambda: told.names()[-1] == "done")
    assert told.last("step")["by"] == "person"
    assert starter.started[0].process.wait(10) != 0


def test_events_of_a_closed_question_never_reach_a_new_one(client: Callable[..., Any]) -> None:
    worker, starter = client(seconds=0.02)
    old, new = Told(), Told()
    worker.open("old", opener())
    worker.submit(old.job("step", "old", after=[]))
    starter.pump_until(lambda: worker.state == "busy" and "opened" in old.names())
    worker.close("old")
    worker.open("new", opener())
    worker.submit(new.job("step", "new", after=[]))
    starter.pump_until(lambda: new.names()[-1:] == ["done"])
    assert old.names() == ["opened", "cancelled"]
    assert new.last("step")["number"] == 1


def test_other_models_are_loaded_when_the_choice_changes(client: Callable[..., Any]) -> None:
    worker, starter = client()
    told = Told()
    worker.open("a", opener())
    worker.submit(told.job("step", "a", after=[]))
    starter.pump_until(lambda: told.names()[-1:] == ["done"])
    first = told.last("step")
    worker.open("a", opener({first["uid"]: first}, told.last("opened")["head"]))
    worker.settings = ModelSettings(policy="/another/folder")
    worker.submit(told.job("step", "a", after=[first["uid"]]))
    starter.pump_until(lambda: told.names().count("done") == 2)
    assert told.names() == ["opened", "step", "done", "opened", "step", "done"]


def test_a_program_that_cannot_start_is_told_and_can_be_tried_again() -> None:
    def refuse(*_: Any) -> Any:
        raise FileNotFoundError("there is no Python at /nowhere")

    worker, told = WorkerClient(refuse), Told()
    worker.submit(told.job("load"))
    worker.submit(told.job("load"))
    assert told.names() == [DIED, DIED]
    assert "/nowhere" in told.last(DIED)


def test_shutdown_ends_the_process_and_tells_nobody(client: Callable[..., Any]) -> None:
    worker, starter = client(seconds=0.05)
    told = Told()
    worker.open("a", opener())
    worker.submit(told.job("step", "a", after=[]))
    starter.pump_until(lambda: worker.state == "busy" and "opened" in told.names())
    worker.shutdown()
    assert told.names() == ["opened"]
    assert starter.started[0].process.wait(10) == 0


def test_a_worker_killed_from_outside_is_noticed_while_it_rests(client: Callable[..., Any]) -> None:
    worker, starter = client()
    told = Told()
    worker.submit(told.job("load"))
    starter.pump_until(lambda: told.names() == ["done"])
    os.kill(worker.hello["pid"], signal.SIGKILL)
    starter.pump_until(lambda: worker.state == "stopped")
    assert worker.ready is None
    worker.submit(told.job("load"))
    starter.pump_until(lambda: told.names() == ["done", "done"])
