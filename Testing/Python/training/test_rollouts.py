"""Rollouts: many episodes at a time are the episodes that the agent would have alone, with log-probabilities."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.actions import Box, Click, Prompt, Reply, Terminate, parse_reply
from ibis_agent.errors import InputError, ReplyError
from ibis_agent.mask.masks import box_around
from ibis_agent.policy.card import card_from_json
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.run.episode import Limits
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.contract import Segmenter
from tiny_models import make_tiny_policy

from training.grpo import rewards
from training.grpo.objective import figures
from training.grpo.tasks import phantom_tasks
from training.rollouts.roller import LIMIT, REPEATED, UNREADABLE, Question, Roller
from training.rollouts.sampling import BatchPolicy, Sample

LIMITS = Limits(max_turns=3)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return phantom_tasks(2, seed=7).every(per_picture=2, seed=7)


@pytest.fixture(scope="module")
def policy() -> BatchPolicy:
    return BatchPolicy.load(demo_folder(), "cpu")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return segmenters.open(device="cpu")


@pytest.fixture(scope="module")
def sampled(policy: BatchPolicy, segmenter: Segmenter, questions: list[Question]) -> list[Any]:
    """Four sampled rollouts of each question, as one list."""
    return _flat(Roller(policy, segmenter, LIMITS).run(questions, 4, 1.0, _generator(1)))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flat(groups: list[Any]) -> list[Any]:
    return [rollout for group in groups for rollout in group]


def _episode(policy: Any, segmenter: Segmenter, question: Question, limits: Limits = LIMITS) -> Run:
    height, width = question.truth.shape
    picture = Picture(question.rgb, PictureGeometry.of_picture(height, width), None)
    episode = Run.on_picture(picture, question.text, policy, segmenter, Settings(limits))
    episode.run()
    return episode


@pytest.mark.parametrize("history", [0, 2])
def test_greedy_rollouts_are_the_episodes_that_the_agent_has_alone(
    policy: BatchPolicy, segmenter: Segmenter, questions: list[Question], history: int
) -> None:
    alone = policies.open(demo_folder(), "cpu", "fp32")
    alone.card = dataclasses.replace(alone.card, history=history)
    together = BatchPolicy(policy.model, policy.chat, alone.card)
    # The demo policy was never taught with a history: then it stammers after its first turn, and which of two words
    # that are as likely it says is a matter of the order of sums. Such rollouts say nothing.
    limits = dataclasses.replace(LIMITS, max_turns=2) if history else LIMITS
    found = _flat(Roller(together, segmenter, limits).run(questions, 1, 0.0))
    assert len({len(rollout.turns) for rollout in found}) > 1  # some end before others
    for rollout in found:
        episode = _episode(alone, segmenter, rollout.question, limits)
        said = [turn.said.text for turn in rollout.turns]
        expected = [step.reply for step in episode.steps]
        assert said[0] == (expected or said)[0]
        if history and not all(_is_readable(text) for text in (*said, *expected)):
            continue
        assert said == expected + ([episode.halt.reply] if len(said) > len(expected) else [])
        assert np.array_equal(rollout.mask, episode.mask())
        assert len(rollout.prompts) == sum(isinstance(step.action, Click) for step in episode.steps)


def _is_readable(text: str) -> bool:
    try:
        parse_reply(text)
    except ReplyError:
        return False
    return True


def test_scoring_gives_the_log_probabilities_that_sampling_gave(
    policy: BatchPolicy, sampled: list[Any]
) -> None:
    turns = [turn for rollout in sampled for turn in rollout.turns]
    said = [(turn.request, turn.said.ids) for turn in turns]
    batches = list(policy.batches(said, tokens=700))
    assert sorted(n for batch in batches for n in batch) == list(range(len(said))) and len(batches) > 1
    for batch in batches:
        with torch.no_grad():
            scores = policy.score([said[n] for n in batch])
        for n, score in zip(batch, scores, strict=True):
            assert len(score) == len(turns[n].said.ids)  # the policy's own tokens, and no others
            assert np.allclose(score.numpy(), turns[n].said.logprobs, atol=1e-3)


def test_a_temperature_changes_what_is_sampled_and_how_it_is_scored(
    policy: BatchPolicy, questions: list[Question], sampled: list[Any]
) -> None:
    turn = sampled[0].turns[0]
    with torch.no_grad():
        (warm,), (cool,) = (policy.score([(turn.request, turn.said.ids)], t) for t in (1.0, 0.5))
    assert not torch.allclose(warm, cool)


def test_the_same_seed_gives_the_same_rollouts_and_another_seed_others(
    policy: BatchPolicy, segmenter: Segmenter, questions: list[Question], sampled: list[Any]
) -> None:
    roller = Roller(policy, segmenter, LIMITS)
    again = _flat(roller.run(questions, 4, 1.0, _generator(1)))
    other = _flat(roller.run(questions, 4, 1.0, _generator(2)))
    texts = [
        [[turn.said.text for turn in rollout.turns] for rollout in each] for each in (sampled, again, other)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_states_know_what_the_published_rows_lacked(sampled: list[Any]) -> None:
    for rollout in sampled:
        for number, turn in enumerate(rollout.turns, 1):
            assert turn.state.number == number
        for before, after in zip(rollout.turns, rollout.turns[1:], strict=False):
            assert after.state.iou_before == before.state.iou_after
        assert len(rollout.turns) <= LIMITS.max_turns
        assert rollout.reason


def test_the_limit_ends_a_rollout(segmenter: Segmenter, questions: list[Question]) -> None:
    clicks = [Reply("Here.", Click(0.4, 0.5)), Reply("And here.", Click(0.5, 0.5))]
    policy: Any = Scripted("ibis", {questions[0].text: clicks})
    ((rollout,),) = Roller(policy, segmenter, Limits(max_turns=1)).run(questions[:1], 1, 0.0)
    assert (len(rollout.turns), rollout.reason) == (1, LIMIT)


def test_a_reply_that_cannot_be_read_ends_a_rollout_with_an_empty_mask(
    tmp_path: Path, segmenter: Segmenter, questions: list[Question]
) -> None:
    chatter = BatchPolicy.load(make_tiny_policy(tmp_path / "tiny"), "cpu")
    chatter.card = dataclasses.replace(chatter.card, max_new_tokens=6)
    ((rollout,),) = Roller(chatter, segmenter).run(questions[:1], 1, 1.0, _generator(1))
    assert (rollout.reason, len(rollout.turns), rollout.mask.any()) == (UNREADABLE, 1, False)
    assert figures([[rollout]])["unreadable"] == 1


def test_predictions_made_together_are_those_made_alone(
    segmenter: Segmenter, questions: list[Question]
) -> None:
    asked = [question for question in questions if question.present]
    embeddings = [segmenter.embed(question.rgb) for question in asked]
    clicks = [[Click(0.3 + 0.1 * n, 0.5), Click(0.5, 0.4, n % 2 == 0)] for n in range(len(asked))]
    first = segmenter.predict_many(embeddings, [each[:1] for each in clicks], [None] * len(asked))
    second = segmenter.predict_many(embeddings, clicks, [each.logits for each in first])
    for n, embedding in enumerate(embeddings):
        alone = segmenter.predict(embedding, clicks[n], first[n].logits)
        assert np.abs(alone.logits - second[n].logits).max() < 1e-3
        assert (alone.mask != second[n].mask).mean() < 1e-3
        assert alone.score == pytest.approx(second[n].score, abs=1e-4)


def test_predictions_of_all_kinds_are_made_together(
    questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    boxed = segmenters.open("demo", device="cpu", first_box=True)
    click, box = Click(0.5, 0.5), Box(0.3, 0.3, 0.6, 0.7)
    pictures = [boxed.embed(question.rgb) for question in (questions[0], questions[-1])]
    assert not np.array_equal(questions[0].rgb, questions[-1].rgb)
    asked = [[click], [box], [click, Click(0.4, 0.4, False)], [box, click], [click, box], [Click(0.3, 0.6)]]
    asked, of = [*asked, *asked], [pictures[n >= len(asked)] for n in range(2 * len(asked))]
    logits = [
        None if len(each) == 1 else boxed.predict(embedding, each[:1]).logits
        for each, embedding in zip(asked, of, strict=True)
    ]
    decode, passes = boxed.model.sam_mask_decoder.forward, list[int]()
    monkeypatch.setattr(
        boxed.model.sam_mask_decoder, "forward", lambda **given: passes.append(1) or decode(**given)
    )
    together = boxed.predict_many(of, asked, logits)
    assert 0 < len(passes) < len(asked), "what is alike passes the decoder together"
    for embedding, prompts, before, found in zip(of, asked, logits, together, strict=True):
        alone = boxed.predict(embedding, prompts, before)
        assert np.abs(alone.logits - found.logits).max() < 1e-3, prompts
        assert (alone.mask != found.mask).mean() < 1e-3, prompts


class Scripted:
    """A batch policy of a given language: each question is answered from its own list, by number of the turn."""

    def __init__(self, language: str, replies: dict[str, list[Reply]]) -> None:
        self.card = card_from_json({"language": language})
        self.replies = replies

    def said(self, turn: Turn) -> str:
        return self.card.speech.format(self.replies[turn.question][turn.number - 1])

    def request(self, turn: Turn) -> Turn:
        return turn

    def sample(self, requests: list[Turn], *_: Any) -> list[Sample]:
        return [Sample(self.said(turn), (), np.zeros(0, np.float32)) for turn in requests]

    def reply(self, turn: Turn, *_: Any) -> str:
        return self.said(turn)

    identity: ClassVar = {"name": "scripted", "sha256": ""}


@pytest.mark.parametrize("language", ["ibis", "tool_calls"])
def test_rollouts_that_mix_boxes_and_clicks_are_the_episodes_alone(
    segmenter: Segmenter, questions: list[Question], language: str
) -> None:
    around = box_around(questions[0].truth)
    ways = {
        "a box": [around, Click(0.4, 0.4, False)],
        "a click": [Click(0.4, 0.5), around],
        "clicks": [Click(0.4, 0.5), Click(0.5, 0.5)],
        "the same box": [around, around, around],
        "nothing": [],
    }
    end = Reply("It fits.", Terminate("It is there."))
    replies = {name: [*(Reply("Here.", each) for each in way), end] for name, way in ways.items()}
    policy = Scripted(language, replies)
    asked = [dataclasses.replace(questions[0], text=name) for name in ways]
    limits = Limits(max_turns=4)
    groups = Roller(policy, segmenter, limits).run(asked, 1, 0.0)  # type: ignore[arg-type]
    for question, rollout in zip(asked, _flat(groups), strict=True):
        episode = _episode(policy, segmenter, question, limits)
        done = [step.action for step in episode.steps if isinstance(step.action, Prompt)]
        assert rollout.prompts == done and len(done) == min(len(ways[question.text]), 2)
        # A batch differs from one alone in the last bits only.
        assert (rollout.mask != episode.mask()).mean() < 1e-3
        assert (rollout.reason == REPEATED) == (question.text == "the same box")
        assert rollout.said_absent == (question.text == "nothing")
        formats = [rewards.house_format(turn.state.reply, rollout.language) for turn in rollout.turns]
        assert set(formats) == {1.0}
    assert _flat(groups)[0].hit
    assert figures(groups)["clicks"] == pytest.approx(8 / 5)


def test_a_truth_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="different sizes"):
        Question("a", np.zeros((4, 5, 3), np.uint8), "liver", "Segment the liver", np.zeros((5, 4), bool))


def test_questions_are_drawn_alike_for_the_same_numbers() -> None:
    tasks = phantom_tasks(2, seed=7)
    drawn = [[(q.picture, q.text) for q in tasks.draw(6, np.random.default_rng([1, n]))] for n in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    every = tasks.every(per_picture=2, seed=7)
    assert all(question.present == (n % 3 < 2) for n, question in enumerate(every))


def test_branches_go_on_from_the_states_that_their_group_had_come_to(
    policy: BatchPolicy, segmenter: Segmenter, questions: list[Question]
) -> None:
    roller, present = Roller(policy, segmenter, LIMITS), [each for each in questions if each.present][:2]
    groups = roller.run(present, 3, 1.5, _generator(3), branches=(1, 4), rng=np.random.default_rng(0))
    branches = [rollout for group in groups for rollout in group if rollout.own]
    assert branches
    for group in groups:
        originals = [rollout for rollout in group if not rollout.own]
        assert len(originals) == 3
        states: dict[Any, int] = {}
        for rollout in group:
            for n in range(max(1, rollout.own), len(rollout.turns)):
                key = tuple(turn.state.action for turn in rollout.turns[:n])
                states[key] = states.get(key, 0) + 1
        for branch in (rollout for rollout in group if rollout.own):
            start = tuple(turn.state.action for turn in branch.turns[: branch.own])
            assert states[start] >= 4
            assert any(
                tuple(turn.state.action for turn in each.turns[: branch.own]) == start for each in originals
            )
            first = branch.turns[branch.own].state
            assert np.array_equal(first.before, branch.turns[branch.own - 1].state.after)
            # Its masks are those of an episode that made all of its clicks.
            embedding, logits, mask = segmenter.embed(branch.question.rgb), None, None
            for n in range(len(branch.prompts)):
                found = segmenter.predict(embedding, branch.prompts[: n + 1], logits)
                logits, mask = found.logits, found.mask
            assert mask is not None and (mask != branch.mask).mean() < 1e-3
