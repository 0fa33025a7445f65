"""The export for LLaMA-Factory: the same samples as our own training, in a form that its loader takes whole."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from ibis_agent.errors import InputError, OutputError
from ibis_agent.policy.card import load_card, save_card
from ibis_agent.policy.messages import Message
from ibis_agent.policy.qwen25.chat import Chat
from phantom_trajectories import make_trajectories
from PIL import Image
from tiny_models import DEMO_PROMPTS, make_tiny_policy

from training.common.settings import settings_from
from training.sft.llamafactory import check_export, export
from training.sft.settings import SftSettings
from training.sft.turn_data import Turns, check_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_trajectories(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = make_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")
    save_card(dataclasses.replace(load_card(folder), prompts=DEMO_PROMPTS, max_pixels=5000), folder)
    return folder


def settings(data, tiny, **given):
    values = {"model": str(tiny), "data": str(data), "out": "runs/none", "held": 0.5, **given}
    return settings_from(values, SftSettings)


@pytest.fixture(scope="module", params=[0, 2])
def made(request, data, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "ibis"
    export(settings(data, tiny, card={"history": request.param}), folder)
    return folder


def test_a_sample_is_token_by_token_that_of_our_own_training(made, data, tiny):
    card = load_card(made / "card")
    chat = Chat.load(tiny, card)
    ours = Turns(check_data([data], tiny, chat, card, 0.5).places, chat, card)
    theirs = json.loads((made / "ibis.json").read_text())
    assert len(theirs) == len(ours) > 8
    for n in (0, 1, 2, len(ours) - 1):
        *asked, said = theirs[n]["messages"]
        # Their marker stands where our picture does: before the text.
        pictures = [np.asarray(Image.open(made / name).convert("RGB")) for name in theirs[n]["images"]]
        messages, shown = [], 0
        for each in asked:
            marked = each["content"].startswith("<image>")
            text = each["content"].removeprefix("<image>")
            messages.append(Message(each["role"], text, shown if marked else None))
            shown += marked
        encoded = chat.encode(messages, pictures, said["content"])
        assert np.array_equal(encoded.ids, ours[n].ids) and np.array_equal(encoded.pixels, ours[n].pixels)
        assert np.array_equal(encoded.learn, ours[n].learn)


def test_the_export_keeps_the_rules_of_the_loader(made):
    info = json.loads((made / "dataset_info.json").read_text())
    assert set(info) == {"ibis", "ibis_held"}
    assert info["ibis"]["columns"] == {"messages": "messages", "images": "images"}
    assert check_export(made) == sum(len(json.loads((made / f"{name}.json").read_text())) for name in info)
    recipe = yaml.safe_load((made / "sft.yaml").read_text())
    assert recipe["template"] == "qwen2_vl" and recipe["mask_history"] is True
    assert recipe["dataset_dir"] == str(made) and recipe["freeze_vision_tower"] is True
    assert isinstance(recipe["learning_rate"], float)
    assert recipe["image_max_pixels"] == 5000
    for path in (made / "pictures").iterdir():
        width, height = Image.open(path).size
        # Whole cells within the limits: neither that package nor the processor scales them again.
        assert width % 28 == height % 28 == 0 and width * height <= 5000


@pytest.mark.skipif(
    "LLAMAFACTORY_PYTHON" not in os.environ,
    reason="LLAMAFACTORY_PYTHON names no Python with llamafactory, which needs an environment of its own",
)
def test_the_packages_own_loader_takes_every_sample_as_ours(made, data, tiny, tmp_path):
    loader = Path(__file__).with_name("llamafactory_loader.py")
    command = [os.environ["LLAMAFACTORY_PYTHON"], loader, made, tiny, tmp_path / "theirs.npz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = np.load(tmp_path / "theirs.npz")
    card = load_card(made / "card")
    chat = Chat.load(tiny, card)
    ours = Turns(check_data([data], tiny, chat, card, 0.5).places, chat, card)
    assert int(theirs["count"]) == len(ours)
    for n in range(len(ours)):
        length = len(ours[n].ids)
        assert np.array_equal(theirs[f"ids{n}"][:length], ours[n].ids)
        assert np.array_equal(theirs[f"labels{n}"][:length] != -100, ours[n].learn)
        assert np.allclose(theirs[f"pixels{n}"], ours[n].pixels, atol=1e-5)
        # That package puts a line break behind the end of a reply.
        assert chat.decode(theirs[f"ids{n}"][length:].tolist()) == "\n"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda sample: sample["messages"].pop(), "alternate"),
        (lambda sample: sample["images"].append("pictures/none.png"), "2 pictures"),
        (lambda sample: sample["messages"][-1].update(content=" "), "empty"),
    ],
)
def test_an_export_that_breaks_a_rule_is_told(data, tiny, tmp_path, change, why):
    export(settings(data, tiny, held=0), tmp_path / "ibis")
    path = tmp_path / "ibis" / "ibis.json"
    samples = json.loads(path.read_text())
    change(samples[1])
    path.write_text(json.dumps(samples))
    with pytest.raises(InputError, match=why):
        check_export(tmp_path / "ibis")


def test_a_question_with_their_marker_is_refused_and_nothing_is_left(data, tiny, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "pictures").symlink_to(data / "pictures")
    lines = [json.loads(line) for line in (data / "trajectories.jsonl").read_text().splitlines()]
    lines[0]["question"] = "Segment the <image> liver."
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="marker"):
        export(settings(folder, tiny, held=0), tmp_path / "ibis")
    assert not (tmp_path / "ibis").exists()
    (tmp_path / "ibis").mkdir()
    (tmp_path / "ibis" / "mine.txt").touch()
    with pytest.raises(OutputError, match="already exists"):
        export(settings(data, tiny), tmp_path / "ibis")
