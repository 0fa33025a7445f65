"""Training samples: the very request that inference makes in the same state, and the reply behind it."""

from __future__ import annotations

import dataclasses

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import numpy as np
import pytest
import torch
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import encode_rle
from ibis_agent.policy.messages import build_messages, pictures_of
from ibis_agent.policy.qwen25.decoding import Decoded
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.run.run import Run
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture

from training.rollouts.samples import IGNORED, add_reply, build_request, collate, turn_of, where_said

QUESTION = "Segment the liver."
REPLIES = [
    format_reply(Reply("I begin in the middle.", Click(0.5, 0.5))),
    format_reply(Reply("Some of it is missing.", Click(0.25, 0.7))),
    format_reply(Reply("This is not liver.", Click(0.75, 0.2, positive=False))),
    format_reply(Reply("It fits.", Terminate("The liver is segmented."))),
]


@pytest.fixture(scope="module")
def policy():
    return policies.open(demo_folder(), "cpu", "fp32")


@pytest.fixture(scope="module")
def segmenter():
    return segmenters.open()


def sent(policy, segmenter, rgb, history, reject=False):
    """(requests that the policy's decoder got, the episode as a trajectory's turns)."""
    height, width = rgb.shape[:2]
    policy.card = dataclasses.replace(policy.card, history=history)
    requests, script = [], iter(REPLIES[:1] + REPLIES if reject else REPLIES)

    class Listening:
        def run(self, request, *_):
            requests.append(request)
            return Decoded(next(script), (), 0.0, 0.0, 0, 0)

    real, policy._decoder = policy._decoder, Listening()
    try:
        picture = Picture(rgb, PictureGeometry.of_picture(height, width), None)
        episode = Run.on_picture(picture, QUESTION, policy, segmenter)
        if reject:
            episode.step()
            episode.reject()
            requests.clear()
        note = episode.turn().note
        while episode.status == "ready":
            episode.step()
    finally:
        policy._decoder = real
    turns, before = [], np.zeros((height, width), bool)
    for step in episode.steps:
        turns.append(
            {
                "kind": "click" if isinstance(step.action, Click) else "terminate",
                "reply": step.reply,
                "mask_before_rle": encode_rle(before),
                "note": note if step.number == 1 else "",
            }
        )
        before = step.mask
    return requests, turns


def same(a, b):
    return all(
        np.array_equal(getattr(a, part), getattr(b, part))
        for part in ("ids", "pixels", "grid", "types", "positions")
    )


@pytest.mark.parametrize(
    ("size", "history", "reject"),
    [((150, 180), 0, False), ((233, 121), 1, False), ((96, 96), 9, False), ((120, 140), 0, True)],
)
def test_the_sample_of_a_state_is_token_by_token_and_pixel_by_pixel_what_inference_sent(
    policy, segmenter, size, history, reject
):
    rgb = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
    requests, turns = sent(policy, segmenter, rgb, history, reject)
    assert len(requests) == len(turns) == 4
    for n, request in enumerate(requests):
        built = build_request(policy.chat, policy.card, turn_of(policy.card, rgb, QUESTION, turns, n))
        assert same(built, request), n
        sample = add_reply(policy.chat, built, turns[n]["reply"])
        length = len(request.ids)
        assert np.array_equal(sample.ids[:length], request.ids)
        assert np.array_equal(sample.pixels, request.pixels)
        assert not sample.learn[:length].any() and sample.learn[length:].all()
        assert policy.chat.decode(sample.ids[length:]) == turns[n]["reply"]
        assert int(sample.ids[-1]) in policy.chat.stops
    if history == 9:
        assert len(requests[3].grid) == 4


def test_adding_a_reply_is_encoding_the_conversation_with_it(policy):
    rgb = np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    turn = turn_of(policy.card, rgb, QUESTION, [{"kind": "click", "reply": REPLIES[0]}], 0)
    added = add_reply(policy.chat, build_request(policy.chat, policy.card, turn), REPLIES[0])
    whole = policy.chat.encode(build_messages(policy.card, turn), pictures_of(policy.card, turn), REPLIES[0])
    assert same(added, whole)
    assert np.array_equal(added.learn, whole.learn) and added.parts == whole.parts


def test_the_tokens_of_a_rollout_are_learned_as_they_were_sampled(policy):
    rgb = np.zeros((60, 60, 3), np.uint8)
    turn = turn_of(policy.card, rgb, QUESTION, [{"kind": "click", "reply": ""}], 0)
    request = build_request(policy.chat, policy.card, turn)
    letters = [each for letter in "liver" for each in policy.chat.reply_tokens(letter)[:-1]]
    assert letters != policy.chat.reply_tokens("liver")[:-1]
    sample = add_reply(policy.chat, request, letters)
    assert sample.ids[sample.learn].tolist() == letters


def test_a_mask_of_another_size_is_refused(policy):
    rgb = np.zeros((60, 60, 3), np.uint8)
    turns = [
        {"kind": "click", "reply": ""},
        {"kind": "click", "mask_before_rle": encode_rle(np.ones((50, 60)))},
    ]
    with pytest.raises(InputError, match="another picture"):
        turn_of(policy.card, rgb, QUESTION, turns, 1)


def test_padding_and_company_change_nothing_and_loss_is_on_the_reply_only(policy):
    rng = np.random.default_rng(5)
    samples = []
    for size, reply in (((80, 120), REPLIES[0]), ((150, 90), REPLIES[3])):
        rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        turn = turn_of(policy.card, rgb, QUESTION, [{"kind": "click", "reply": reply}], 0)
        samples.append(add_reply(policy.chat, build_request(policy.chat, policy.card, turn), reply))
    assert len(samples[0].ids) != len(samples[1].ids)
    batch = collate(samples)
    labels = batch["labels"]
    with torch.inference_mode():
        together = policy.model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits
        keep, wanted = where_said(labels)
        short = {k: v for k, v in batch.items() if k != "labels"}
        kept = policy.model(**short, logits_to_keep=keep, use_cache=False).logits
        assert torch.allclose(kept, together[:, keep], atol=1e-5)
        for row, sample in enumerate(samples):
            alone = collate([sample])
            labels_alone = alone.pop("labels")
            logits = policy.model(**alone, use_cache=False).logits
            assert torch.allclose(together[row, : len(sample.ids)], logits[0], atol=1e-4)
            said = labels_alone[labels_alone != IGNORED].tolist()
            assert policy.chat.decode(said) == (REPLIES[0], REPLIES[3])[row]
            assert wanted[row][wanted[row] != IGNORED].tolist() == said
    assert int((labels != IGNORED).sum()) == sum(int(sample.learn.sum()) for sample in samples)


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="at least one"):
        collate([])
