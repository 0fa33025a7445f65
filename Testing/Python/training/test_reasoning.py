"""Thinking from a teacher that misbehaves in every way a server can, and from templates."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click, Reply, Terminate, format_reply, parse_reply
from ibis_agent.errors import InputError, ModelError
from ibis_agent.files import atomic_write
from ibis_agent.mask.masks import encode_rle, iou
from ibis_agent.policy.remote.connection import retry_after
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.episode import Step
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture
from PIL import Image

from training.trajectories import reasoning
from training.trajectories.generate import NAME, read_trajectories
from training.trajectories.parts import write_png
from training.trajectories.reasoning_checks import checked, messages_for
from training.trajectories.teacher import Pace, Teacher, Unanswered
from training.trajectories.turns import action_of, turn_row

ROOT = Path(__file__).resolve().parents[3]
GOOD = {
    "positive": "The bright organ goes on beyond the green area here, so I add it.",
    "negative": "This dark tissue is fat and does not belong to the organ, so it has to go.",
    "terminate": "The whole organ is covered up to its border, so I leave it as it is.",
    "absent": "None of the organs in this slice looks like it; the slice lies too low.",
}


def shape(side: int = 24) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[6:18, 6:18] = True
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two questions: a structure clicked at twice, the first time wrongly, and one that is not there."""
    truth, half, nothing = shape(), shape() & (np.arange(24) < 12), np.zeros((24, 24), bool)
    rows = [
        (nothing, Click(0.1, 0.1), "beside", nothing),
        (nothing, Click(0.5, 0.5), None, half),
        (half, Click(0.3, 0.8, False), None, truth),
        (truth, Terminate("The liver is segmented."), None, truth),
    ]
    turns = [
        turn_row(number, before, iou(before, truth), action, "Old words.", iou(after, truth), mistake)
        for number, (before, action, mistake, after) in enumerate(rows, 1)
    ]
    absent = turn_row(1, nothing, 1.0, Terminate("There is no spleen here."), "Old words.", 1.0, None)
    common = {"image": "pictures/a.png", "height": 24, "width": 24}
    samples = [
        {
            "id": "a/liver",
            **common,
            "structure": "liver",
            "question": "Segment the liver",
            "target_rle": encode_rle(truth),
            "turns": turns,
        },
        {
            "id": "a/spleen",
            **common,
            "structure": "spleen",
            "question": "Segment the spleen",
            "target_rle": "",
            "turns": [absent],
        },
    ]
    (tmp_path / "pictures").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (24, 24), np.uint8)
    write_png(tmp_path / "pictures" / "a.png", np.repeat(grey[:, :, None], 3, 2))
    with atomic_write(tmp_path / NAME) as path:
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return tmp_path


Behaviour = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes] | None]


class School:
    """A server; `behave(number of the request, body)` gives (status, headers, body), None a good answer."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.behave: Behaviour = lambda number, body: None
        lock = threading.Lock()
        school = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    school.bodies.append(body)
                    school.headers.append(dict(self.headers))
                    number = len(school.bodies)
                status, headers, held = school.behave(number, body) or (200, {}, answer(words_for(body)))
                self.send_response(status)
                for key, value in {"Content-Length": str(len(held)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(held)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def school() -> Iterator[School]:
    open_school = School()
    yield open_school
    open_school.server.shutdown()
    open_school.server.server_close()


def words_for(body: dict[str, Any]) -> str:
    """What a good teacher says to what it was told."""
    told = body["messages"][1]["content"][1]["text"]
    if "not in the picture" in told:
        return said("absent")
    return said(
        "positive" if "positive point" in told else "negative" if "negative point" in told else "terminate"
    )


def said(step: str, thinking: str | None = None, as_step: str | None = None) -> str:
    step_word = as_step or ("terminate" if step == "absent" else step)
    return json.dumps({"thinking": thinking or GOOD[step], "step": step_word})


def answer(text: str) -> bytes:
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


def teacher(school: School, **options: Any) -> Teacher:
    options = {"per_minute": 0, "timeout": 5, "sleep": lambda seconds: None, **options}
    return Teacher(school.url, "wise", **options)


def thoughts(folder: Path) -> list[str]:
    return [turn["thinking"] for sample in read_trajectories(folder) for turn in sample["turns"]]


def test_the_record_of_a_question_says_the_teachers_words_too(folder: Path, school: School) -> None:
    first, _ = read_trajectories(folder)
    picture = Picture(np.zeros((24, 24, 3), np.uint8), PictureGeometry.of_picture(24, 24), None)
    steps = [Step(turn["number"], action_of(turn), "policy", shape(), None, None) for turn in first["turns"]]
    ours = folder / "trajectories" / "a-liver.json"
    ours.parent.mkdir()
    Trajectory.of_slice(picture, first["question"], steps).save(ours)
    reasoning.from_teacher(folder, teacher(school))
    told = Trajectory.load(ours).steps
    assert [step.thinking for step in told] == thoughts(folder)[: len(steps)]
    assert GOOD["positive"] in told[1].reply


def test_every_turn_that_is_learnt_gets_the_teachers_words_and_its_reply_says_them(
    folder: Path, school: School
) -> None:
    before = list(read_trajectories(folder))
    report = reasoning.from_teacher(folder, teacher(school))
    after = list(read_trajectories(folder))
    assert thoughts(folder) == [
        "Old words.",
        GOOD["positive"],
        GOOD["negative"],
        GOOD["terminate"],
        GOOD["absent"],
    ]
    for old, new in zip(before, after, strict=True):
        for was, turn in zip(old["turns"], new["turns"], strict=True):
            action = action_of(turn)
            assert turn["reply"] == format_reply(Reply(turn["thinking"], action))
            assert parse_reply(turn["reply"]).action == action
            assert {**turn, "thinking": "", "reply": ""} == {**was, "thinking": "", "reply": ""}
    assert report["asked"] == report["requests"] == 4 and report["without_answer"]["count"] == 0
    assert report["tokens_in"] == 400 and report["tokens_out"] == 80


def test_the_teacher_sees_the_mask_and_a_ring_and_is_told_no_coordinate(folder: Path, school: School) -> None:
    reasoning.from_teacher(folder, teacher(school), parallel=1)
    for body in school.bodies:
        texts = json.dumps([body["messages"][0]["content"], body["messages"][1]["content"][1]])
        assert not any(number in texts for number in ("0.5", "0.3", "0.8")) and "IoU" not in texts
    told = [body["messages"][1]["content"][1]["text"] for body in school.bodies]
    assert ["missed the structure" in text for text in told] == [True, False, False, False], "the recovery"
    urls = [body["messages"][1]["content"][0]["image_url"]["url"] for body in school.bodies]
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]
    assert {each.shape for each in pictures} == {(768, 768, 3)}

    def yellow(rgb: np.ndarray) -> bool:
        return bool(((rgb == (255, 220, 0)).all(axis=2)).any())

    def green(rgb: np.ndarray) -> bool:
        middle = rgb[250:380, 200:360].astype(int)
        return bool((middle[:, :, 1] - middle[:, :, 0]).mean() > 20)

    assert [yellow(each) for each in pictures] == [True, True, False, False]
    assert [green(each) for each in pictures] == [False, True, True, False]


def test_a_busy_and_a_failing_server_is_asked_again_later_and_later(folder: Path, school: School) -> None:
    waits: list[float] = []
    trouble = {
        1: (429, {"Retry-After": "7"}, b""),
        2: (500, {}, b"oops"),
        3: (503, {}, b""),
        4: (200, {}, b"<html>not what was asked</html>"),
        5: (200, {}, json.dumps({"choices": []}).encode()),
        6: (200, {"Content-Length": "5000"}, b"cut off"),
    }
    school.behave = lambda number, body: trouble.get(number)
    asked = teacher(school, sleep=waits.append, tries=8, timeout=1)
    report = reasoning.from_teacher(folder, asked, parallel=1)
    assert thoughts(folder)[1] == GOOD["positive"] and report["retries"] == 6
    own = [wait for wait in waits if wait > 0.5]
    assert any(wait == pytest.approx(7, abs=0.5) for wait in own), "as long as the server asked for"
    assert max(waits) > 10, "longer and longer"


def test_a_server_that_never_answers_is_given_up_in_time_and_what_came_before_is_kept(
    folder: Path, school: School
) -> None:
    school.behave = lambda number, body: None if number <= 2 else (503, {}, b"")
    report = reasoning.from_teacher(folder, teacher(school, tries=2), parallel=1)
    assert report["without_answer"]["count"] == 2
    assert all("503" in each["reason"] for each in report["without_answer"]["each"])
    assert thoughts(folder)[3:] == ["Old words."] * 2
    with pytest.raises(InputError, match="2 turns have no usable answer"):
        reasoning.from_teacher(folder, teacher(school, tries=1), parallel=1, keep_failed=False)


def test_a_stopped_run_waits_for_nothing_and_asks_for_nothing_again(school: School) -> None:
    asking = Teacher(school.url, "teacher", per_minute=0)

    def behave(number: int, body: Any) -> Any:
        asking.stopped.set()
        return (503, {"Retry-After": "60"}, b"")

    school.behave = behave
    with pytest.raises(Unanswered, match="stopped"):
        asking.ask([{"role": "user", "content": "Why?"}])
    assert len(school.bodies) == 1


def test_a_timeout_counts_as_no_answer(folder: Path, school: School) -> None:
    slow = threading.Event()

    def behave(number: int, body: dict[str, Any]) -> None:
        if number == 1:
            slow.wait(3)

    school.behave = behave
    report = reasoning.from_teacher(folder, teacher(school, timeout=0.5), parallel=1)
    slow.set()
    assert report["retries"] >= 1 and report["without_answer"]["count"] == 0


def test_a_refusal_ends_the_run_and_no_redirection_is_followed(folder: Path, school: School) -> None:
    for status in (401, 404, 302):
        school.bodies.clear()
        school.behave = lambda number, body, status=status: (
            status,
            {"Location": "http://127.0.0.1:1/"},
            b"no such model",
        )
        with pytest.raises(ModelError, match=f"refused: {status}|redirects to another address"):
            reasoning.from_teacher(folder, teacher(school), parallel=1)
        assert len(school.bodies) <= 2
    assert thoughts(folder) == ["Old words."] * 5


def refusing(parameter: str, instead: str = "") -> Behaviour:
    """A server that refuses a parameter as the newer ones do."""
    said = f"Unsupported parameter: '{parameter}' is not supported with this model. {instead}"
    return lambda number, body: (
        (400, {}, json.dumps({"error": {"message": said}}).encode()) if parameter in body else None
    )


def test_a_teacher_that_refuses_max_tokens_or_a_temperature_is_asked_in_its_way(
    folder: Path, school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    school.behave = refusing("max_tokens", "Use 'max_completion_tokens' instead.")
    reasoning.from_teacher(folder, teacher(school), parallel=1)
    refused = ["max_tokens" in body for body in school.bodies]
    assert refused[0] and not any(refused[1:]) and school.bodies[1]["max_completion_tokens"] == 400
    assert "max_completion_tokens" in capsys.readouterr().err
    school.bodies.clear()
    school.behave = refusing("temperature")
    teacher(school).ask(school_messages())
    assert ["temperature" in body for body in school.bodies] == [True, False]
    with pytest.raises(ModelError, match="--max-tokens"):  # no other way is known: one try
        school.behave = refusing("messages")
        teacher(school).ask(school_messages())


def test_a_teacher_that_thinks_all_its_tokens_away_is_asked_once_and_the_option_is_named(
    folder: Path, school: School
) -> None:
    message = {"role": "assistant", "content": None, "reasoning_content": "Let me look ..."}
    thought = {"choices": [{"finish_reason": "length", "message": message}]}
    school.behave = lambda number, body: (200, {}, json.dumps(thought).encode())
    with pytest.raises(ModelError, match=r"all 400 tokens for reasoning.*--max-tokens"):
        reasoning.from_teacher(folder, teacher(school), parallel=1)
    assert len(school.bodies) == 1
    with pytest.raises(ModelError, match="all 4000 tokens"):
        teacher(school, max_tokens=4000).ask(school_messages())
    assert school.bodies[-1]["max_tokens"] == 4000


def school_messages() -> list[dict[str, Any]]:
    return [{"role": "system"}, {"role": "user", "content": [{}, {"text": "a positive point"}]}]


def test_answers_that_cannot_be_used_are_asked_for_again_with_the_reason(
    folder: Path, school: School
) -> None:
    bad = {
        1: "I would click there.",
        2: said("positive", "A point at (0.50, 0.50) adds the part that is missing there."),
    }
    school.behave = lambda number, body: (200, {}, answer(bad[number])) if number in bad else None
    report = reasoning.from_teacher(folder, teacher(school), parallel=1)
    assert thoughts(folder)[1] == GOOD["positive"]
    assert sum(report["answers_refused"].values()) == 2
    assert "numbers" in school.bodies[2]["messages"][-1]["content"]
    school.behave = lambda number, body: (200, {}, answer("never"))
    (folder / reasoning.CACHE).unlink()
    report = reasoning.from_teacher(folder, teacher(school))
    assert report["without_answer"]["count"] == 4 and "JSON" in report["without_answer"]["each"][0]["reason"]


def test_a_run_that_was_stopped_asks_for_nothing_twice(folder: Path, school: School) -> None:
    school.behave = lambda number, body: None if number <= 2 else (401, {}, b"")
    with pytest.raises(ModelError):
        reasoning.from_teacher(folder, teacher(school), parallel=1)
    with (folder / reasoning.CACHE).open("a") as cache:
        cache.write('{"key": "torn off by a ki')
    school.behave = lambda number, body: None
    asked = len(school.bodies)
    report = reasoning.from_teacher(folder, teacher(school), parallel=1)
    assert report["from_cache"] == 2 and report["asked"] == len(school.bodies) - asked == 2
    assert thoughts(folder)[1:] == [GOOD[step] for step in ("positive", "negative", "terminate", "absent")]
    asked = len(school.bodies)
    again = reasoning.from_teacher(folder, teacher(school))
    assert again["asked"] == 0 and len(school.bodies) == asked, "the torn line cost nothing either"
    other = Teacher(school.url, "another", per_minute=0)
    assert reasoning.from_teacher(folder, other)["asked"] == 4, "another teacher has its own answers"


def test_the_key_goes_to_the_teacher_only_and_never_unencrypted_over_the_network(
    folder: Path, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    reasoning.from_teacher(folder, teacher(school))
    assert {headers.get("Authorization") for headers in school.headers} == {"Bearer secret"}
    assert all(b"secret" not in each.read_bytes() for each in folder.rglob("*") if each.is_file())
    with pytest.raises(InputError, match="unencrypted"):
        Teacher("http://teacher.example/v1", "wise")
    with pytest.raises(InputError, match="not a server address"):
        Teacher("teacher.example", "wise")


def test_requests_are_spaced_by_the_rate_and_held_when_the_server_asks() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(30, sleep, lambda: now[0])
    for _ in range(3):
        pace.wait()
    assert slept == [2.0, 2.0]
    pace.hold(9)
    pace.wait()
    assert slept[-1] == 9.0
    assert retry_after("3") == 3.0 and retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def turn_of(folder: Path, step: str) -> tuple[Any, Any]:
    first, second = read_trajectories(folder)
    chosen = {
        "positive": (first, 1),
        "negative": (first, 2),
        "terminate": (first, 3),
        "absent": (second, 0),
    }
    sample, n = chosen[step]
    return sample, sample["turns"][n]


@pytest.mark.parametrize("step", list(GOOD))
def test_good_answers_are_taken_with_or_without_words_around_them(folder: Path, step: str) -> None:
    sample, turn = turn_of(folder, step)
    assert checked(said(step), sample, turn) == GOOD[step]
    assert checked(f"```json\n{said(step)}\n```", sample, turn) == GOOD[step]
    assert messages_for(sample, turn, np.zeros((24, 24, 3), np.uint8))[0]["role"] == "system"


@pytest.mark.parametrize(
    ("step", "thinking", "reason"),
    [
        ("positive", "The organ goes on at 0.52, 0.48 without green there.", "numbers"),
        ("positive", "About 40% of the organ is still missing on this side.", "numbers"),
        ("positive", "The ground truth reaches further than the green area here.", "cannot know"),
        ("positive", "The correct mask reaches further than the green area.", "cannot know"),
        ("positive", "The yellow ring lies on the organ, so a point fits there.", "cannot know"),
        ("positive", "I was told to add a part of the organ here.", "cannot know"),
        ("positive", "The IoU is still low, so more of the organ is needed.", "cannot know"),
        ("positive", "The organ </think> goes on beyond the green area.", "cannot know"),
        ("positive", "A negative point should take this vessel out again.", "contradicts"),
        ("positive", "Everything is covered and I am done with this organ.", "contradicts"),
        ("positive", "The organ is not visible in this slice, so I look on.", "is not"),
        ("negative", "The organ goes on here; a positive point should add it.", "contradicts"),
        ("negative", "On the right side of the picture the green spills over into fat.", "another place"),
        ("terminate", "I place another point at the border of the organ.", "contradicts"),
        ("terminate", "The organ cannot be seen in this slice at all.", "is not"),
        ("absent", "The green area covers the organ up to its border.", "but there is none"),
        ("positive", "Too short.", "characters"),
        ("positive", "So " * 400, "characters"),
    ],
)
def test_answers_that_leak_or_contradict_are_refused(
    folder: Path, step: str, thinking: str, reason: str
) -> None:
    sample, turn = turn_of(folder, step)
    with pytest.raises(ValueError, match=reason):
        checked(said(step, thinking), sample, turn)


def test_an_answer_for_another_step_is_refused_and_spinal_levels_are_no_figures(folder: Path) -> None:
    sample, turn = turn_of(folder, "positive")
    with pytest.raises(ValueError, match="another step"):
        checked(said("positive", as_step="negative"), sample, turn)
    level = "At the level of L2 the organ goes on beyond the green area."
    assert checked(said("positive", level), sample, turn) == level
    for text in ("", "{", "[]", '{"thinking": 3, "step": "positive"}', "}{", '{"step": "positive"}'):
        with pytest.raises(ValueError, match="not a JSON"):
            checked(text, sample, turn)


def test_the_estimate_counts_what_would_be_sent_and_a_yes_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = reasoning.estimate(reasoning.tasks_of(folder, "wise"), 2.0, 10.0)
    assert expected["requests"] == 4 and expected["pictures"] == 1
    cost = (expected["tokens_in"] * 2.0 + expected["tokens_out"] * 10.0) / 1e6
    assert expected["cost"] == pytest.approx(cost)
    far = Teacher("https://teacher.example/v1", "wise", key="")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(InputError, match="no terminal to ask"):
        reasoning.agreed(far, expected, 60, yes=False)
    told = capsys.readouterr().out
    assert "1 PICTURES WILL LEAVE THIS MACHINE" in told and "teacher.example" in told and "4 requests" in told
    assert reasoning.agreed(far, expected, 60, yes=True)
    near = Teacher("http://localhost:8000/v1", "wise", key="")
    assert reasoning.agreed(near, expected, 60, yes=True)
    assert "no picture leaves it" in capsys.readouterr().out


def test_the_command_works_end_to_end_and_sends_nothing_without_a_yes(folder: Path, school: School) -> None:
    command = [sys.executable, "-m", "training.trajectories.reasoning", str(folder), "--teacher", school.url]
    command += ["--model", "wise", "--per-minute", "100000"]
    options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    refused = subprocess.run(command, env={"PYTHONPATH": "Logic"}, **options)
    assert refused.returncode == 1 and "no terminal to ask" in refused.stderr and not school.bodies
    done = subprocess.run([*command, "--yes"], env={"PYTHONPATH": "Logic"}, **options)
    assert done.returncode == 0, done.stderr
    assert "4 asked" in done.stdout and thoughts(folder)[1] == GOOD["positive"]


def test_templates_need_no_network_say_what_went_wrong_before_and_repeat_by_the_seed(folder: Path) -> None:
    assert reasoning.from_templates(folder, "varied", seed=3) == 5
    first = thoughts(folder)
    reasoning.from_templates(folder, "varied", seed=3)
    assert thoughts(folder) == first and "Old words." not in first
    assert first[1].startswith("The last point missed the liver."), "the turn after the one beside"
    assert "spleen" in first[4]
    for text in first:
        assert not any(letter.isdigit() for letter in text)
    reasoning.from_templates(folder, "plain")
    assert thoughts(folder)[3] == "The mask covers the liver well."
