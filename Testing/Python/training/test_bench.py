"""The benchmark: both ways do the same work, and the figures add up."""

from __future__ import annotations

import json

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import pytest
from ibis_agent.actions import Click, Reply, format_reply
from ibis_agent.errors import ModelError
from ibis_agent.policy.card import ModelCard, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.prompts import DEMO_PROMPTS
from tiny_models import make_tiny_policy, teach

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
