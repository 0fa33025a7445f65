"""Quantised folders run by their own libraries, or say which one is missing; FP8 as a precision."""

from __future__ import annotations

import importlib.util
import json
import shutil

import ibis_agent.policy as policies
import pytest
import torch
from ibis_agent.errors import ModelError
from ibis_agent.policy import required_memory
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.folder import SINGLE_NAME, look_into
from ibis_agent.policy.formats import UNPACKED
from ibis_agent.policy.qwen25.build import build
from ibis_agent.policy.qwen25.local import LocalPolicy
from ibis_agent.policy.qwen25.network import Dense
from ibis_agent.policy.qwen25.packed_layers import EightBit, packer_for
from ibis_agent.policy.qwen25.weights import read_tensors
from safetensors.torch import load_file, save_file
from test_policy import by_generate, picture
from tiny_families import QWEN, tokenizer_in
from tiny_models import DEMO_PROMPTS, make_tiny_policy

TURN = Turn(picture(3), "Segment the liver")
KINDS = {
    "int-quantized": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
    "pack-quantized": {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True,
    },
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = make_tiny_policy(tmp_path_factory.mktemp("policy"))
    save_card(ModelCard(name="tiny", prompts=DEMO_PROMPTS, max_new_tokens=16), folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def configured(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), "utf-8")
    return folder


@pytest.fixture(params=list(KINDS))
def compressed(request, copy):
    """The tiny policy as compressed-tensors itself writes it; the vision tower whole, as published ones have it."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.utils import calculate_qparams

    group = {"targets": ["Linear"], "weights": KINDS[request.param]}
    if request.param == "int-quantized":  # as it is published: what comes in has 8 bits too
        group["input_activations"] = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    settings = {
        "quant_method": "compressed-tensors",
        "format": request.param,
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*visual.*"],
        "config_groups": {"group_0": group},
    }
    scheme = QuantizationConfig.model_validate(settings).config_groups["group_0"]
    kind = BaseCompressor.get_value_from_registry(request.param)
    stored = {}
    for name, tensor in load_file(copy / SINGLE_NAME).items():
        if not (name.endswith("proj.weight") and ".layers." in name):
            stored[name] = tensor
            continue
        size = scheme.weights.group_size or tensor.shape[1]
        groups = tensor.float().view(tensor.shape[0], -1, size)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        parts = {"weight": tensor, "weight_scale": scale.bfloat16(), "weight_zero_point": zero}
        packed = kind.compress(parts, scheme)
        stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in packed.items()}
    save_file(
        {name: value.contiguous() for name, value in stored.items()}, copy / SINGLE_NAME, {"format": "pt"}
    )
    return configured(copy, quantization_config=settings)


def test_compressed_weights_are_those_that_transformers_and_the_library_make_of_them(compressed):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(compressed, dtype=torch.bfloat16)
    model(torch.tensor([[5, 6, 7]]))  # it unpacks at the first pass
    theirs = model.model.language_model.layers[1]
    ours = dict(read_tensors(look_into(compressed, quantised=(UNPACKED,))))
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        assert torch.equal(
            ours[f"model.layers.1.{name}.weight"].bfloat16(), theirs.get_submodule(name).weight
        )


def test_a_compressed_folder_runs_in_the_own_network_with_the_replies_of_generate(compressed):
    policy = policies.open(compressed, "cpu", "fp32")
    assert isinstance(policy, LocalPolicy)
    policy.reply(TURN)
    assert list(policy.last.ids) == by_generate(policy, TURN, 16)
    facts = policies.find(compressed).facts()
    assert "of compressed-tensors, " in facts["stored"] and "unpacked when it is loaded" in facts["way"]


def test_memory_is_estimated_for_what_is_unpacked(compressed, whole):
    packed = policies.find(compressed).inspect()
    assert packed.parameters == look_into(whole).parameters
    assert {n: t.shape for n, t in packed.tensors.items()} == {
        n: t.shape for n, t in look_into(whole).tensors.items()
    }


def test_training_refuses_what_is_quantised(compressed):
    with pytest.raises(ModelError, match=r"is quantised \(.*compressed-tensors\), which is not supported"):
        look_into(compressed)


def without(monkeypatch, *packages):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in packages else found(name, *more)
    )


@pytest.mark.parametrize(
    ("method", "packages"),
    [
        ("compressed-tensors", "compressed-tensors"),
        ("gptq", "gptqmodel optimum"),
        ("awq", "gptqmodel"),
        ("bitsandbytes", "bitsandbytes"),
    ],
)
def test_a_missing_library_is_named_with_how_to_install_it(copy, monkeypatch, method, packages):
    without(monkeypatch, "compressed_tensors", "gptqmodel", "optimum", "bitsandbytes")
    configured(copy, quantization_config={"quant_method": method, "bits": 4})
    assert f"missing here: pip install {packages}" in policies.find(copy).facts()["way"]
    with pytest.raises(ModelError, match=rf"not installed: .*pip install {packages}\. Or: use"):
        policies.open(copy, "cpu")


def test_blocks_of_fp8_run_through_transformers_as_the_whole_weights_they_stand_for(copy, whole, tmp_path):
    pytest.importorskip("accelerate")
    plain = shutil.copytree(whole, tmp_path / "plain")
    tensors, rounded = {}, {}
    for name, tensor in load_file(copy / SINGLE_NAME).items():
        tensors[name] = rounded[name] = tensor
        if name.endswith("proj.weight") and ".layers." in name:
            scale = torch.tensor(0.002).expand(tensor.shape[0] // 32, tensor.shape[1] // 32).contiguous()
            tensors[name] = (tensor.float() / 0.002).clamp(-448, 448).to(torch.float8_e4m3fn)
            rounded[name] = (tensors[name].float() * 0.002).bfloat16()
            tensors[name + "_scale_inv"] = scale
    save_file(tensors, copy / SINGLE_NAME, {"format": "pt"})
    save_file(rounded, plain / SINGLE_NAME, {"format": "pt"})
    configured(
        copy,
        quantization_config={
            "quant_method": "fp8",
            "weight_block_size": [32, 32],
            "modules_to_not_convert": ["lm_head", "model.visual", "visual"],
        },
    )
    tokenizer_in(copy, QWEN)
    facts = policies.find(copy).facts()
    assert "without FP8 weights" in facts["way"] and facts["stored"].startswith("FP8, ")
    theirs = policies.open(copy, "cpu", "bf16")
    weight = theirs.model.model.language_model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, rounded["model.layers.0.mlp.up_proj.weight"])
    assert isinstance(theirs.reply(TURN), str)


def test_fp8_is_refused_where_no_card_has_it(whole, monkeypatch):
    with pytest.raises(ModelError, match=r"fp8 needs a CUDA card of compute capability 8\.9"):
        policies.open(whole, "cpu", "fp8")
    assert "fp8" not in required_memory.offered("cpu")
    for capability, has in (((8, 6), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, c=capability: c)
        assert ("fp8" in required_memory.offered("cuda:0")) == has


def test_products_in_fp8_are_those_of_whole_weights_within_its_rounding():
    """torch multiplies in FP8 on the processor too, so that what a card would run is run here."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).bfloat16()
    bias, x = torch.randn(2, 96, generator=generator).bfloat16(), torch.randn(8, 64, generator=generator)
    eight = packer_for("fp8", "cpu").pack(weight).with_bias(bias[0])
    ours, whole = eight(x.bfloat16()).float(), Dense(weight, bias[0])(x.bfloat16()).float()
    assert (ours - whole).norm() / whole.norm() < 0.05
    assert torch.equal(eight.onto(bias[1:], x.bfloat16()), bias[1:] + eight(x.bfloat16()))


def test_in_fp8_the_language_model_alone_is_packed(whole):
    network = build(look_into(whole), "cpu", "fp8")
    for layer in network.language.layers:
        assert all(isinstance(each, EightBit) for each in (layer.qkv, layer.out, layer.gate_up, layer.down))
    assert isinstance(network.vision.blocks[0].qkv, Dense) and isinstance(network.language.head, Dense)
    assert required_memory.weight_bytes(look_into(whole), "fp8") < required_memory.weight_bytes(
        look_into(whole), "bf16"
    )
