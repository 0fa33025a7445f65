"""Supervised fine-tuning: what is learned, what is kept when a run is stopped, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ibis_agent.cli.info import inspect
from ibis_agent.errors import Cancelled, InputError, ModelError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.card import load_card, save_card
from ibis_agent.policy.folder import look_into
from ibis_agent.policy.language import LANGUAGES
from ibis_agent.policy.qwen25.chat import Chat
from ibis_agent.policy.qwen25.source import demo_folder
from phantom_trajectories import make_trajectories
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_families import qwen3_vl
from tiny_models import DEMO_PROMPTS, make_tiny_policy

from training.common.settings import settings_from
from training.grpo import train as grpo
from training.grpo.settings import GrpoSettings
from training.rollouts.samples import IGNORED
from training.rollouts.sampling import BatchPolicy
from training.sft import merge
from training.sft import train as sft
from training.sft.reply_trainer import Batches, ReplyTrainer, last_checkpoint
from training.sft.settings import SftSettings, changed_card
from training.sft.turn_data import Turns, check_data, frame_mismatch, read_record
from training.trajectories.expert import Recipe, drawn_box
from training.trajectories.turns import action_of, turn_row

ROOT = Path(__file__).resolve().parents[3]
BASE = {"tune": "full", "steps": 3, "batch": 3, "rate": 1e-3, "warmup": 0, "digits": 4}
COMMON = {"device": "cpu", "held": 0, "save_every": 2, "log_every": 1, "threads": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_trajectories(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A policy that knows nothing and costs little."""
    folder = make_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")
    save_card(dataclasses.replace(load_card(folder), prompts=DEMO_PROMPTS), folder)
    return folder


@pytest.fixture(scope="module")
def chat():
    return Chat.load(demo_folder(), load_card(demo_folder()))


def settings(data, out, model=None, **given):
    values = {
        "model": str(model or demo_folder()),
        "data": str(data),
        "out": str(out),
        **COMMON,
        **BASE,
        **given,
    }
    return settings_from(values, SftSettings)


@pytest.fixture(scope="module")
def whole(data, tiny, tmp_path_factory):
    """A run that was left alone."""
    out = tmp_path_factory.mktemp("whole")
    sft.fine_tune(settings(data, out, tiny))
    return out


def rows(out):
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


def rows_without_time(out):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(out)]


def test_a_run_leaves_a_policy_its_curves_and_how_it_was_made(whole, tiny):
    assert [row["step"] for row in rows(whole)] == [1, 2, 3]
    assert all(np.isfinite(row["loss"]) for row in rows(whole))
    assert (whole / "curves.png").is_file() and list((whole / "tensorboard").glob("events*"))
    assert look_into(whole / "model").stored_as == "BF16"
    card = load_card(whole / "model")
    assert "3 steps" in card.origin and card.prompts == DEMO_PROMPTS
    made = json.loads((whole / "model" / "training.json").read_text())
    assert made["base"]["sha256"] == look_into(tiny).sha256
    assert made["settings"]["rate"] == 1e-3 and made["data"]["turns_learned"] > 10


def stopped(monkeypatch, how, given):
    """Begin a run, and kill it in its third step, or ask it to stop in its first."""
    real, calls = ReplyTrainer.training_step, []

    def step(*args, **kwargs):
        calls.append(1)
        if how == "killed" and len(calls) == 3:
            raise KeyboardInterrupt
        if how == "asked":
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ReplyTrainer, "training_step", step)
        with pytest.raises(KeyboardInterrupt if how == "killed" else Cancelled):
            sft.fine_tune(given)
    return last_checkpoint(given.out / "checkpoints", clear=False)[1]


def test_a_run_that_was_killed_ends_as_one_left_alone(monkeypatch, whole, data, tiny, tmp_path):
    given = settings(data, tmp_path, tiny)
    assert stopped(monkeypatch, "killed", given) == 2
    real, opened = torch.load, []

    def load(file, *args, **kwargs):
        opened.append((Path(str(file)).name, kwargs.get("weights_only")))
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        sft.fine_tune(given)
    assert opened and all(safely is True for _, safely in opened), "a state from disk is never run as code"
    assert rows_without_time(tmp_path) == rows_without_time(whole)
    left, again = (load_file(out / "model" / "model.safetensors") for out in (whole, tmp_path))
    assert all(torch.equal(values, again[name]) for name, values in left.items())


def test_a_run_that_was_killed_after_its_last_step_does_no_further_one(
    monkeypatch, whole, data, tiny, tmp_path
):
    def ctrl_c(*_):  # raised, not signalled: SIGINT may be ignored where the tests run in the background
        raise KeyboardInterrupt

    given = settings(data, tmp_path, tiny)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "_finish", ctrl_c)
        sft.fine_tune(given)
    sft.fine_tune(given)
    assert rows_without_time(tmp_path) == rows_without_time(whole)
    assert json.loads((tmp_path / "model" / "training.json").read_text())["steps"] == 3
    left, again = (load_file(out / "model" / "model.safetensors") for out in (whole, tmp_path))
    assert all(torch.equal(values, again[name]) for name, values in left.items())


def test_a_lora_run_that_was_asked_to_stop_ends_as_one_left_alone(monkeypatch, data, tiny, tmp_path):
    given = [
        settings(data, tmp_path / name, tiny, tune="lora", steps=2, lora={"dropout": 0.3}) for name in "ab"
    ]
    sft.fine_tune(given[0])
    assert stopped(monkeypatch, "asked", given[1]) == 1
    sft.fine_tune(given[1])
    left, again = (load_file(each.out / "adapter" / "adapter_model.safetensors") for each in given)
    assert any(values.abs().max() > 0 for name, values in left.items() if "lora_B" in name)
    assert all(torch.equal(values, again[name]) for name, values in left.items())


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(monkeypatch, whole, data, tiny):
    monkeypatch.setattr(ReplyTrainer, "train", None)
    assert sft.fine_tune(settings(data, whole, tiny, log_every=3)) == whole / "model"
    with pytest.raises(InputError, match="rate, seed"):
        sft.fine_tune(settings(data, whole, tiny, rate=2e-3, seed=9))


def test_a_checkpoint_that_a_kill_left_in_parts_does_not_count(tmp_path):
    for number, files in ((2, ["whole"]), (4, ["model.safetensors"])):
        (tmp_path / f"checkpoint-{number}").mkdir()
        for file in files:
            (tmp_path / f"checkpoint-{number}" / file).touch()
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", 2)
    assert not (tmp_path / "checkpoint-4").exists()


def test_weights_stored_in_bf16_are_trained_in_fp32(data, tmp_path):
    """A step of a ten-millionth: far below what bf16 can tell apart."""
    tiny = settings(data, tmp_path, rate=1e-7)
    found = look_into(tiny.model)
    assert found.stored_as == "BF16"
    model = sft.trainable_model(tiny, found, "cpu", "bf16")
    assert {values.dtype for values in model.parameters()} == {torch.float32}
    before = {name: values.clone() for name, values in model.named_parameters()}
    for values in model.parameters():
        values.grad = torch.ones_like(values) if values.requires_grad else None
    torch.optim.AdamW(model.parameters(), lr=tiny.rate, weight_decay=0).step()
    for name, values in model.named_parameters():
        assert torch.equal(values, before[name]) == name.startswith("model.visual"), name
        lost = values.bfloat16() == before[name].bfloat16()
        assert lost.float().mean() > 0.9


def test_lora_trains_adapters_in_fp32_and_the_vision_tower_only_when_asked(data, tmp_path):
    found = look_into(demo_folder())
    for vision in (False, True):
        model = sft.trainable_model(
            settings(data, tmp_path, tune="lora", vision=vision), found, "cpu", "bf16"
        )
        trained = {name: values for name, values in model.named_parameters() if values.requires_grad}
        assert trained and all("lora_" in name for name in trained)
        assert {values.dtype for values in trained.values()} == {torch.float32}
        assert any(".visual." in name for name in trained) == vision
        kinds = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained if "language_model" in name}
        assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        frozen = [values for name, values in model.named_parameters() if name not in trained]
        assert {values.dtype for values in frozen} == {torch.bfloat16}


def test_a_step_is_the_same_however_it_is_cut_into_batches(data, tiny, tmp_path):
    sft.fine_tune(settings(data, tmp_path / "one", tiny, steps=1, batch=3))
    sft.fine_tune(
        settings(data, tmp_path / "three", tiny, steps=1, batch=1, accumulate=3, checkpointing=True)
    )
    one, three = rows(tmp_path / "one")[0], rows(tmp_path / "three")[0]
    assert one["loss"] == pytest.approx(three["loss"], rel=1e-4)
    assert one["gradient"] == pytest.approx(three["gradient"], rel=1e-3)


def test_the_demo_policy_is_tuned_by_commands_and_handed_over(monkeypatch, data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "pictures").symlink_to(data / "pictures")
    first = (data / "trajectories.jsonl").read_text().splitlines()[0]
    (folder / "trajectories.jsonl").write_text(first + "\n")
    demo = ROOT / "training" / "configs" / "sft-demo.yaml"
    # Always the same three turns, so that the loss can be compared.
    changes = f"model={demo_folder()} data={folder} out={tmp_path / 'out'} steps=6 batch=3 held=0 warmup=0"
    command = ["sft", str(demo), *changes.split(), "rate=0.001", "log_every=1", "threads=1"]
    monkeypatch.setattr(sys, "argv", command)
    sft.main()
    losses = [row["loss"] for row in rows(tmp_path / "out")]
    assert losses[-1] < 0.8 * losses[0]
    adapter, policy = tmp_path / "out" / "adapter", tmp_path / "policy"
    monkeypatch.setattr(
        sys, "argv", ["merge", str(adapter), "--base", str(demo_folder()), "--out", str(policy)]
    )
    merge.main()
    facts = inspect(policy)["Policy"]
    assert facts["name"] == "Demo policy, fine-tuned" and facts["loads"].startswith("yes")
    assert "LoRA of rank 16, 6 steps" in facts["origin"]
    assert set(look_into(policy).tensors) == set(look_into(demo_folder()).tensors)
    monkeypatch.setattr(sys, "argv", ["sft", str(demo), "rat=1"])
    with pytest.raises(SystemExit, match='Did you mean "rate"'):
        sft.main()


def test_deliberate_mistakes_are_shown_but_not_learned(data, chat):
    card = load_card(demo_folder())
    found = check_data([data], demo_folder(), chat, card)
    assert found.mistakes > 3 and not found.refused
    said = {read_record(place)["turns"][place.turn]["mistake"] for place in found.places}
    assert said == {""}
    with_past = dataclasses.replace(card, history=9)
    place = next(each for each in found.places if each.turn == 2)
    sample = Turns([place], chat, with_past)[0]
    mistake, recovery = (read_record(place)["turns"][n]["reply"] for n in (1, 2))
    assert mistake in chat.decode(sample.ids) and len(sample.grid) == 3
    assert chat.decode(sample.ids[sample.learn]) == recovery


def test_the_digits_of_a_click_weigh_more_and_nothing_else_does(data, chat):
    card = load_card(demo_folder())
    samples = [Turns(check_data([data], demo_folder(), chat, card).places, chat, card)[n] for n in range(4)]
    batch = Batches(chat, LANGUAGES[card.language], 5.0)(samples)
    for row in range(4):
        heavy = batch["input_ids"][row][batch["weights"][row] == 5]
        assert chat.decode(heavy.tolist()).isdigit() or not len(heavy)
        clicks = "Point (" in chat.decode(samples[row].ids[samples[row].learn])
        assert len(heavy) == (10 if clicks else 0)
    assert torch.equal(batch["weights"] > 0, batch["labels"] != IGNORED)


def test_the_digits_of_a_tool_call_weigh_more_too(boxed, tiny):
    card = dataclasses.replace(load_card(tiny), language="tool_calls")
    chat = Chat.load(tiny, card)
    turns = Turns(check_data([boxed], demo_folder(), chat, card).places, chat, card)
    samples = [turns[n] for n in range(4)]
    batch = Batches(chat, LANGUAGES[card.language], 5.0)(samples)
    for row, sample in enumerate(samples):
        heavy = chat.decode(batch["input_ids"][row][batch["weights"][row] == 5].tolist())
        call = re.search(r'_2d": \[([^]]*)', chat.decode(sample.ids[sample.learn]))
        assert re.sub(r"\D", "", heavy) == (re.sub(r"\D", "", call[1]) if call else "")
    assert (batch["weights"] == 5).any()


def test_another_family_than_qwens_is_refused_in_a_line_before_anything_is_made(data, tmp_path):
    folder = qwen3_vl(tmp_path / "qwen3")
    line = r"only Qwen2.5-VL can be trained.*model_type qwen3_vl"
    for begin in (
        lambda: sft.fine_tune(settings(data, tmp_path / "out", folder)),
        lambda: BatchPolicy.load(folder, "cpu"),
        lambda: grpo.train(GrpoSettings(model=folder, out=tmp_path / "out", device="cpu")),
        lambda: merge.merge(adapter_folder(tmp_path), folder, tmp_path / "out"),
    ):
        with pytest.raises(ModelError, match=line):
            begin()
    assert not (tmp_path / "out").exists()


def adapter_folder(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({"lora": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


def test_pictures_that_show_another_frame_than_the_card_are_told(data, tmp_path):
    card = load_card(demo_folder())
    assert frame_mismatch(data, card) == "", "older folders do not tell"
    (tmp_path / "options.json").write_text(json.dumps({"settings": {"choice": {"frame": "slice"}}}))
    assert "the policy sees the body" in frame_mismatch(tmp_path, card)
    assert frame_mismatch(tmp_path, dataclasses.replace(card, frame="slice")) == ""


def test_the_length_is_known_before_the_pictures_are_read(chat):
    from ibis_agent.policy.contract import Turn
    from ibis_agent.policy.messages import build_messages, pictures_of

    card = load_card(demo_folder())
    for height, width in ((100, 100), (150, 337), (512, 40)):
        turn = Turn(np.zeros((height, width, 3), np.uint8), "Segment the liver.", 2, True)
        messages = build_messages(card, turn)
        assert chat.length(messages, [(height, width)]) == len(
            chat.encode(messages, pictures_of(card, turn)).ids
        )


def broken(folder, **changes):
    """The trajectories in a folder with their second line changed."""
    path = folder / "trajectories.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    for key, value in changes.items():
        if key in record:
            record[key] = value
        else:
            record["turns"][0][key] = value
    lines[1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"id": "phantom-0-liver"}, "twice"),
        ({"height": 7}, "another size"),
        ({"image": "pictures/none.png"}, "cannot be read"),
        ({"question": "  "}, "question is empty"),
        ({"target_rle": "nonsense"}, "cannot be decompressed"),
        ({"turns": []}, "at least one turn"),
        ({"reply": "I do not know."}, "no action"),
        ({"x": 0.99}, "not the one in its reply"),
        ({"kind": "wait"}, "differ"),
    ],
)
def test_bad_data_is_left_out_by_name_or_refused(data, chat, tmp_path, changes, why):
    folder = shutil.copytree(data, tmp_path / "data")
    first = json.loads((folder / "trajectories.jsonl").read_text().splitlines()[0])
    if changes == {"id": "phantom-0-liver"}:
        changes = {"id": first["id"]}
    broken(folder, **changes)
    card = load_card(demo_folder())
    found = check_data([folder], demo_folder(), chat, card)
    assert len(found.refused) == 1 and why in found.refused[0] and "line 2" in found.refused[0]
    with pytest.raises(InputError, match="line 2"):
        check_data([folder], demo_folder(), chat, card, skip_bad=False)


def test_a_picture_that_is_cut_off_and_a_line_that_is_no_json_are_left_out(data, chat, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    picture = folder / "pictures" / "1.png"
    picture.write_bytes(picture.read_bytes()[:-400])
    with (folder / "trajectories.jsonl").open("a") as lines:
        lines.write('{"id": "cut o')
    found = check_data([folder], demo_folder(), chat, load_card(demo_folder()))
    assert found.pictures == 1 and found.places
    assert all("1.png" in each for each in found.refused[:-1])
    for name in ("0.png", "1.png"):
        Image.new("L", (9, 9)).save(folder / "pictures" / name)
    with pytest.raises(InputError, match="no turn is left"):
        check_data([folder], demo_folder(), chat, load_card(demo_folder()))


def test_what_is_held_out_shares_no_scan_with_what_is_learned(data, chat):
    found = check_data([data], demo_folder(), chat, load_card(demo_folder()), held=0.5)
    images = [{read_record(place)["image"] for place in each} for each in (found.places, found.held)]
    assert images[0] and images[1] and not images[0] & images[1]


def test_a_sample_that_is_too_long_is_left_out(data, chat):
    with pytest.raises(InputError, match="longer than the policy's context"):
        check_data([data], demo_folder(), chat, load_card(demo_folder()), longest=60)


def test_wrong_settings_are_refused_before_any_work(data, tmp_path):
    for given, error, why in (
        ({"device": "cuda"}, InputError, "no CUDA"),
        ({"optimiser": "adamw_8bit"}, InputError, "CUDA"),
        ({"card": {"histori": 2}}, InputError, "history"),
        ({"trainer": {"fdsp": 1}}, InputError, "trainer.fdsp"),
        ({"trainer": {"learning_rate": 1}}, InputError, "its own key"),
        ({"model": str(tmp_path)}, ModelError, "config.json is missing"),
    ):
        if error is InputError and torch.cuda.is_available() and "CUDA" in why:
            continue
        with pytest.raises(error, match=why):
            sft.fine_tune(settings(data, tmp_path / "out", **given))
    with pytest.raises(ModelError, match=r"no\.pt"):  # also before the data are read: here there are none
        sft.fine_tune(settings(tmp_path, tmp_path / "out", segmenter=str(tmp_path / "no.pt"), held=0.3))


def test_the_card_can_be_changed_by_parts():
    card = changed_card(load_card(demo_folder()), {"history": 3, "prompts": {"system": "Other."}})
    assert card.history == 3 and card.prompts.system == "Other."
    assert card.prompts.refine == load_card(demo_folder()).prompts.refine


@pytest.fixture(scope="module")
def boxed(data, tmp_path_factory):
    """The same trajectories, each begun with a box in place of its first click."""
    folder = tmp_path_factory.mktemp("boxed") / "data"
    shutil.copytree(data, folder)
    lines = []
    for record in map(json.loads, (folder / "trajectories.jsonl").read_text().splitlines()):
        truth = decode_rle(record["target_rle"], (record["height"], record["width"]))
        if truth.any():
            first = record["turns"][0]
            box = drawn_box(truth, Recipe(decimals=2), np.random.default_rng(len(lines)))
            row = turn_row(1, np.zeros_like(truth), 0.0, box, first["thinking"], first["iou_after"], None)
            record["turns"][0] = row
        lines.append(json.dumps(record) + "\n")
    (folder / "trajectories.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize(("language", "written"), [("ibis", "<action>Box ("), ("tool_calls", '"add_bbox"')])
def test_boxes_are_learned_in_the_language_of_the_card(boxed, tiny, tmp_path, language, written):
    card = dataclasses.replace(load_card(tiny), language=language, history=2)
    chat = Chat.load(tiny, card)
    checked = check_data([boxed], demo_folder(), chat, card, skip_bad=False)
    said = []
    for place, sample in zip(checked.places, Turns(checked.places, chat, card), strict=True):
        reply = chat.decode(sample.ids[sample.learn].tolist())
        turn = read_record(place)["turns"][place.turn]
        assert type(card.speech.parse(reply).action) is type(action_of(turn))
        kind = turn["kind"]
        assert (written in reply) == (kind == "box")
        said.append(kind)
        if place.turn == 1:
            assert written in chat.decode(sample.ids[~sample.learn].tolist()), "what was said before, too"
    assert {"box", "click", "terminate"} == set(said)
    if language == "tool_calls":
        sft.fine_tune(settings(boxed, tmp_path, tiny, steps=1, digits=1, card={"language": language}))
        assert load_card(tmp_path / "model").language == language and np.isfinite(rows(tmp_path)[0]["loss"])


def test_a_box_that_is_not_the_one_in_its_reply_is_refused(boxed, chat, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(boxed, folder)
    text = (folder / "trajectories.jsonl").read_text().splitlines()
    record = next(each for each in map(json.loads, text) if each["turns"][0]["kind"] == "box")
    record["turns"][0]["box"][2] = min(record["turns"][0]["box"][2] + 0.05, 1.0)
    (folder / "trajectories.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match="the box of turn 1 is not the one in its reply"):
        check_data([folder], demo_folder(), chat, load_card(demo_folder()), skip_bad=False)
