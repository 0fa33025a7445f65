"""The benchmark: both ways do the same work, and the figures add up."""

from __future__ import annotations

import json
import sys

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import pytest
import torch
from ibis_agent.actions import Click, Reply, format_reply
from ibis_agent.errors import ModelError
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.prompts import DEMO_PROMPTS
from tiny_models import make_tiny_policy, teach

from training.bench import card, episodes
from training.bench import steps as bench


@pytest.fixture
def policy(tmp_path):
    folder = make_tiny_policy(tmp_path / "policy")
    save_card(ModelCard(name="tiny", prompts=DEMO_PROMPTS, max_new_tokens=60), folder)
    return policies.open(folder, "cpu")


@pytest.fixture
def segmenter(shared):
    return segmenters.open(shared / "parity" / "segmenter.pt", shared / "parity" / "segmenter.yaml", "cpu")


def test_the_same_turns_are_done_both_ways_and_the_parts_add_up(policy, segmenter):
    reply = format_reply(Reply("The liver.", Click(0.3, 0.4)))
    teach(policy, Turn(bench.phantom_picture(0).rgb, bench.QUESTIONS[0]), reply)
    told = []
    result = bench.measure(policy, segmenter, pictures=1, repeats=1, turns=1, progress=told.append)
    assert result["turns"] == 1 and len(told) == 2
    # generate writes the end token too, which we need not wait for.
    assert result["generate"]["tokens"] == result["ours"]["tokens"] + 1
    for kind in ("ours", "generate"):
        seconds = result[kind]["seconds"]
        assert result[kind]["step"] == pytest.approx(sum(seconds.values()))
        assert seconds["policy decode"] > 0 and seconds["segmenter predict"] > 0 and result[kind]["embed"] > 0
    assert json.dumps(result)
    for part in ("policy prefill", "segmenter embed", "tokens a second", "tiny", result["machine"]):
        assert part in bench.table(result)


def test_a_policy_that_says_nothing_readable_cannot_be_timed(policy, segmenter):
    with pytest.raises(ModelError, match="no readable reply"):
        bench.measure(policy, segmenter, pictures=1, repeats=1, turns=1, progress=lambda _text: None)


def test_whole_episodes_are_measured_both_ways(policy):
    found = episodes.measure(policy, repeats=1)
    assert [(row["turns"], row["history"]) for row in found] == [
        (5, False),
        (20, False),
        (5, True),
        (20, True),
    ]
    assert all(
        row["ours"] > 0 and row["generate"] > 0 and row["passes"] <= row["tokens"] + 20 for row in found
    )
    assert policy.card.history == 0 and "20 turns, all history" in episodes.table(found)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "vision_config": {
        **card.SEVEN_B["vision_config"],
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
}


def test_what_the_card_would_be_asked_runs_on_a_processor_too():
    found = card.measure({**card.SEVEN_B, **SMALL}, "cpu", "fp32", repeats=1)
    assert found["tokens a block"] == 8 and all(value > 0 for value in found.values())
    generate = card.measure_generate(
        {**card.SEVEN_B, **SMALL, "bos_token_id": 1, "eos_token_id": 2}, "cpu", 3
    )
    told = card.table({"card": "none", "policy": found, "segmenter": {"embed": 1.0}, "generate": generate})
    assert "a block over the memory's floor" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_card_it_says_so_and_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["card"])
    with pytest.raises(SystemExit, match=r"no CUDA card here.*nothing was measured"):
        card.main()
    assert capsys.readouterr().out == ""
