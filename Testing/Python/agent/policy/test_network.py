"""The network for inference against transformers' own, and its decoding under every form that a folder has."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from ibis_agent.errors import ModelError
from ibis_agent.policy.card import ModelCard, load_card, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.folder import SINGLE_NAME
from ibis_agent.policy.qwen25.block import Blocks
from ibis_agent.policy.qwen25.build import Dense
from ibis_agent.policy.qwen25.local import LocalPolicy
from ibis_agent.policy.qwen25.network import Memory
from ibis_agent.policy.qwen25.source import demo_folder as demo_policy
from safetensors.torch import load_file, save_file
from test_policy import by_generate, picture
from test_which_files import case
from tiny_models import DEMO_PROMPTS, make_tiny_policy, make_tiny_tokenizer

CARD = ModelCard(name="tiny", prompts=DEMO_PROMPTS, max_new_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_tiny_policy(
        tmp_path_factory.mktemp("policy"),
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 20.0, "mrope_section": [2, 3, 3]},
    )
    save_card(CARD, folder)
    return folder


@pytest.fixture
def policy(folder):
    return LocalPolicy.load(folder, "cpu", "fp32")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edited(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize("size", [(112, 112), (112, 140), (84, 196), (56, 56), (28, 280), (168, 224)])
def test_a_picture_becomes_the_tokens_that_transformers_gives(policy, size):
    """Also where windows at the right and lower edge are smaller than the others, or there is one window only."""
    pixels, grid = policy.chat.pictures.patches(picture(1, *size))
    with torch.inference_mode():
        theirs = policy.model.get_image_features(
            torch.from_numpy(pixels), torch.tensor([grid]), return_dict=True
        )
        ours = policy.network.vision.look(torch.from_numpy(pixels), *grid[1:], lambda: None)
    assert torch.allclose(ours, torch.cat(list(theirs.pooler_output)), atol=2e-5, rtol=1e-4)


def test_shared_keys_give_the_replies_of_generate(policy):
    for seed in range(3):
        turn = Turn(picture(seed), "Segment the liver", seed + 1, seed > 0)
        policy.reply(turn)
        assert list(policy.last.ids) == by_generate(policy, turn)


def test_the_demo_policy_writes_what_generate_writes():
    policy = LocalPolicy.load(demo_policy(), "cpu", "fp32")
    for seed in range(2):
        turn = Turn(picture(seed, 256, 256), "Segment the liver", seed + 1, seed > 0)
        policy.reply(turn)
        assert list(policy.last.ids) == by_generate(policy, turn, 96)[: len(policy.last.ids)]


@pytest.mark.parametrize("width", [None, 128, 512])
def test_a_pass_of_fixed_shape_gives_the_numbers_of_one_that_grows(policy, width):
    """The form that is captured as a graph on a card, computed here: places that are not filled are not seen."""
    network = policy.network
    ids = torch.arange(20, 70)
    with torch.inference_mode():
        seen = []
        for blocks in (Blocks(network), Blocks(network, capture=False, fixed=True)):
            memory = Memory(network.shape.text, 512, network.language.embeddings)
            memory.values.fill_(7.0)  # what an earlier request left
            positions = torch.arange(50).expand(3, -1)
            network.language.read(network.language.embed(ids), positions, memory, lambda: None)
            first = blocks.run(memory, [5, 6, 7], 0, width or 60, lambda: None)[:3].clone()
            memory.length += 3
            seen.append((first, blocks.run(memory, [8], 0, width or 60, lambda: None)[:1].clone()))
    for one, other in zip(*seen, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_prompt_computed_in_stretches_gives_the_numbers_of_one(policy, monkeypatch):
    from ibis_agent.policy.qwen25 import network as module

    language = policy.network.language
    ids, positions = torch.arange(20, 90), torch.arange(70).expand(3, -1)
    last = []
    for rows in (1024, 16):
        monkeypatch.setattr(module, "_CHUNK", rows)
        memory = Memory(language.shape, 128, language.embeddings)
        with torch.inference_mode():
            last.append(language.read(language.embed(ids), positions, memory, lambda: None))
        assert memory.length == 70
    assert torch.allclose(*last, atol=1e-4)


def test_the_folders_of_other_writers_load_and_say_the_same(tmp_path):
    """Flat configuration, newest names, processor_config.json only, no generation config, a stored tied head, fp16."""
    turn = Turn(picture(2, 192, 192), "Segment the liver")
    expected = LocalPolicy.load(demo_policy(), "cpu", "fp32").reply(turn)
    for folder in case(28, tmp_path):
        assert LocalPolicy.load(folder, "cpu", "fp32").reply(turn) == expected, folder.name


def test_a_head_that_should_be_shared_and_is_another_is_refused(copy):
    weights = load_file(copy / SINGLE_NAME)
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] * 2},
        copy / SINGLE_NAME,
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="embeddings are tied, but the weights differ"):
        LocalPolicy.load(copy, "cpu", "fp32")


def test_tensors_that_have_no_place_are_refused_by_name(copy):
    weights = load_file(copy / SINGLE_NAME)
    save_file(
        {**weights, "model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 2)},
        copy / SINGLE_NAME,
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="lora_A"):
        LocalPolicy.load(copy, "cpu", "fp32")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "mrope_section": [2, 3, 3]}}, "yarn"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_attention_heads"),
    ],
)
def test_a_configuration_of_another_kind_is_refused_with_the_key(copy, changes, said):
    values = json.loads((copy / "config.json").read_text("utf-8"))
    values["text_config"].update(changes)
    (copy / "config.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(ModelError, match=said):
        LocalPolicy.load(copy, "cpu", "fp32")


def test_weights_too_large_for_fp16_are_told_with_the_precision_to_choose(copy):
    weights = {name: tensor.float() for name, tensor in load_file(copy / SINGLE_NAME).items()}
    weights["model.norm.weight"][0] = 1e6
    save_file(weights, copy / SINGLE_NAME, {"format": "pt"})
    with pytest.raises(ModelError, match=r"too large for the precision fp16.*bf16"):
        LocalPolicy.load(copy, "cpu", "fp16")
    LocalPolicy.load(copy, "cpu", "bf16")


def test_numbers_that_break_off_in_the_middle_of_a_reply_are_told_at_once(policy):
    """As fp16 overflows on older cards: the published loop then writes exclamation marks to the end."""
    turn = Turn(picture(), "Segment the liver")
    expected = policy.reply(turn)
    policy.precision, layer = "fp16", policy.network.language.layers[1]
    policy._decoder._precision = "fp16"
    down, calls = layer.down, []

    class Overflowing(Dense):
        def onto(self, rest, x):
            calls.append(1)
            return super().onto(rest, x) * (float("inf") if len(calls) == 4 else 1.0)

    layer.down = Overflowing(down.weight)
    written = []
    with pytest.raises(ModelError, match=r"NaN.*fp16.*bf16"):
        policy.reply(turn, written.append)
    assert len("".join(written)) < len(expected)
    layer.down = down
    assert policy.reply(turn) == expected


@pytest.mark.parametrize("penalty", [1.05, 1.6])
def test_the_folders_repetition_penalty_counts_as_in_generate(copy, penalty):
    edited(copy / "generation_config.json", repetition_penalty=penalty, do_sample=True, temperature=1e-6)
    policy, turn = LocalPolicy.load(copy, "cpu", "fp32"), Turn(picture(3), "Where is the spleen?")
    policy.reply(turn)
    assert list(policy.last.ids) == by_generate(policy, turn)
    assert policy.identity["generation"] == f"repetition penalty {penalty}"


def test_the_card_switches_the_generation_config_off(copy, policy):
    turn = Turn(picture(3), "Where is the spleen?")
    plain = policy.reply(turn)
    edited(copy / "generation_config.json", repetition_penalty=3.0)
    assert LocalPolicy.load(copy, "cpu", "fp32").reply(turn) != plain
    edited(copy / "ibis_model.json", generation_config=False)
    switched = LocalPolicy.load(copy, "cpu", "fp32")
    assert switched.reply(turn) == plain
    assert "generation" not in switched.identity and load_card(copy).generation_config is False


@pytest.mark.parametrize(
    ("key", "value"), [("num_beams", 4), ("min_new_tokens", 5), ("repetition_penalty", "high")]
)
def test_what_decoding_does_not_follow_is_refused_by_name(copy, key, value):
    edited(copy / "generation_config.json", **{key: value})
    with pytest.raises(ModelError, match=key):
        LocalPolicy.load(copy, "cpu", "fp32")


def test_suppressed_tokens_never_come(copy, policy):
    turn = Turn(picture(), "Segment the liver")
    policy.reply(turn)
    banned = policy.last.ids[0]
    edited(copy / "generation_config.json", suppress_tokens=[banned])
    other = LocalPolicy.load(copy, "cpu", "fp32")
    other.reply(turn)
    assert banned not in other.last.ids and list(other.last.ids) == by_generate(other, turn)


def test_vocabulary_and_merges_are_a_tokenizer(copy):
    whole = LocalPolicy.load(copy, "cpu", "fp32")
    tokenizer = make_tiny_tokenizer()
    tokenizer.model.save(str(copy))
    decoder = {
        str(n): {"content": token.content} for n, token in tokenizer.get_added_tokens_decoder().items()
    }
    (copy / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}), "utf-8")
    (copy / "tokenizer.json").unlink()
    parts = LocalPolicy.load(copy, "cpu", "fp32")
    for text in ("Segment the liver, 0.3125!", "حدد الكبد", "it's 12\n\n 肝臓"):
        assert parts.chat.tokenizer.encode(text).ids == whole.chat.tokenizer.encode(text).ids


def test_int4_that_the_processor_cannot_serve_is_one_line_with_the_remedy(folder, monkeypatch):
    import importlib.util
    import types

    def cannot(*_arguments, **_more):
        raise NotImplementedError("no kernel for this processor")

    functional = types.ModuleType("bitsandbytes.functional")
    functional.quantize_4bit = cannot
    package = types.ModuleType("bitsandbytes")
    package.functional = functional
    package.__spec__ = importlib.util.spec_from_loader("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    with pytest.raises(
        ModelError, match=r"does not support the precision int4 on this processor.*no kernel.*bf16"
    ):
        LocalPolicy.load(folder, "cpu", "int4")


def test_inference_needs_neither_transformers_nor_torchvision():
    """Their imports are what a short run would wait for, and a torchvision of another torch breaks them."""
    program = (
        "import sys\n"
        "from ibis_agent.policy.qwen25.source import demo_folder as demo_policy\n"
        "from ibis_agent.policy.contract import Turn\n"
        "from ibis_agent.policy.qwen25.local import LocalPolicy\n"
        "import numpy as np\n"
        "policy = LocalPolicy.load(demo_policy(), 'cpu', 'fp32')\n"
        "policy.reply(Turn(np.zeros((192, 192, 3), np.uint8), 'Segment the liver'))\n"
        "heavy = ('transformers', 'torchvision', 'torch._dynamo', 'torch.distributed.tensor', 'sympy', 'accelerate')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_patches_are_those_of_transformers_own_processor(policy):
    from transformers import Qwen2VLImageProcessorPil

    ours = policy.chat.pictures
    theirs = Qwen2VLImageProcessorPil(size={"shortest_edge": ours.least, "longest_edge": ours.most})
    for size in ((112, 112), (300, 200), (17, 900), (1000, 1001)):
        rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        pixels, grid = ours.patches(rgb)
        found = theirs.preprocess([rgb], return_tensors="np", input_data_format="channels_last")
        assert found["image_grid_thw"].tolist() == [list(grid)]
        assert np.array_equal(found["pixel_values"], pixels)
        assert theirs.get_number_of_image_patches(*size) == ours.patches_of(*size)


def test_a_conversation_that_grows_needs_few_graphs(policy):
    """In the form that is captured: a pass is made for every 2048 tokens of room, not for every turn."""
    policy._decoder._blocks = blocks = Blocks(policy.network, capture=False, fixed=True)
    made = []
    make = blocks._made
    blocks._made = lambda memory, width, inputs: made.append(width) or make(memory, width, inputs)
    for turns in range(1, 4):  # each about 200 tokens longer than the one before
        policy.reply(Turn(picture(1, 168, 168), "Segment the liver " * (60 * turns)))
    assert made == [2048]
    assert policy._decoder._memory.capacity == 2048
