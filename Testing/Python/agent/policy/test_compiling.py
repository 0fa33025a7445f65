"""torch.compile: the same tokens, taken where it wins, and one line where it is not."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.qwen25 import compiling
from ibis_agent.policy.qwen25.block import Blocks
from ibis_agent.policy.qwen25.local import LocalPolicy
from test_policy import by_generate, picture
from tiny_models import DEMO_PROMPTS, make_tiny_policy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = make_tiny_policy(tmp_path_factory.mktemp("policy"))
    save_card(ModelCard(name="tiny", prompts=DEMO_PROMPTS, max_new_tokens=24), folder)
    return LocalPolicy.load(folder, "cpu", "fp32")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the plain and the other way are said to take."""
    said = {}
    monkeypatch.setattr(compiling, "_seconds", lambda work, _device: said[work.__name__])
    return said


def plain():
    return torch.tensor([[0.0, 1.0]])


def other():
    return torch.tensor([[0.0, 2.0]])


def test_what_is_compiled_writes_what_generate_writes(policy, monkeypatch):
    """The whole layer is one graph for the compiler, the same for all layers."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "_WINS", 1e9)
    policy._decoder._blocks = Blocks(
        policy.network, capture=False, fixed=True, layer=compiling.compile_layer(backend)
    )
    for seed in range(2):
        turn = Turn(picture(seed), "Segment the liver")
        policy.reply(turn)
        assert list(policy.last.ids) == by_generate(policy, turn, 24)
    assert len(graphs) == 1 and len(policy.network.language.layers) == 2


def test_the_faster_way_is_taken_and_the_other_told_in_a_line(clock):
    clock |= {"plain": 2.0, "other": 1.0}
    assert compiling.is_faster(lambda: other, plain, CPU)
    clock |= {"plain": 1.0, "other": 1.0}
    with pytest.warns(UserWarning, match=r"compile is not faster \(1000\.00 ms per block.*without it"):
        assert not compiling.is_faster(lambda: other, plain, CPU)


def test_other_tokens_are_never_taken(clock):
    clock |= {"plain": 2.0, "other": 1.0}
    with pytest.warns(UserWarning, match="chose other tokens"):
        assert not compiling.is_faster(lambda: lambda: -plain(), plain, CPU)


def test_a_compiler_that_fails_is_one_line_and_the_reply_comes(policy):
    def broken(*_arguments):
        raise RuntimeError("no compiler here\nand much more")

    policy._decoder._blocks = Blocks(policy.network, capture=False, fixed=True, layer=broken)
    with pytest.warns(UserWarning, match="failed: no compiler here; the policy runs without"):
        policy.reply(Turn(picture(7), "Segment the liver"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.reply(Turn(picture(8), "Segment the liver"))


def test_it_is_asked_for_and_never_used_without_triton_or_off_cuda(policy, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.delenv(compiling.ASKED, raising=False)
        assert compiling.compiled_layer(policy.network) is None
    monkeypatch.setenv(compiling.ASKED, "1")
    with pytest.warns(UserWarning, match="needs CUDA"):
        assert compiling.compiled_layer(policy.network) is None
    monkeypatch.setattr(type(policy.network), "device", torch.device("cuda"))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "triton" else found(name, *more)
    )
    with pytest.warns(UserWarning, match="needs triton"):
        assert compiling.compiled_layer(policy.network) is None
