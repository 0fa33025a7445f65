"""Qwen3-VL that writes MedSAM-Agent's tool calls: from its folder and card to a run, through its own generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import pytest
from ibis_agent.actions import Click, Reply, Terminate
from ibis_agent.cli import commands as cli
from ibis_agent.cli.info import inspect
from ibis_agent.policy.card import load_card
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.run import Run
from ibis_agent.scan.picture import Picture
from ibis_agent.tool_calls import format_call
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from phantom_pictures import liver_picture
from tiny_families import qwen3_vl

BOX = liver_picture()[2]
SAID = [
    format_call(Reply("The liver is the large organ.", BOX)),
    format_call(Reply("Too much on the right.", Click(0.7, 0.5, False))),
    format_call(Reply("It fits.", Terminate("The liver is marked."))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and a card that chooses the language and nothing else of the texts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = qwen3_vl(tmp_path_factory.mktemp("qwen3") / "model")
    card = {"name": "tiny caller", "language": "tool_calls", "history": 1, "max_new_tokens": 160}
    (made / "ibis_model.json").write_text(json.dumps(card))
    return made


@pytest.fixture
def policy(folder: Path) -> Any:
    return policies.open(folder, "cpu", "fp32")


@pytest.fixture(scope="module")
def picture() -> Picture:
    return liver_picture()[0]


class Forced(transformers.LogitsProcessor):
    """Lets `generate` write one text, whatever the network thinks, and then go on with letters."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        self.more = tokenizer("x", add_special_tokens=False)["input_ids"][0]
        self.count = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        due = self.ids[self.count] if self.count < len(self.ids) else self.more
        self.count += 1
        forced = torch.full_like(scores, -torch.inf)
        forced[:, due] = 0
        return forced


def forced(policy: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Forced]:
    """The texts that the next replies will be; gives what was written, for how many tokens."""
    plain, done, left = policy.model.generate, [], iter(texts)

    def generate(**given: Any) -> Any:
        done.append(Forced(policy.chat.tokenizer, next(left)))
        if done[-1].ids[-1:] and "stop_action" in policy.chat.tokenizer.decode(done[-1].ids):
            done[-1].more = policy.chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
        return plain(**given, logits_processor=transformers.LogitsProcessorList(done[-1:]))

    monkeypatch.setattr(policy.model, "generate", generate)
    return done


def test_what_random_weights_write_is_no_action_and_the_run_waits_for_the_person(
    policy: Any, picture: Picture
) -> None:
    turn = observe(policy.card, Situation(picture.rgb, "Segment the liver"))
    assert policy.card.language == "tool_calls" and policy.reply(turn)
    run = Run.on_picture(picture, "Segment the liver", policy, segmenters.open("demo", device="cpu"))
    assert run.step() is None and run.status == "paused"
    run.add(BOX)
    assert run.mask().any()


def test_the_tags_reach_the_network_as_its_own_tokens_and_control_tokens_of_a_question_do_not(
    policy: Any, picture: Picture
) -> None:
    from ibis_agent.policy.messages import build_messages, pictures_of

    situation = Situation(picture.rgb, "Segment <|im_end|> the liver", SAID[:1], lambda done: None)
    turn = observe(policy.card, situation)
    messages = build_messages(policy.card, turn)
    ids = policy.chat.encode(messages, pictures_of(policy.card, turn))["input_ids"][0].tolist()
    written = sum(message.text.count("<tool_call>") for message in messages)
    token = policy.chat.tokenizer.convert_tokens_to_ids
    assert written == 2 and ids.count(token("<tool_call>")) == ids.count(token("</tool_call>")) == written
    assert ids.count(token("<|im_end|>")) == len(messages)


def test_a_run_goes_by_its_tool_calls_and_each_reply_ends_with_its_call(
    policy: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = forced(policy, SAID, monkeypatch)
    segmenter = segmenters.open("demo", device="cpu")
    run = Run.on_picture(picture, "Segment the liver", policy, segmenter)
    assert run.run() == "ended" and run.answer == "The liver is marked."
    assert [step.action for step in run.steps] == [BOX, Click(0.7, 0.5, False), Terminate(run.answer)]
    assert [step.reply for step in run.steps] == SAID
    assert [each.count for each in done[:2]] == [len(each.ids) for each in done[:2]], "it wrote on"
    path = tmp_path / "trajectory.json"
    Trajectory.of(run, "made.png").save(path)
    assert Trajectory.load(path).replay(segmenter).differences == ()


def test_info_names_the_language_and_the_command_line_runs_such_a_folder(
    folder: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "tool calls" in inspect(folder)["Policy"]["actions"]
    assert load_card(folder).prompts.system.count("<tool_call>") == 1
    from ibis_agent.policy.generic.generic import GenericPolicy

    left = iter(SAID)
    monkeypatch.setattr(GenericPolicy, "reply", lambda *_, **__: next(left))
    scan, out = tmp_path / "scan.png", tmp_path / "out"
    Image.fromarray(picture.rgb).save(scan)
    options = [
        "--prompt",
        "Segment the liver",
        "--out",
        out,
        "--policy",
        folder,
        "--quiet",
        "--device",
        "cpu",
    ]
    assert cli.main(["run", str(scan), *map(str, options)]) == 0
    kept = json.loads((out / "trajectory.json").read_text())
    assert [step["reply"] for step in kept["steps"]] == SAID and (out / "mask.png").is_file()
