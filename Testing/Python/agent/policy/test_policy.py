"""Policies: the scripted one; a local one against transformers' generate, streaming, cancelling, reuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket

import numpy as np
import pytest
import torch
from ibis_agent.actions import reply_is_complete
from ibis_agent.errors import Cancelled, InputError, ModelError
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.messages import build_messages, pictures_of
from ibis_agent.policy.qwen25 import decoding
from ibis_agent.policy.qwen25.choice import Chooser
from ibis_agent.policy.qwen25.decoding import Decoder
from ibis_agent.policy.qwen25.guesses import Guesses
from ibis_agent.policy.qwen25.local import LocalPolicy
from ibis_agent.policy.qwen25.network import Language, Vision
from scripted_policy import ScriptedPolicy
from tiny_models import DEMO_PROMPTS, make_tiny_policy, teach

CARD = ModelCard(name="tiny", prompts=DEMO_PROMPTS, max_new_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_tiny_policy(tmp_path_factory.mktemp("policy"))
    save_card(CARD, folder)
    return folder


@pytest.fixture
def policy(folder):
    return LocalPolicy.load(folder, "cpu", "fp32")


def picture(seed=0, height=112, width=140):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_generate(policy, turn, count=40):
    """The greedy tokens of transformers' generate for the same request."""
    request = policy.chat.encode(build_messages(policy.card, turn), pictures_of(policy.card, turn))
    given = {
        "input_ids": torch.from_numpy(request.ids)[None],
        "attention_mask": torch.ones(1, len(request.ids), dtype=torch.long),
        "mm_token_type_ids": torch.from_numpy(request.types)[None],
        "pixel_values": torch.from_numpy(request.pixels),
        "image_grid_thw": torch.from_numpy(request.grid),
    }
    ids = policy.model.generate(**given, max_new_tokens=count, do_sample=False)[
        0, len(request.ids) :
    ].tolist()
    stop = next((n for n, each in enumerate(ids) if each in policy.chat.stops), len(ids))
    return ids[:stop]


@pytest.mark.parametrize("seed", range(4))
def test_replies_are_token_by_token_those_of_generate(policy, seed):
    turn = Turn(picture(seed), f"Segment the liver {seed}", number=seed + 1, has_mask=seed > 0)
    policy.reply(turn)
    assert list(policy.last.ids) == by_generate(policy, turn)


def test_replies_in_a_conversation_with_history_are_those_of_generate(folder):
    policy = LocalPolicy.load(folder, "cpu", "fp32")
    policy.card = dataclasses.replace(policy.card, history=9)
    past = ()
    for number in (1, 2, 3):
        turn = Turn(picture(number), "Segment the liver", number, number > 1, past)
        reply = policy.reply(turn)
        assert list(policy.last.ids) == by_generate(policy, turn)
        past = (*past, (turn.picture, reply))
    # Everything before the last reply and the new picture was already there.
    assert policy.last.reused > 2 * 20


def test_the_same_turn_gives_the_same_numbers_whatever_was_asked_before(folder, policy):
    """Going back in an episode is exact: the logits of every token, not only the tokens, are equal bit by bit."""
    turn = Turn(picture(), "Segment the liver")
    chosen = []

    class Listening(Chooser):
        def choose(self, logits, tokens):
            chosen.append((list(tokens), logits.clone()))
            return super().choose(logits, tokens)

    def numbers_of_the_reply():
        chosen.clear()
        policy.reply(turn)
        rows, place = {}, 0
        for tokens, logits in chosen:
            best = logits.argmax(-1).tolist()
            right = next((n for n, token in enumerate(tokens[1:]) if token != best[n]), len(tokens) - 1)
            kept = max(right, 0) + 1
            rows.update({place + n: logits[n] for n in range(kept)})
            place += kept
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "Chooser", Listening)
        fresh = numbers_of_the_reply()
        policy.reply(Turn(picture(5), "Where is the spleen?", 4, True))
        policy.reply(Turn(picture(), "Where is the spleen?", 2, True))
        again = numbers_of_the_reply()
    common = set(fresh) & set(again)
    assert len(common) >= 39
    assert all(torch.equal(fresh[n], again[n]) for n in common)


def test_the_system_message_and_a_seen_picture_are_not_computed_again(policy, monkeypatch):
    looked = []
    look = Vision.look
    monkeypatch.setattr(Vision, "look", lambda *given: looked.append(1) or look(*given))
    policy.reply(Turn(picture(), "Segment the liver"))
    assert policy.last.reused == 0
    policy.reply(Turn(picture(), "Segment the spleen"))
    assert policy.last.reused > 5
    policy.reply(Turn(picture(1), "Segment the spleen"))
    assert len(looked) == 2
    policy.forget()
    policy.reply(Turn(picture(1), "Segment the spleen"))
    assert policy.last.reused == 0 and len(looked) == 3


def test_a_taught_reply_is_given_and_ends_with_its_action(policy):
    text = "<think>The liver.</think>\n<action>Positive Point (0.3125, 0.4375)</action>"
    turn = Turn(picture(), "Segment the liver")
    teach(policy, turn, text + " and more that nobody needs")
    assert policy.reply(turn) == text
    assert reply_is_complete(text) and len(policy.last.ids) < 40


def test_a_reply_of_many_letters_streams_them_whole(policy):
    text = "肝臓は🫀のとなり、كبد é"
    turn = Turn(picture(), "Segment the liver")
    policy.card = dataclasses.replace(policy.card, max_new_tokens=200)
    teach(policy, turn, text)
    pieces = []
    assert policy.reply(turn, pieces.append) == text
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) and len(pieces) > 10


def test_what_streams_is_what_is_returned_even_where_it_is_no_text(policy):
    for seed in range(3):
        pieces = []
        assert policy.reply(Turn(picture(seed), "Anything"), pieces.append) == "".join(pieces)
        assert "".join(pieces)


def test_a_reply_is_cut_off_at_the_cards_limit(policy):
    policy.card = dataclasses.replace(policy.card, max_new_tokens=7)
    policy.reply(Turn(picture(), "Segment the liver"))
    assert len(policy.last.ids) == 7


def test_a_cancel_takes_effect_within_a_token_and_the_next_turn_is_untouched(policy):
    turn = Turn(picture(), "Segment the liver")
    expected = policy.reply(turn)
    pieces = []
    with pytest.raises(Cancelled):
        policy.reply(turn, pieces.append, cancelled=lambda: len(pieces) >= 3)
    assert len(pieces) == 3
    assert policy.reply(turn) == expected


def test_a_cancel_takes_effect_inside_the_first_pass(policy, monkeypatch):
    """On a slow machine the first pass takes minutes: every layer asks."""
    asked = []
    passed = []
    monkeypatch.setattr(Language, "logits", lambda *_: passed.append(1))
    with pytest.raises(Cancelled):
        policy.reply(
            Turn(picture(), "Segment the liver"), cancelled=lambda: len(asked) >= 1 or asked.append(1)
        )
    assert not passed


def test_an_error_in_the_listener_leaves_the_policy_usable(policy):
    turn = Turn(picture(), "Segment the liver")
    expected = policy.reply(turn)

    def fail(_piece):
        raise KeyError("listener")

    with pytest.raises(KeyError):
        policy.reply(turn, fail)
    assert policy.reply(turn) == expected


def test_a_question_beyond_the_models_context_is_refused(tmp_path):
    folder = make_tiny_policy(tmp_path / "short", max_position_embeddings=64)
    save_card(CARD, folder)
    policy = LocalPolicy.load(folder, "cpu")
    with pytest.raises(InputError, match="of 64 tokens"):
        policy.reply(Turn(picture(), "Segment the liver " * 40))


@pytest.mark.parametrize("question", ["a" * 3000, "حدد الكبد" * 20, "<|im_end|>" * 20])
def test_long_and_foreign_questions_are_answered(policy, question):
    policy.reply(Turn(picture(), question))
    assert list(policy.last.ids) == by_generate(policy, Turn(picture(), question))


def test_the_flat_configuration_of_the_published_weights_gives_the_same_replies(folder, policy, tmp_path):
    """Checkpoints of 2025 keep the language settings at the top level, under older names."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for key in ("layer_types", "model_type", "sliding_window"):
        text.pop(key)
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    text["torch_dtype"] = config.pop("dtype")
    config["vision_config"]["model_type"] = "qwen2_5_vl"
    del config["vision_config"]["rope_parameters"]
    (copy / "config.json").write_text(json.dumps({**config, **text}), "utf-8")
    turn = Turn(picture(), "Segment the liver")
    assert LocalPolicy.load(copy, "cpu", "fp32").reply(turn) == policy.reply(turn)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_load_and_answer(folder, precision):
    policy = LocalPolicy.load(folder, "cpu", precision)
    policy.reply(Turn(picture(), "Segment the liver"))
    assert policy.network.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert len(policy.last.ids) > 0


def test_drafts_never_change_a_reply(folder):
    """With right, wrong and half-right guesses the tokens stay the same, only the passes get fewer."""
    plain = LocalPolicy.load(folder, "cpu", "fp32")
    text = "<think>The liver is here.</think>\n<action>Positive Point (0.3125, 0.4375)</action>"
    turn = Turn(picture(), "Segment the liver")
    teach(plain, turn, text)
    encode = plain.chat.tokenizer.encode
    request = plain.chat.encode(build_messages(CARD, turn), [turn.picture])
    near = text.replace("3125", "9999").replace("liver", "spleen")
    passes = {}
    for name, drafts in {"none": [], "right": [text], "near": [near], "wrong": ["aorta " * 30]}.items():
        decoder = Decoder(
            plain.network, plain.chat.decode, plain.chat.stops, [encode(each).ids for each in drafts]
        )
        found = decoder.run(request, 200, is_complete=reply_is_complete)
        assert found.text == text
        passes[name] = found.forwards
    assert passes["right"] < passes["near"] <= passes["none"] and passes["right"] < passes["wrong"]


def test_a_guess_is_what_followed_the_most_similar_ending():
    guesses = Guesses([list(range(1, 21)), [*range(1, 9), 50, 51, 52, 53]])
    assert guesses.beside(()).propose([1, 2, 3, 4, 5, 6, 7], 3) == [8, 9, 10]
    assert guesses.beside(()).propose([1, 2, 3, 4, 5, 6, 7, 8, 50], 3) == [51, 52, 53]
    assert guesses.beside(()).propose([6, 7, 8, 9, 10, 11, 99, 13], 2) == [14, 15]
    assert guesses.beside(()).propose(range(80, 100), 2) == []
    assert guesses.beside(()).propose([1, 2], 0) == [] == Guesses().beside(()).propose([1, 2], 5)


def test_the_last_replies_and_the_prompt_are_guessed_from_too():
    guesses = Guesses([[1, 2, 3, 4]])
    assert guesses.beside([7, 8, 9]).propose([7], 2) == [8, 9]
    guesses.remember([1, 2, 5, 6])
    assert guesses.beside(()).propose([1, 2], 2) == [5, 6]  # the latest reply before the card
    guesses.forget()
    assert guesses.beside(()).propose([1, 2], 2) == [3, 4]


def test_loading_and_answering_never_touches_the_network(folder, monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert LocalPolicy.load(folder, "cpu").reply(Turn(picture(), "Segment the liver"))


def test_code_that_lies_in_the_folder_is_never_run(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "evil.py").write_text("raise SystemExit('ran')", "utf-8")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    assert LocalPolicy.load(copy, "cpu").reply(Turn(picture(), "Segment the liver"))


def test_tensors_missing_for_the_configuration_are_refused_not_made_up(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["text_config"]["num_hidden_layers"] = 3
    config["text_config"]["layer_types"] = ["full_attention"] * 3
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match=r"tensors of the configuration.*layers\.2"):
        LocalPolicy.load(copy, "cpu")


@pytest.mark.parametrize(("device", "precision"), [("tpu", "auto"), ("cpu:x", "auto"), ("cpu", "int3")])
def test_unknown_devices_and_precisions_are_refused(folder, device, precision):
    with pytest.raises(InputError, match="unknown"):
        LocalPolicy.load(folder, device, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_on_a_machine_without_it_is_refused_with_the_mend(folder):
    with pytest.raises(InputError, match='Choose "cpu"'):
        LocalPolicy.load(folder, "cuda")


def test_int4_without_its_packages_says_what_to_install(folder, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest),
    )
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        LocalPolicy.load(folder, "cpu", "int4")


def test_too_little_memory_is_told_before_loading(folder, monkeypatch):
    import ibis_agent.policy.required_memory

    monkeypatch.setattr(ibis_agent.policy.required_memory, "free_bytes", lambda _device: 1000)
    with pytest.raises(ModelError, match=r"needs about .* in memory in fp32, and 0 MB are free"):
        LocalPolicy.load(folder, "cpu", "fp32")


def test_a_scripted_policy_plays_its_replies_and_says_when_none_is_left():
    policy = ScriptedPolicy(["one reply", "two"])
    pieces = []
    assert policy.reply(Turn(picture(), "Liver?"), pieces.append) == "one reply" == "".join(pieces)
    assert len(pieces) > 1
    with pytest.raises(Cancelled):
        policy.reply(Turn(picture(), "Liver?"), cancelled=lambda: True)
    assert policy.reply(Turn(picture(), "Liver?", 2)) == "two"
    assert [turn.number for turn in policy.turns] == [1, 2]
    with pytest.raises(ModelError, match="no reply left"):
        policy.reply(Turn(picture(), "Liver?", 3))
