"""The worker as a real process: its manners on the pipes, its end, and its faults; no models are needed."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.engine import process, protocol
from ibis_agent.engine.question import cut_picture, volume_slices
from ibis_agent.policy.card import ModelCard
from ibis_agent.scan.geometry import Orientation
from worker_transport import LOGIC, image, worker_command, write_script


class Conversation:
    """One worker process spoken to line by line."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            worker_command(*arguments),
            cwd=LOGIC,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.noise: list[str] = []
        self._ids = 0
        self.hello = self.next()

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            message = protocol.decode(line, "event")
            if message is not None:
                return message
            self.noise.append(line.decode("utf-8", "replace"))
        raise EOFError("the worker has ended")

    def send(self, request: str, **fields: Any) -> int:
        assert self.process.stdin is not None
        self._ids += 1
        self.process.stdin.write(protocol.encode({"request": request, "id": self._ids, **fields}))
        self.process.stdin.flush()
        return self._ids

    def do(self, request: str, **fields: Any) -> list[dict[str, Any]]:
        """All events of one request, the last one being its end."""
        number, events = self.send(request, **fields), []
        while True:
            event = self.next()
            if event.get("id") == number:
                events.append(event)
                if event["event"] in ("ready", "done", "error"):
                    return events

    def open(self, folder: Path, session: str = "a") -> dict[str, Any]:
        self.do("load")
        return self.do("ask", session=session, question="Segment the liver", image=image(folder))[-1]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Callable[..., Conversation]]:
    begun: list[Conversation] = []

    def start(**script: Any) -> Conversation:
        begun.append(Conversation("--script", str(write_script(tmp_path, **{"radius": 0.5, **script}))))
        return begun[-1]

    yield start
    for each in begun:
        each.process.kill()
        each.process.wait(10)


def test_the_worker_says_hello_with_its_real_pid_and_a_private_folder(
    talk: Callable[..., Conversation],
) -> None:
    worker = talk()
    hello = worker.hello
    assert hello["event"] == "hello"
    assert hello["pid"] == worker.process.pid
    folder = Path(hello["folder"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert hello["scopes"] == ["slice"]


def test_saying_hello_does_not_import_torch() -> None:
    code = "import sys, ibis_agent.engine.process, ibis_agent.record.run_record as _; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=LOGIC, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_a_question_is_answered_step_by_step(talk: Callable[..., Conversation], tmp_path: Path) -> None:
    worker = talk()
    head = worker.open(tmp_path)["head"]
    assert (
        tmp_path / "slice.npy"
    ).is_file()  # what was not handed over for good is not the worker's to remove
    assert head["picture"]["geometry"]["index"] == 2
    assert (head["picture"]["height"], head["picture"]["width"]) == (48, 40)
    *told, step, done = worker.do("step", session="a", after=[])
    assert "".join(each["text"] for each in told) == step["step"]["reply"]
    assert step["step"]["action"] == {"kind": "click", "x": 0.3, "y": 0.45, "positive": True}
    assert 300 < step["step"]["area_px"] < 450
    assert done["status"] == "ready"
    uids = [step["step"]["uid"]]
    uids.append(worker.do("step", session="a", after=uids)[-2]["step"]["uid"])
    *_, last, done = worker.do("step", session="a", after=uids)
    assert last["step"]["action"] == {"kind": "terminate", "answer": "Liver"}
    assert (done["status"], done["answer"]) == ("ended", "Liver")


def test_a_request_builds_on_the_steps_it_names(talk: Callable[..., Conversation], tmp_path: Path) -> None:
    worker = talk()
    worker.open(tmp_path)
    first = worker.do("step", session="a", after=[])[-2]["step"]
    second = worker.do("step", session="a", after=[first["uid"]])[-2]["step"]
    again = worker.do("step", session="a", after=[first["uid"]])[-2]["step"]
    assert again["number"] == second["number"] == 2
    assert again["mask_rle"] == second["mask_rle"]
    click = {"x": 0.35, "y": 0.5, "positive": True}
    mine = worker.do("add", session="a", after=[], click=click)[-2]["step"]
    assert (mine["number"], mine["by"]) == (1, "person")
    third = worker.do("add", session="a", after=[first["uid"], second["uid"]], click=click)[-2]["step"]
    assert third["number"] == 3


def test_a_run_goes_on_in_a_fresh_worker_exactly(talk: Callable[..., Conversation], tmp_path: Path) -> None:
    old = talk()
    head = old.open(tmp_path)["head"]
    first = old.do("step", session="a", after=[])[-2]["step"]
    second = old.do("step", session="a", after=[first["uid"]])[-2]["step"]
    old.process.kill()
    (tmp_path / "slice.npy").unlink()
    new = talk()
    new.do("load")
    opened = new.do("ask", session="a", question="Segment the liver", head=head, known={first["uid"]: first})[
        -1
    ]
    assert opened["head"]["picture"]["sha256"] == head["picture"]["sha256"]
    resumed = new.do("step", session="a", after=[first["uid"]])[-2]["step"]
    assert resumed["mask_rle"] == second["mask_rle"]


def test_a_rejected_step_is_told_to_the_policy(talk: Callable[..., Conversation], tmp_path: Path) -> None:
    worker = talk()
    worker.open(tmp_path)
    first = worker.do("step", session="a", after=[])[-2]["step"]
    other = worker.do("step", session="a", after=[], rejected=first["uid"])[-2]["step"]
    assert other["number"] == 1
    assert other["uid"] != first["uid"]


def test_what_libraries_print_does_not_reach_the_protocol(
    talk: Callable[..., Conversation], tmp_path: Path
) -> None:
    worker = talk(faults=[{"request": "step", "fault": "garbage"}])
    worker.open(tmp_path)
    assert worker.do("step", session="a", after=[])[-1]["event"] == "done"
    assert not any("library" in each for each in worker.noise)  # print() went to stderr
    worker.process.stdin.close()  # type: ignore[union-attr]
    assert b"library" in worker.process.stderr.read()  # type: ignore[union-attr]


def test_cancel_stops_a_reply_in_the_middle_and_keeps_the_session(
    talk: Callable[..., Conversation], tmp_path: Path
) -> None:
    worker = talk(seconds=0.05, replies=["<think>" + "so " * 500 + "</think>"])
    worker.open(tmp_path)
    number = worker.send("step", session="a", after=[])
    assert worker.next()["event"] == "text"
    worker.send("cancel", target=number)
    pieces = 0
    while (event := worker.next())["event"] == "text":
        pieces += 1
    assert (event["event"], event["kind"]) == ("error", "cancelled")
    assert pieces < 250  # the whole reply has twice as many
    click = {"x": 0.3, "y": 0.4, "positive": True}
    assert worker.do("add", session="a", after=[], click=click)[-1]["event"] == "done"


def test_running_out_of_memory_is_told_in_plain_words_and_nothing_is_lost(
    talk: Callable[..., Conversation], tmp_path: Path
) -> None:
    worker = talk(faults=[{"request": "step", "nth": 2, "fault": "memory"}])
    worker.open(tmp_path)
    first = worker.do("step", session="a", after=[])[-2]["step"]
    (error,) = worker.do("step", session="a", after=[first["uid"]])
    assert error["kind"] == "memory"
    assert "CUDA" not in error["text"]
    assert "kept" in error["remedy"]
    assert worker.do("step", session="a", after=[first["uid"]])[-1]["event"] == "done"


def test_a_mistake_in_the_worker_is_an_error_event_and_not_its_end(
    talk: Callable[..., Conversation], tmp_path: Path
) -> None:
    worker = talk(faults=[{"request": "step", "fault": "error"}])
    worker.open(tmp_path)
    (error,) = worker.do("step", session="a", after=[])
    assert error["kind"] == "internal"
    assert worker.do("step", session="a", after=[])[-1]["event"] == "done"


@pytest.mark.parametrize(
    "request_, kind",
    [
        ({"request": "dance"}, "input"),
        ({"request": "step", "session": "nobody's"}, "input"),
        ({"request": "ask", "session": "a", "question": "?", "scope": "volume"}, "input"),
        (
            {"request": "ask", "session": "a", "question": "Where?", "image": {"file": "none.npy"}},
            "input",
        ),
    ],
)
def test_nonsense_is_refused_and_the_worker_lives_on(
    talk: Callable[..., Conversation], request_: dict[str, Any], kind: str
) -> None:
    worker = talk()
    worker.do("load")
    (error,) = worker.do(**request_)
    assert (error["event"], error["kind"]) == ("error", kind)
    assert worker.do("load")[-1]["event"] == "ready"


def test_the_worker_ends_and_cleans_up_when_its_stdin_closes(talk: Callable[..., Conversation]) -> None:
    worker = talk()
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(10) == 0
    assert not Path(worker.hello["folder"]).exists()


def test_the_worker_ends_even_in_the_middle_of_something_that_hangs(
    talk: Callable[..., Conversation],
) -> None:
    worker = talk(faults=[{"request": "load", "fault": "hang"}])
    worker.send("load")
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(20) == 0
    assert not Path(worker.hello["folder"]).exists()


def test_a_terminated_worker_cleans_up(talk: Callable[..., Conversation]) -> None:
    worker = talk()
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(10)
    assert not Path(worker.hello["folder"]).exists()


def test_ctrl_c_in_the_terminal_is_not_meant_for_the_worker(talk: Callable[..., Conversation]) -> None:
    worker = talk()
    worker.process.send_signal(signal.SIGINT)
    assert worker.do("load")[-1]["event"] == "ready"


def test_what_a_killed_worker_left_is_swept_by_the_next_one(talk: Callable[..., Conversation]) -> None:
    worker = talk()
    worker.process.kill()
    worker.process.wait(10)
    assert Path(worker.hello["folder"]).exists()
    talk()
    assert not Path(worker.hello["folder"]).exists()


def test_folders_of_other_names_and_a_missing_psutil_do_not_keep_a_worker_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = [tmp_path / f"ibis-worker-{name}-x" for name in ("9" * 30, "", "notes")]
    left = tmp_path / f"ibis-worker-{2**31 - 1}-x"  # no system has as many processes
    for folder in (*others, left):
        folder.mkdir()
    with monkeypatch.context() as slicer:
        slicer.setitem(sys.modules, "psutil", None)  # as in Slicer before the installation
        process._sweep()
    assert left.exists()
    process._sweep()
    assert not left.exists() and all(folder.exists() for folder in others)


def test_a_script_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.json"
    path.write_text(json.dumps(["replies"]), encoding="utf-8")
    ended = subprocess.run(
        worker_command("--script", str(path)), cwd=LOGIC, capture_output=True, stdin=subprocess.DEVNULL
    )
    assert ended.returncode != 0
    assert b"not a script" in ended.stderr


@pytest.mark.parametrize(
    ("lowest", "modality", "shown", "expected"),
    [
        (-100, "", [0, 50], (-160, 240)),
        (0, "CT", [0, 50], (-160, 240)),
        (0, "", [0, 50], (0, 50)),
        (-100, "MR", [0, 50], (0, 50)),
        (0, "MR", None, (0, 60)),
    ],
)
def test_a_policy_s_window_for_ct_is_not_used_on_what_cannot_be_ct(
    tmp_path: Path, lowest: int, modality: str, shown: list[int] | None, expected: tuple[int, int]
) -> None:
    asked = {**image(tmp_path), "window": None, "shown": shown, "modality": modality}
    voxels = np.load(asked["file"])
    np.save(asked["file"], np.where(voxels < 0, lowest, voxels).astype(np.int16))
    card = ModelCard(name="scripted", orientation=Orientation.RADIOLOGICAL, window=(-160.0, 240.0))
    assert cut_picture(asked, card).window == expected
    assert volume_slices(asked, card, None).window == expected
